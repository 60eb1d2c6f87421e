"""Training of a task that is added to a trained model, whose every other weight stays as it is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.loop import Emit, fit
from mtop_batch.training.settings import TaskData, TrainSettings, Worker


@dataclass(frozen=True)
class AddedTask:
    """A task that was learned.

    Args:
        tensors: Its prompts, adapter, pooler and head, on the CPU.
        metrics: On its evaluation examples, at these weights.
        best_step: The steps after which they were taken.
        num_steps: Steps of the whole training.
    """

    tensors: dict[str, Tensor]
    metrics: TaskMetrics
    best_step: int
    num_steps: int


def train_added_task(
    model: MTOPModel,
    data: TaskData,
    settings: TrainSettings,
    *,
    num_prompts: int,
    adapter_rank: int = 0,
    pad_token_id: int,
    worker: Worker | None = None,
    emit: Emit | None = None,
) -> AddedTask:
    """Learn one task on a trained model: its own prompts, adapter, pooler and head train, and nothing else.

    The new task is isolated, so tasks that are added together know nothing of one another and may be trained side by
    side. The texts go through the backbone once (`mtop_batch.training.cached_contexts`).

    Args:
        model: Taken over: it gets the task and is left frozen.
        data: The task and its examples; a task of that name makes room.
        settings: How to train.
        num_prompts: Prompts of the task.
        adapter_rank: Of its adapter; 0 for none.
        pad_token_id: Of the tokenizer.
        worker: This process; None for a single one on the CPU.
        emit: As for `fit`.

    Raises:
        TaskError: Other tasks depend on the task of that name.
        ConfigError: Training diverged.
        DataError: The task has no examples.
    """
    model.add_tasks(
        [data.task], prompts_per_task=num_prompts, adapter_rank=adapter_rank, seed=settings.seed, replace=True
    )
    model.requires_grad_(False)
    for parameter in model.task_parameters(data.task.name):
        parameter.requires_grad_(True)
    result = fit(model, [data], settings, pad_token_id=pad_token_id, worker=worker, emit=emit)
    return AddedTask(
        tensors={name: tensor.cpu() for name, tensor in model.task_tensors(data.task.name).items()},
        metrics=result.best_metrics[data.task.name],
        best_step=result.best_step,
        num_steps=result.num_steps,
    )
