"""Training of one task by itself, on a model of which nothing else trains.

Both the warm start (paper, section 4.3) and `mtop add-tasks` learn tasks in this way. They differ in the model that
they begin with and in their settings only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation import evaluate_task
from mtop_batch.training.loop import fit
from mtop_batch.training.probe import train_probe
from mtop_batch.training.settings import TaskData, TrainSettings, Worker


@dataclass(frozen=True)
class LearnedTask:
    """A task that was learned.

    Args:
        tensors: Its prompts, LoRA, pooler and head, on the CPU: what `MTOPModel.load_task` takes.
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
        prompts = [model.prompts(name)] if data.task.reads_prompts else []
        for parameter in (*model.task_parameters(name), *prompts):
            parameter.requires_grad_(True)
        result = fit(model, [data], settings, worker=worker)
        metrics = result.best_metrics.get(name, {})
        best_step, num_steps, last_step = result.best_step, result.num_steps, result.last_step
    tensors = {key: tensor.cpu() for key, tensor in model.task_tensors(name).items()}
    return LearnedTask(tensors, metrics, best_step, num_steps, last_step)
