"""What runs on Ray's workers: a task's warm start, and one worker's part of the multi-task training."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch import storage
from mtop_batch.engine.events import Event, EventQueue
from mtop_batch.engine.session import num_cores
from mtop_batch.errors import ConfigError, MtopError
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.precision import PrecisionChoice, has_bf16
from mtop_batch.training.added_task import AddedTask, train_added_task
from mtop_batch.training.loop import FitResult, WriteCheckpoint, fit
from mtop_batch.training.probe import train_probe
from mtop_batch.training.settings import Precision, TaskData, TrainSettings, Worker
from mtop_batch.training.warm_start import train_single_task

WARM_START_PHASE = "warm start"
ADD_PHASE = "learn the new tasks"


@dataclass(frozen=True)
class SingleTaskJob:
    """The single-task phase, as every task's worker is told of it.

    Args:
        settings: How to train; its precision is decided by the worker.
        precision: As in the configuration.
        prompts_per_task: The paper's L_P.
        prompt_attention: That of the model which is to start from the result.
        prompt_groups: Task -> prompt group in that model.
        pooler_rank: That of the model.
        max_tokens: Longest text.
        pad_token_id: Of the tokenizer.
        events: Where events go.
        processes: How many of these share a node.
        max_threads: None for as many as there are cores.
    """

    settings: TrainSettings
    precision: PrecisionChoice
    prompts_per_task: int
    prompt_attention: PromptAttention
    prompt_groups: Mapping[str, str]
    pooler_rank: int
    max_tokens: int
    pad_token_id: int
    events: EventQueue
    processes: int
    max_threads: int | None


@dataclass(frozen=True)
class AddedTaskJob:
    """The training of added tasks, as every task's worker is told of it.

    Args:
        settings: How to train; its precision is decided by the worker.
        precision: As in the configuration.
        num_prompts: Of each task but probes.
        adapter_rank: Of their adapters; 0 for none.
        pad_token_id: Of the tokenizer.
        events: Where events go.
        processes: How many of these share a node.
        max_threads: None for as many as there are cores.
    """

    settings: TrainSettings
    precision: PrecisionChoice
    num_prompts: int
    adapter_rank: int
    pad_token_id: int
    events: EventQueue
    processes: int
    max_threads: int | None


@dataclass(frozen=True)
class MultiTaskJob:
    """The multi-task phase, as every worker is told of it.

    Args:
        settings: How to train; its precision is decided by the worker.
        precision: As in the configuration.
        model: Reference to the `MTOPModel` to begin with, frozen where it is to stay as it is.
        data: References to the `TaskData`, in the model's order.
        pad_token_id: Of the tokenizer.
        events: Where events go.
        run_uri: The run's directory.
        max_threads: None for as many as there are cores.
    """

    settings: TrainSettings
    precision: PrecisionChoice
    model: ray.ObjectRef[Any]
    data: Sequence[ray.ObjectRef[Any]]
    pad_token_id: int
    events: EventQueue
    run_uri: str
    max_threads: int | None


def warm_start(backbone: PreTrainedModel, data: TaskData, job: SingleTaskJob) -> dict[str, Tensor]:
    """A Ray task: one task's prompts, pooler and head, trained on the frozen backbone (paper, section 4.3).

    Raises:
        MtopError: As `train_single_task`.
    """
    _use_threads(job.processes, job.max_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def emit(event: Event) -> None:
        job.events.emit({**event, "phase": WARM_START_PHASE, "task": data.task.name})

    return train_single_task(
        backbone,
        data,
        replace(job.settings, precision=resolve_precision(job.precision, device)),
        prompts_per_task=job.prompts_per_task,
        prompt_attention=job.prompt_attention,
        prompt_group=job.prompt_groups.get(data.task.name),
        pooler_rank=job.pooler_rank,
        max_tokens=job.max_tokens,
        pad_token_id=job.pad_token_id,
        worker=Worker(device=device),
        emit=emit,
    )


def add_task(model: MTOPModel, data: TaskData, job: AddedTaskJob) -> AddedTask:
    """A Ray task: one task, learned on a trained model of which nothing else trains.

    Raises:
        MtopError: As `train_added_task` or `train_probe`.
    """
    _use_threads(job.processes, job.max_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def emit(event: Event) -> None:
        job.events.emit({**event, "phase": ADD_PHASE, "task": data.task.name})

    if data.task.kind == "probe":
        return train_probe(
            model,
            data,
            seed=job.settings.seed,
            precision=resolve_precision(job.precision, device),
            pad_token_id=job.pad_token_id,
            worker=Worker(device=device),
            emit=emit,
        )
    return train_added_task(
        model,
        data,
        replace(job.settings, precision=resolve_precision(job.precision, device)),
        num_prompts=job.num_prompts,
        adapter_rank=job.adapter_rank,
        pad_token_id=job.pad_token_id,
        worker=Worker(device=device),
        emit=emit,
    )


def train_worker(config: dict[str, Any]) -> FitResult | MtopError:
    """Ray Train's loop: this worker's part of the multi-task training, from the last checkpoint if there is one.

    Args:
        config: {"job": reference to a `MultiTaskJob`}.

    Returns:
        How the run went, or what makes it impossible. The latter is the same on all workers and would be the same
        the next time, so it is returned and not raised: Ray Train would try again.
    """
    job: MultiTaskJob = ray.get(config["job"])
    context = ray.train.get_context()
    _use_threads(context.get_local_world_size(), job.max_threads)
    worker = Worker(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    node = ray.util.get_node_ip_address()
    job.events.emit({"event": "worker", "phase": "train", "rank": worker.rank, "pid": os.getpid(), "node": node})
    try:
        _check_visible(job.run_uri, node, worker)
        return _fit(job, worker)
    except MtopError as error:
        return error


def _fit(job: MultiTaskJob, worker: Worker) -> FitResult:
    def emit(event: Event) -> None:
        job.events.emit({**event, "phase": "train"})

    model, data = ray.get(job.model), ray.get(list(job.data))
    checkpoint = ray.train.get_checkpoint()
    with nullcontext() if checkpoint is None else checkpoint.as_directory() as directory:
        return fit(
            model,
            data,
            replace(job.settings, precision=resolve_precision(job.precision, worker.device)),
            pad_token_id=job.pad_token_id,
            worker=worker,
            checkpoint=None if directory is None else Path(directory),
            save=_report,
            emit=emit,
        )


def resolve_precision(wanted: PrecisionChoice, device: torch.device) -> Precision:
    """ "auto" is bf16 on GPUs that have it and fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def _report(write: WriteCheckpoint | None, metrics: dict[str, Any]) -> None:
    """Hand a checkpoint to Ray Train, which copies it to the run's directory; all workers wait for one another."""
    if write is None:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory(prefix="mtop_checkpoint-") as directory:
        write(Path(directory))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def _use_threads(processes: int, max_threads: int | None) -> None:
    """Share the node's cores between the processes that train on it."""
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
