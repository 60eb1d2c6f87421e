"""Training of one task by itself, or of the tasks of a new family, on a model of which nothing else trains.

Both the warm start (paper, section 4.3) and `mtop add-tasks` learn tasks in this way. They differ in the model that
they begin with and in their settings only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation.evaluate import evaluate_task
from mtop_batch.training.loop import fit
from mtop_batch.training.probe import train_probe
from mtop_batch.training.settings import TaskData, TrainSettings, Worker

OF_FAMILY = "family."


@dataclass(frozen=True)
class LearnedTask:
    """A task that was learned.

    Args:
        tensors: Its prompts, LoRA, pooler and head, on the CPU: what `MTOPModel.load_task` takes. Of a task of a new
            family also the LoRA of the family, as `family.` and its name in `MTOPModel.family_tensors`.
        metrics: On its evaluation examples, at these weights; empty if it was not evaluated.
        best_step: The steps after which the weights were taken.
        num_steps: Steps of the whole training.
        last_step: Steps that were done: fewer, where patience ran out.
    """

    tensors: dict[str, Tensor]
    metrics: TaskMetrics
    best_step: int
    num_steps: int
    last_step: int


def train_single_task(
    model: MTOPModel, data: TaskData, settings: TrainSettings, *, worker: Worker | None = None
) -> LearnedTask:
    """Train the prompts, LoRA, pooler and head of one task and nothing else; fit it if it reads the vector.

    Tasks that train in this way know nothing of one another, so this runs for all of them side by side. If the task is
    isolated, the texts go through the backbone once (`mtop_batch.training.cached_contexts`).

    Args:
        model: Has the task. All but the task is left frozen.
        data: The task and its examples.
        settings: How to train.
        worker: This process; None for a single one on the CPU.

    Raises:
        ConfigError: Training diverged.
        DataError: The task has no examples.
    """
    worker = worker or Worker()
    name = data.task.name
    model.requires_grad_(False)
    if data.task.reads_vector:
        train_probe(model, data, seed=settings.seed, worker=worker)
        metrics = evaluate_task(model, data.evaluation_examples(), data.task, worker=worker)
        best_step = num_steps = last_step = 1
    else:
        _let_train(model, name)
        result = fit(model, [data], settings, worker=worker)
        metrics = result.best_metrics.get(name, {})
        best_step, num_steps, last_step = result.best_step, result.num_steps, result.last_step
    tensors = {key: tensor.cpu() for key, tensor in model.task_tensors(name).items()}
    return LearnedTask(tensors, metrics, best_step, num_steps, last_step)


def train_family(
    model: MTOPModel, family: str, data: Sequence[TaskData], settings: TrainSettings, *, worker: Worker | None = None
) -> dict[str, LearnedTask]:
    """Train the LoRA of a family and its tasks together, and nothing else.

    Args:
        model: Has the family and the tasks. All else is left frozen.
        family: Its name.
        data: All tasks of the family, and their examples.
        settings: How to train; an epoch is as many examples as all these tasks have together.
        worker: This process; None for a single one on the CPU.

    Returns:
        Each task, at the weights with the highest mean metric.

    Raises:
        ConfigError: Training diverged.
        DataError: A task has no examples.
    """
    model.requires_grad_(False)
    for parameter in model.family_parameters(family):
        parameter.requires_grad_(True)
    for item in data:
        _let_train(model, item.task.name)
    result = fit(model, data, settings, worker=worker)
    shared = {f"{OF_FAMILY}{key}": tensor.cpu() for key, tensor in model.family_tensors(family).items()}
    learned = {}
    for name in (item.task.name for item in data):
        own = {key: tensor.cpu() for key, tensor in model.task_tensors(name).items()}
        metrics = result.best_metrics.get(name, {})
        learned[name] = LearnedTask({**own, **shared}, metrics, result.best_step, result.num_steps, result.last_step)
    return learned


def load_learned(model: MTOPModel, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Set a task's parameters, and those of its family where they were learned with it."""
    shared = {key.removeprefix(OF_FAMILY): value for key, value in tensors.items() if key.startswith(OF_FAMILY)}
    family = model.family_of(name)
    if shared and family is not None:
        model.load_family(family, shared)
    model.load_task(name, {key: value for key, value in tensors.items() if not key.startswith(OF_FAMILY)})


def _let_train(model: MTOPModel, name: str) -> None:
    prompts = [model.prompts(name)] if model.reads_prompts(name) else []
    for parameter in (*model.task_parameters(name), *prompts):
        parameter.requires_grad_(True)
