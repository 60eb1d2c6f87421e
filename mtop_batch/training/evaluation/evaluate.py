"""How good a model is at each task, and the one number that chooses a checkpoint."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from mtop_batch.data.batches import length_sorted_batches
from mtop_batch.data.entities.spans import Entities, count_entities
from mtop_batch.data.entities.tags import find_entities
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.decisions.decide import calibrate, given_labels
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import METRICS, Metric, Task
from mtop_batch.training.cached_contexts import CachedContexts, model_inputs
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.settings import TaskData, Worker

MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TaskPredictions:
    """What a model says of R examples of a task.

    Labels are those of the task's temperature and thresholds; it abstains from none, and no rule is applied, for an
    example has labels of one task.

    Args:
        values: (R,) Label ids, or values of a regression, as floats; (R, C) 1 for the labels that a text is given, else
            0, of a multi-label task, and for the types of which a token task finds entities.
        scores: (R,) The calibrated probability of the label; NaN for a regression; (R, C) those of all labels, of a
            multi-label task; of a token task the least probability of a word's tag.
        loss: The sum of the losses.
        probabilities: (R, C) Of all labels, as the model puts them out; (R, 0) of a regression and of a token task.
        entities: Of a token task, those that it finds.
    """

    values: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    loss: float
    probabilities: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    entities: Entities | None = None


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
        The task's own metric under its name, "accuracy" for classification, all metrics of a multi-label task, "rmse"
        and "mae" for regression, "precision" and "recall" of entities for a token task, "loss", and "num_examples". A
        metric that the labels leave undefined is NaN.
    """
    predictions = task_predictions(
        model, examples, task, max_batch_tokens=max_batch_tokens, worker=worker, contexts=contexts
    )
    return task_metrics(task, predictions, examples)


def task_predictions(
    model: MultiTaskModel,
    examples: LabelledTokens,
    task: Task,
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    worker: Worker | None = None,
    contexts: CachedContexts | None = None,
) -> TaskPredictions:
    """What the model says of each example of a task; arguments as for `evaluate_task`."""
    worker = worker or Worker()
    rows = np.arange(worker.rank, len(examples), worker.world_size)
    num_windows = 1 if examples.counts is None else examples.counts[rows]
    lengths = examples.lengths[rows] + num_windows * model.num_positions([task.name])
    batches = [rows[batch] for batch in length_sorted_batches(lengths, max_batch_tokens)]
    with evaluating(model), worker.autocast():
        own = _predict(model, examples, task, batches, worker, contexts)
    order = np.concatenate([np.empty(0, np.int64), *batches])
    return _gather(order, own, worker)


def task_metrics(task: Task, predictions: TaskPredictions, examples: LabelledTokens) -> TaskMetrics:
    """The metrics of what `task_predictions` returned."""
    from mtop_batch.training.evaluation.metrics import (  # slow to import, for those who only predict
        compute_metric,
        mae,
        rmse,
    )

    num_examples = len(predictions.values)
    metrics: TaskMetrics = {"loss": predictions.loss / num_examples, "num_examples": num_examples}
    if predictions.entities is not None and examples.entities is not None:
        counts = count_entities(examples.entities, predictions.entities, len(task.labels))[0]
        f1 = counts.f1 if counts.given else math.nan
        return {**metrics, "entity_f1": f1, "precision": counts.precision, "recall": counts.recall}
    for name in _metric_names(task):
        metrics[name] = compute_metric(name, predictions.values, examples.labels, task.num_outputs)
    if task.kind == "regression":
        values = predictions.values
        metrics |= {"rmse": rmse(values, examples.labels), "mae": mae(values, examples.labels)}
    return metrics


def mean_metric(metrics: Mapping[str, TaskMetrics], tasks: Sequence[Task]) -> float:
    """The mean over the tasks of each one's own metric: what chooses the one checkpoint for all (section 6.1).

    Tasks whose metric is undefined are left out of it; it is NaN if that is so of all.
    """
    from mtop_batch.training.evaluation.metrics import mean_of_defined

    return mean_of_defined([metrics[task.name][str(task.metric)] for task in tasks])


def with_eval_budget(data: Sequence[TaskData], most: int | None, seed: int) -> list[TaskData]:
    """The same tasks with at most so many evaluation examples together, but one of each at least.

    Of tasks that have more than their share a random part is taken, as large for one as for another. What is taken of a
    task depends on how many, the seed and its name only.

    Args:
        data: The tasks.
        most: Examples of all tasks together; None for all.
        seed: Of the draws.
    """
    if most is None:
        return [*data]
    share = _equal_share([0 if item.eval is None else len(item.eval) for item in data], most)
    return [
        replace(item, eval=item.eval and item.eval.draw(share, seed, zlib.crc32(item.task.name.encode())))
        for item in data
    ]


def _equal_share(sizes: Sequence[int], most: int) -> int:
    """The largest s for which min(size, s) adds up to no more than `most` over all sizes; 1 at least.

    >>> _equal_share([2, 5, 100], 17), _equal_share([2, 5, 100], 1)
    (10, 1)
    """
    left = most
    for number, size in enumerate(ordered := sorted(sizes)):
        share = left // (len(ordered) - number)
        if share < size:
            return max(1, share)
        left -= size
    return max(1, *sizes)


def undefined_metrics(data: Sequence[TaskData]) -> dict[str, str]:
    """The tasks whose own metric is undefined on their evaluation examples, and why."""
    from mtop_batch.training.evaluation.metrics import undefined

    reasons = {
        item.task.name: undefined(cast(Metric, item.task.metric), item.eval.labels, item.task.num_outputs)
        for item in data
        if item.eval is not None
    }
    return {name: why for name, why in reasons.items() if why}


def _metric_names(task: Task) -> list[Metric]:
    own = cast(Metric, task.metric)  # a task that was made has one
    if task.is_multi_label:
        return [own, *(name for name in METRICS["multi-label"] if name != own)]
    return [own] if own == "accuracy" or task.kind == "regression" else [own, "accuracy"]


@contextmanager
def evaluating(model: MultiTaskModel) -> Iterator[None]:
    """Evaluation and inference mode; the model is left in the mode it was in."""
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
) -> TaskPredictions:
    """The same for the rows of all batches, one after the other."""
    found = [torch.empty(task.num_outputs, 0, device=worker.device, dtype=torch.float64)]
    losses = [torch.zeros((), device=worker.device)]
    entities, least = [Entities.from_rows([])], [np.empty(0, np.float32)]
    for rows in batches:
        windows = examples.windows(rows)
        inputs = model_inputs(examples, windows, worker, contexts)
        labels = worker.to_device(torch.from_numpy(examples.targets(rows, windows)))
        counts = None if examples.counts is None else worker.to_device(torch.from_numpy(examples.counts[rows]))
        output = model(**inputs, task=task.name, labels=labels, num_windows=counts)
        losses.append(output.loss * len(rows))
        if task.is_token:
            of_batch = _entities(examples, rows, output.logits)
            entities.append(of_batch[0])
            least.append(of_batch[1])
        else:
            found.append(_said(task, output.logits))
    if task.is_token:
        joined, sure = Entities.concat(entities), np.concatenate(least).astype(np.float64)
        given = joined.has_type(len(task.labels)).astype(np.float64)
        loss = torch.stack(losses).sum().item()
        return TaskPredictions(given, sure, loss, np.empty((len(sure), 0)), joined)
    # Read once, after the last batch: reading makes the device wait.
    said = torch.cat(found, dim=1).cpu().numpy().T
    return _predictions(task, said, torch.stack(losses).sum().item())


def _entities(
    examples: LabelledTokens, rows: npt.NDArray[np.int64], logits: Tensor
) -> tuple[Entities, npt.NDArray[np.float32]]:
    """What a token task finds in the examples of a batch, from (windows, T, C) logits; and how sure it is of each."""
    counts = np.ones(len(rows), np.int64) if examples.counts is None else examples.counts[rows]
    words = examples.tokens.words_of(examples.windows(rows))
    chosen, texts = words.of_texts(counts)
    of_words = logits[words.rows[chosen], words.places[chosen]].float().log_softmax(dim=-1).cpu().numpy()
    return find_entities(words.words[chosen], texts, of_words, len(rows))


def _said(task: Task, logits: Tensor) -> Tensor:
    """(C, B) The probabilities of (B, C) logits, or (1, B) values."""
    logits = logits.double()
    if task.kind == "regression":
        return logits[:, :1].T
    return (logits.sigmoid() if task.is_multi_label else logits.softmax(dim=1)).T


def _predictions(task: Task, said: npt.NDArray[np.float64], loss: float) -> TaskPredictions:
    """What (R, C) probabilities come to, or (R, 1) values."""
    if task.kind == "regression":
        return TaskPredictions(said[:, 0], np.full(len(said), np.nan), loss, said[:, :0])
    scores = calibrate(task, said).astype(np.float64)
    given = given_labels(task, said, scores)
    if task.is_multi_label:
        return TaskPredictions(given.astype(np.float64), scores, loss, said)
    labels = given.argmax(axis=1)
    return TaskPredictions(labels.astype(np.float64), scores[np.arange(len(said)), labels], loss, said)


def _gather(order: npt.NDArray[np.int64], own: TaskPredictions, worker: Worker) -> TaskPredictions:
    """All workers' predictions in the order of the examples, and their summed loss."""
    parts = [(order, own)]
    if worker.world_size > 1:
        parts *= worker.world_size
        distributed.all_gather_object(parts, (order, own))
    places = np.argsort(np.concatenate([of_worker for of_worker, _ in parts]))
    entities = [part.entities for _, part in parts if part.entities is not None]
    return TaskPredictions(
        np.concatenate([part.values for _, part in parts])[places],
        np.concatenate([part.scores for _, part in parts])[places],
        sum(part.loss for _, part in parts),
        np.concatenate([part.probabilities for _, part in parts])[places],
        Entities.concat(entities).take(places) if entities else None,
    )
