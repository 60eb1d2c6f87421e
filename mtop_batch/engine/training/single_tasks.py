"""Training of single tasks on Ray, side by side: for the warm start of a model, for tasks that are added to one, and
for models of one task each. The tasks of a new family are learned together.
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

from mtop_batch.config.train import OptimizerConfig
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.session import Resources
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.engine.training.workers import SingleTaskJob, train_new_family, train_task
from mtop_batch.errors import JobError, MtopError, one_line
from mtop_batch.families import Family
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
        families: New families.
        family_of: Task -> family, a new one or one of the model's, of the tasks that have one.
        train: What trains each, as a Ray task.
    """

    phase: str
    data: Sequence[TaskData]
    settings: TrainSettings
    optimizer: OptimizerConfig
    new_task: Mapping[str, Any]
    prompt_groups: Mapping[str, str] = field(default_factory=dict)
    families: Sequence[Family] = ()
    family_of: Mapping[str, str] = field(default_factory=dict)
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
        trainings = self._trainings()
        done: dict[str, LearnedTask] = {}
        for names in trainings:
            if all(kept[name] is not None for name in names):
                done |= {name: task for name in names if (task := kept[name]) is not None}
        monitor.begin_single_tasks(self.phase, self._num_steps(trainings), done)
        job = SingleTaskJob(
            phase=self.phase,
            settings=self.settings,
            precision=self.optimizer.precision,
            new_task=self.new_task,
            prompt_groups=self.prompt_groups,
            families=self.families,
            family_of=self.family_of,
            events=events,
            run_uri=run.uri,
            processes=math.ceil(len(trainings) / resources.num_nodes),
            max_threads=max_threads(),
        )
        options = ray_options(len(trainings), resources, self.optimizer.max_failures)
        train_one: Any = ray.remote(self.train).options(**options)
        train_together: Any = ray.remote(train_new_family).options(**options)
        model_ref, refs = ray.put(model), {}
        for names, items in trainings.items():
            if names[0] in done:
                continue
            if self._new_family(names[0]) is None:
                refs[names] = train_one.remote(model_ref, items[0], job)
            else:
                refs[names] = train_together.remote(model_ref, items, job)

        def keep(learned: Mapping[str, LearnedTask]) -> None:
            for name, task in learned.items():
                done[name] = task
                results = {item.name: getattr(task, item.name) for item in fields(task) if item.name != "tensors"}
                run.keep_task(name, task.tensors, results)
                monitor.end_single_task(name)

        _side_by_side(refs, monitor, events, keep)
        return done

    def _new_family(self, task: str) -> str | None:
        """The new family that the task is of, if it is of one."""
        family = self.family_of.get(task)
        return family if family in {each.name for each in self.families} else None

    def _trainings(self) -> dict[tuple[str, ...], list[TaskData]]:
        """The tasks that are learned together, by their names: each alone, and those of a new family."""
        together: dict[str, list[TaskData]] = {}
        for item in self.data:
            family = self._new_family(item.task.name)
            together.setdefault(f"task {item.task.name}" if family is None else f"family {family}", []).append(item)
        return {tuple(item.task.name for item in items): items for items in together.values()}

    def _num_steps(self, trainings: Mapping[tuple[str, ...], Sequence[TaskData]]) -> dict[str, int]:
        """Steps of each task's training, those of a family with its first task; the vector is fitted in one."""
        steps: dict[str, int] = {}
        for names, items in trainings.items():
            size = sum(len(item.train) for item in items)
            own = num_steps(size, self.settings.batch_size, self.settings.epochs)
            steps |= {**dict.fromkeys(names, 0), names[0]: 1 if items[0].task.reads_vector else own}
        return steps


def _kept(run: RunDirectory, name: str) -> LearnedTask | None:
    tensors = run.task(name)
    return None if tensors is None else LearnedTask(tensors, **run.task_result(name))


def _side_by_side(
    refs: Mapping[tuple[str, ...], ray.ObjectRef[Any]],
    monitor: TrainingMonitor,
    events: EventQueue,
    keep: Callable[[Mapping[str, LearnedTask]], None],
) -> None:
    """Wait for trainings that run side by side; those still running are ended if one fails.

    Args:
        refs: Tasks -> what their training will return: what it learned of a task, or that of each by its name.
        monitor: Shows how they get on.
        events: Carries their events.
        keep: Called with what was learned, as it comes.

    Raises:
        MtopError: A task cannot be trained.
    """
    running = {ref: names for names, ref in refs.items()}
    try:
        while running:
            finished, _ = ray.wait(list(running), timeout=POLL_S)
            monitor.poll(events)
            for ref in finished:
                names = running.pop(ref)
                found = _result(", ".join(names), ref)
                keep(found if isinstance(found, dict) else {names[0]: found})
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
