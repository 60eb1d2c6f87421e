"""How good a model is at each task, and the one number that chooses a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from mtop_batch.data.batches import length_sorted_batches
from mtop_batch.data.examples import LabelledTokens
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Metric, Task
from mtop_batch.training.cached_contexts import CachedContexts, model_inputs
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.metrics import compute_metric
from mtop_batch.training.settings import TaskData, Worker

MAX_BATCH_TOKENS = 8192


def evaluate(
    model: MultiTaskModel,
    data: Sequence[TaskData],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    worker: Worker | None = None,
    contexts: CachedContexts | None = None,
) -> dict[str, TaskMetrics]:
    """The metrics of every task on its evaluation examples, by task name; the arguments are those of `evaluate_task`.

    Raises:
        DataError: A task has no evaluation examples.
    """
    return {
        item.task.name: evaluate_task(
            model,
            item.evaluation_examples(),
            item.task,
            max_batch_tokens=max_batch_tokens,
            worker=worker,
            contexts=contexts,
        )
        for item in data
    }


def evaluate_task(
    model: MultiTaskModel,
    examples: LabelledTokens,
    task: Task,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    worker: Worker | None = None,
    contexts: CachedContexts | None = None,
) -> TaskMetrics:
    """The metrics of one task.

    With several workers, worker r of w takes the rows r, r + w, r + 2w ...; all call this together and get the same
    result.

    Args:
        model: On the worker's device; left in the mode (training or evaluation) it was in.
        examples: R labelled rows, at least one.
        task: A task of the model.
        max_batch_tokens: Positions of a batch, prompts and padding included.
        worker: This process; None for a single one on the CPU.
        contexts: The KV caches of the examples, where the backbone is frozen and the task isolated.

    Returns:
        The task's own metric under its name, "accuracy" for classification, "loss", and "num_examples".
    """
    worker = worker or Worker()
    rows = np.arange(worker.rank, len(examples), worker.world_size)
    lengths = examples.tokens.lengths[rows] + model.num_positions([task.name])
    batches = [rows[batch] for batch in length_sorted_batches(lengths, max_batch_tokens)]
    with _evaluating(model), worker.autocast():
        own_predictions, own_loss = _predict(model, examples, task, batches, worker, contexts)
    order = np.concatenate([np.empty(0, np.int64), *batches])
    predictions, loss = _gather(order, own_predictions, own_loss, worker)
    metrics: TaskMetrics = {"loss": loss / len(predictions), "num_examples": len(predictions)}
    for name in _metric_names(task):
        metrics[name] = compute_metric(name, predictions, examples.labels, task.num_outputs)
    return metrics


def mean_metric(metrics: Mapping[str, TaskMetrics], tasks: Sequence[Task]) -> float:
    """The mean over the tasks of each one's own metric: what chooses the one checkpoint for all (section 6.1)."""
    return float(np.mean([metrics[task.name][str(task.metric)] for task in tasks]))


def _metric_names(task: Task) -> list[Metric]:
    own = cast(Metric, task.metric)  # a task that was made has one
    return [own] if own == "accuracy" or task.kind == "regression" else [own, "accuracy"]


@contextmanager
def _evaluating(model: MultiTaskModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _predict(
    model: MultiTaskModel,
    examples: LabelledTokens,
    task: Task,
    batches: Sequence[npt.NDArray[np.int64]],
    worker: Worker,
    contexts: CachedContexts | None,
) -> tuple[npt.NDArray[Any], float]:
    """Label ids, or values, of the rows of all batches one after the other, and the sum of their losses."""
    predictions = [torch.empty(0, device=worker.device)]
    losses = [torch.zeros((), device=worker.device)]
    for rows in batches:
        inputs = model_inputs(examples, rows, worker, contexts)
        labels = worker.to_device(torch.from_numpy(examples.labels[rows]))
        output = model(**inputs, task=task.name, labels=labels)
        predictions.append(output.logits[:, 0] if task.kind == "regression" else output.logits.argmax(dim=1))
        losses.append(output.loss * len(rows))
    # Read once, after the last batch: reading makes the device wait.
    return torch.cat(predictions).double().cpu().numpy(), torch.stack(losses).sum().item()


def _gather(
    order: npt.NDArray[np.int64], predictions: npt.NDArray[Any], loss: float, worker: Worker
) -> tuple[npt.NDArray[Any], float]:
    """All workers' predictions in the order of the examples, and their summed loss."""
    parts: list[Any] = [(order, predictions, loss)]
    if worker.world_size > 1:
        parts *= worker.world_size
        distributed.all_gather_object(parts, (order, predictions, loss))
    orders, all_predictions, losses = zip(*parts, strict=True)
    in_order = np.empty(sum(map(len, all_predictions)))
    in_order[np.concatenate(orders)] = np.concatenate(all_predictions)
    return in_order, sum(losses)
