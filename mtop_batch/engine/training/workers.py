"""What runs on Ray's workers: the training of a single task, and one worker's part of the multi-task training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from transformers import PreTrainedModel

from mtop_batch import storage
from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.session import num_cores
from mtop_batch.engine.training.failures import Failures
from mtop_batch.errors import ConfigError, MtopError, one_line
from mtop_batch.families import Family
from mtop_batch.model.kinds.mt_dnn import MTDNNModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.precision import PrecisionChoice, resolve_precision
from mtop_batch.training.loop import FitResult, WriteCheckpoint, fit
from mtop_batch.training.settings import TaskData, TrainSettings, Worker, single_worker
from mtop_batch.training.single_task import LearnedTask, train_family, train_single_task
from mtop_batch.training.task_checkpoints import TaskCheckpoints

WARM_START_PHASE = "warm start"
ADD_PHASE = "learn the new tasks"
TRAIN_PHASE = "train"
OWN_MODELS_PHASE = "train a model for each task"


@dataclass(frozen=True)
class SingleTaskJob:
    """Trainings of single tasks, as every task's worker is told of them.

    Args:
        phase: What they are for; events carry it.
        settings: How to train.
        precision: As in the configuration.
        new_task: How a task begins: arguments of `MTOPModel.add_tasks`, or of `MTDNNModel.from_backbone`.
        prompt_groups: Task -> prompt group, of the tasks that share prompts.
        families: New families.
        family_of: Task -> family, of the tasks that have one.
        events: Where events go.
        run_uri: The run's directory.
        processes: How many of these share a node.
        max_threads: None for as many as there are cores.
    """

    phase: str
    settings: TrainSettings
    precision: PrecisionChoice
    new_task: Mapping[str, Any]
    prompt_groups: Mapping[str, str]
    families: Sequence[Family]
    family_of: Mapping[str, str]
    events: EventQueue
    run_uri: str
    processes: int
    max_threads: int | None


@dataclass(frozen=True)
class MultiTaskJob:
    """The multi-task phase, as every worker is told of it.

    Args:
        settings: How to train.
        precision: As in the configuration.
        model: Reference to the model to begin with, frozen where it is to stay as it is.
        data: References to the `TaskData`, in the model's order.
        soft: Reference to the `SoftLabels` that all tasks also learn from, if there are any.
        events: Where events go.
        failures: Where what workers raise is noted.
        run_uri: The run's directory.
        max_threads: None for as many as there are cores.
    """

    settings: TrainSettings
    precision: PrecisionChoice
    model: ray.ObjectRef[Any]
    data: Sequence[ray.ObjectRef[Any]]
    soft: ray.ObjectRef[Any] | None
    events: EventQueue
    failures: Failures
    run_uri: str
    max_threads: int | None


def train_task(model: MTOPModel, data: TaskData, job: SingleTaskJob) -> LearnedTask:
    """A Ray task: one task, learned on a model of which nothing else trains.

    Args:
        model: That of the warm start has no task yet; that of added tasks may have one of the same name, which makes
            room.
        data: The task and its examples.
        job: How to train.

    Raises:
        MtopError: As `train_single_task`.
    """
    name = data.task.name
    groups = {name: job.prompt_groups[name]} if name in job.prompt_groups else {}
    family_of = {name: job.family_of[name]} if name in job.family_of else {}
    model.add_tasks([data.task], prompt_groups=groups, family_of=family_of, replace=True, **job.new_task)
    return train_single_task(model, data, job.settings, worker=_alone(name, job))


def train_new_family(model: MTOPModel, data: Sequence[TaskData], job: SingleTaskJob) -> dict[str, LearnedTask]:
    """A Ray task: a new family, learned on a model of which nothing else trains.

    Args:
        model: May have tasks of the same names, which make room.
        data: All tasks of the family, and their examples.
        job: How to train.

    Raises:
        MtopError: As `train_family`.
    """
    names = [item.task.name for item in data]
    name = job.family_of[names[0]]
    families = [family for family in job.families if family.name == name]
    family_of = dict.fromkeys(names, name)
    model.add_tasks([item.task for item in data], families=families, family_of=family_of, replace=True, **job.new_task)
    return train_family(model, name, data, job.settings, worker=_alone(names[0], job))


def train_own_model(backbone: PreTrainedModel, data: TaskData, job: SingleTaskJob) -> LearnedTask:
    """A Ray task: a model of its own for one task, all of which trains, from its last checkpoint if there is one.

    Args:
        backbone: What the model begins with.
        data: The task and its examples.
        job: How to train.

    Returns:
        The weights of an `MTDNNModel`, and how it did.

    Raises:
        MtopError: As `fit`.
    """
    name = data.task.name
    worker = _alone(name, job)
    model = MTDNNModel.from_backbone(backbone, [data.task], **job.new_task)
    checkpoints = TaskCheckpoints(job.run_uri, name)
    with tempfile.TemporaryDirectory(prefix="mtop_checkpoint-") as directory:
        last = checkpoints.read(Path(directory))
        result = fit(model, [data], job.settings, worker=worker, checkpoint=last, save=checkpoints.save)
    tensors = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    metrics = result.best_metrics.get(name, {})
    return LearnedTask(tensors, metrics, result.best_step, result.num_steps, result.last_step)


def _alone(task: str, job: SingleTaskJob) -> Worker:
    """This process, which shares its node with other trainings of single tasks; its events are those of this task."""
    use_threads(job.processes, job.max_threads)

    def send(event: Event) -> None:
        job.events.emit({**event, "phase": job.phase, "task": task})

    return single_worker(job.precision, send)


def train_worker(config: dict[str, Any]) -> FitResult | MtopError:
    """Ray Train's loop: this worker's part of the multi-task training, from the last checkpoint if there is one.

    Args:
        config: {"job": reference to a `MultiTaskJob`}.

    Returns:
        How the run went, or what makes it impossible. The latter is the same on all workers and would be the same
        the next time, so it is returned and not raised: Ray Train would try again. What one worker alone cannot get
        over it raises, so that the others end too; on the next attempt all return it.
    """
    job: MultiTaskJob = ray.get(config["job"])
    context = ray.train.get_context()
    use_threads(context.get_local_world_size(), job.max_threads)
    device = ray.train.torch.get_device()

    def send(event: Event) -> None:
        job.events.emit({**event, "phase": TRAIN_PHASE})

    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        precision=resolve_precision(job.precision, device, autocast=True),
        event_sink=send,
    )
    node = ray.util.get_node_ip_address()
    send({"event": "worker", "rank": worker.rank, "pid": os.getpid(), "node": node})
    if last_word := job.failures.last_word():
        return last_word
    try:
        _check_visible(job.run_uri, node, worker)
        return _fit(job, worker)
    except MtopError as error:
        return error
    except Exception as error:
        send({"event": "error", "rank": worker.rank, "error": one_line(error, with_type=True)})
        last_word = job.failures.add(error, worker.rank)
        if last_word and worker.world_size == 1:
            return last_word
        raise


def _fit(job: MultiTaskJob, worker: Worker) -> FitResult:
    model, data = ray.get(job.model), ray.get(list(job.data))
    checkpoint = ray.train.get_checkpoint()
    with nullcontext() if checkpoint is None else checkpoint.as_directory() as directory:
        return fit(
            model,
            data,
            job.settings,
            soft=None if job.soft is None else ray.get(job.soft),
            worker=worker,
            checkpoint=None if directory is None else Path(directory),
            save=_report,
        )


def _report(write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
    """Hand a checkpoint to Ray Train, which copies it to the run's directory; all workers wait for one another."""
    if write is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="mtop_checkpoint-") as directory:
        write(Path(directory))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def use_threads(processes: int, max_threads: int | None) -> None:
    """Share the node's cores between the processes that compute on it."""
    threads = max(1, num_cores() // processes)
    torch.set_num_threads(min(threads, max_threads or threads))


def _check_visible(run_uri: str, node: str, worker: Worker) -> None:
    """Refuse, on all workers together, a local run directory that is not the same one for all of them."""
    blind = [None if storage.is_remote(run_uri) or Path(run_uri).is_dir() else node]
    if worker.world_size > 1:
        seen: list[Any] = [None] * worker.world_size
        torch.distributed.all_gather_object(seen, blind[0])
        blind = seen
    nodes = sorted({name for name in blind if name is not None})
    if nodes:
        raise ConfigError(
            f"workers on {', '.join(nodes)} do not see {run_uri}: with several nodes `output` must be on object "
            "storage (s3://...) or on a file system that all nodes share"
        )
