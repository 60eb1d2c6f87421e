"""Training of single tasks on Ray, side by side: for the warm start of a model, for tasks that are added to one, and
for models of one task each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from transformers import PreTrainedModel

from mtop_batch.config.sections import OptimizerConfig
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.run_directory import RunDirectory
from mtop_batch.engine.session import Resources
from mtop_batch.engine.workers import SingleTaskJob, train_task
from mtop_batch.errors import JobError, MtopError, one_line
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
        new_task: How a task begins, as in `SingleTaskJob`.
        prompt_groups: Task -> prompt group, of the tasks that share prompts.
        train: What trains each, as a Ray task.
    """

    phase: str
    data: Sequence[TaskData]
    settings: TrainSettings
    optimizer: OptimizerConfig
    new_task: Mapping[str, Any]
    prompt_groups: Mapping[str, str] = field(default_factory=dict)
    train: Callable[[Any, TaskData, SingleTaskJob], LearnedTask] = train_task

    def learn(
        self,
        model: PreTrainedModel,
        resources: Resources,
        run: RunDirectory,
        monitor: TrainingMonitor,
        events: EventQueue,
    ) -> dict[str, LearnedTask]:
        """Every task from a training of its own; what an interrupted run has learned is taken from its directory.

        Args:
            model: What each begins with: a model with none of the tasks, or with those that the new ones replace; or
                the backbone of models of their own.
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
            run_uri=run.uri,
            processes=math.ceil(len(self.data) / resources.num_nodes),
            max_threads=max_threads(),
        )
        options = ray_options(len(self.data), resources, self.optimizer.max_failures)
        train_one, model_ref = ray.remote(self.train).options(**options), ray.put(model)
        refs = {
            item.task.name: train_one.remote(model_ref, item, job) for item in self.data if item.task.name not in done
        }

        def keep(name: str, task: LearnedTask) -> None:
            done[name] = task
            results = {item.name: getattr(task, item.name) for item in fields(task) if item.name != "tensors"}
            run.keep_task(name, task.tensors, results)

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
                keep(name, _result(name, ref))
                monitor.end_single_task(name)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def ray_options(num_tasks: int, resources: Resources, max_failures: int) -> dict[str, Any]:
    """What Ray gives to each of so many small trainings: a CPU, or a share of a GPU."""
    options: dict[str, Any] = {
        "num_cpus": 1,
        "max_retries": max_failures,
        "runtime_env": {"env_vars": dict(KEEP_FREED_MEMORY)},
    }
    if resources.num_gpus:
        per_gpu = min(_MAX_TASKS_PER_GPU, math.ceil(num_tasks / resources.num_gpus))
        options["num_gpus"] = 1 / per_gpu
    return options


def _result(name: str, ref: ray.ObjectRef[T]) -> T:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, MtopError):
            raise error.cause from error
        reason = one_line(error.cause, with_type=True)
        raise JobError(f"the training of task {name!r} failed: {reason}; the same command does what is left") from error
    except RayError as error:
        raise JobError(
            f"the training of task {name!r} lost its worker too often (max_failures): {one_line(error)}; the same "
            "command does what is left"
        ) from error


def max_threads() -> int | None:
    """What the user allows by OMP_NUM_THREADS, which Ray overwrites for its workers."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) else None
