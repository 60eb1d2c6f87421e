"""Training of single tasks on Ray, side by side: for the warm start of a model and for tasks that are added to one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from mtop_batch.config.sections import OptimizerConfig
from mtop_batch.engine.events import EventQueue
from mtop_batch.engine.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitor import TrainingMonitor
from mtop_batch.engine.run_directory import RunDirectory
from mtop_batch.engine.session import Resources
from mtop_batch.engine.workers import SingleTaskJob, train_task
from mtop_batch.errors import MtopError
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.sampling import num_steps
from mtop_batch.training.settings import TaskData, TrainSettings
from mtop_batch.training.single_task import LearnedTask

T = TypeVar("T")

POLL_S = 1.0
_MAX_TASKS_PER_GPU = 4


@dataclass(frozen=True)
class SingleTasks:
    """What trainings of single tasks need.

    Args:
        phase: Its name; events carry it.
        data: Of every task.
        settings: How each trains.
        optimizer: The section of the configuration with their precision and tolerated failures.
        new_task: How a task begins: arguments of `MTOPModel.add_tasks`.
        prompt_groups: Task -> prompt group, of the tasks that share prompts.
    """

    phase: str
    data: Sequence[TaskData]
    settings: TrainSettings
    optimizer: OptimizerConfig
    new_task: Mapping[str, Any]
    prompt_groups: Mapping[str, str]

    def learn(
        self,
        model: MTOPModel,
        resources: Resources,
        run: RunDirectory,
        monitor: TrainingMonitor,
        events: EventQueue,
    ) -> dict[str, LearnedTask]:
        """Every task from a training of its own; what an interrupted run has learned is taken from its directory.

        Args:
            model: What each begins with: none of the tasks, or those that the new ones replace.
            resources: Of the connected Ray.
            run: Keeps what was learned.
            monitor: Shows how they get on.
            events: Carries their events to it.

        Raises:
            MtopError: A task cannot be trained.
        """
        kept = {item.task.name: _kept(run, item.task.name) for item in self.data}
        done = {name: task for name, task in kept.items() if task is not None}
        monitor.begin_single_tasks(self.phase, {item.task.name: self._num_steps(item) for item in self.data}, done)
        job = SingleTaskJob(
            phase=self.phase,
            settings=self.settings,
            precision=self.optimizer.precision,
            new_task=self.new_task,
            prompt_groups=self.prompt_groups,
            events=events,
            processes=math.ceil(len(self.data) / resources.num_nodes),
            max_threads=max_threads(),
        )
        options = _ray_options(len(self.data), resources, self.optimizer.max_failures)
        train_one, model_ref = ray.remote(train_task).options(**options), ray.put(model)
        refs = {
            item.task.name: train_one.remote(model_ref, item, job) for item in self.data if item.task.name not in done
        }

        def keep(name: str, task: LearnedTask) -> None:
            done[name] = task
            run.keep_task(name, task.tensors, {key: value for key, value in asdict(task).items() if key != "tensors"})

        _side_by_side(refs, monitor, events, keep)
        return done

    def _num_steps(self, data: TaskData) -> int:
        """Steps of the task's training; a task that reads the vector is fitted in one."""
        if data.task.reads_vector:
            return 1
        return num_steps(len(data.train), self.settings.batch_size, self.settings.epochs)


def _kept(run: RunDirectory, name: str) -> LearnedTask | None:
    tensors = run.task(name)
    return None if tensors is None else LearnedTask(tensors, **run.task_result(name))


def _side_by_side(
    refs: Mapping[str, ray.ObjectRef[T]], monitor: TrainingMonitor, events: EventQueue, keep: Callable[[str, T], None]
) -> None:
    """Wait for trainings of single tasks that run side by side; those still running are ended if one fails.

    Args:
        refs: Task -> what its training will return.
        monitor: Shows how they get on.
        events: Carries their events.
        keep: Called with each task and its result, as they come.

    Raises:
        MtopError: A task cannot be trained.
    """
    running = {ref: name for name, ref in refs.items()}
    try:
        while running:
            finished, _ = ray.wait(list(running), timeout=POLL_S)
            monitor.poll(events)
            for ref in finished:
                name = running.pop(ref)
                keep(name, _result(ref))
                monitor.end_single_task(name)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _ray_options(num_tasks: int, resources: Resources, max_failures: int) -> dict[str, Any]:
    """What Ray gives to each of so many trainings of single tasks: a CPU, or a share of a GPU."""
    options: dict[str, Any] = {
        "num_cpus": 1,
        "max_retries": max_failures,
        "runtime_env": {"env_vars": dict(KEEP_FREED_MEMORY)},
    }
    if resources.num_gpus:
        per_gpu = min(_MAX_TASKS_PER_GPU, math.ceil(num_tasks / resources.num_gpus))
        options["num_gpus"] = 1 / per_gpu
    return options


def _result(ref: ray.ObjectRef[T]) -> T:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, MtopError) else error from error


def max_threads() -> int | None:
    """What the user allows by OMP_NUM_THREADS, which Ray overwrites for its workers."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) else None
