"""What to look at to make a task better: each label by itself, what is taken for what, and the worst errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sklearn.metrics

from mtop_batch.data.entities.spans import Entities, count_entities
from mtop_batch.data.raw_examples import entity_names
from mtop_batch.tasks import Metric, Task
from mtop_batch.training.calibration.temperature import ScoreBin, calibration_error, score_bins
from mtop_batch.training.evaluation.evaluate import TaskPredictions
from mtop_batch.training.evaluation.metrics import indicator, is_constant, undefined

ERROR_COLUMNS = pa.schema(
    [
        ("task", pa.string()),
        ("text", pa.string()),
        ("second_text", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("score", pa.float32()),
    ]
)
"""`score` is the probability of the predicted label; of a regression the absolute error; of a multi-label task how sure
the model is of the label that it is most wrong about; of a token task how sure it is of the least sure word."""

_ALL_THE_SAME = "the same is predicted of all examples"


@dataclass(frozen=True)
class LabelScores:
    """How good a task is at one of its labels; what is counted are examples, and of a token task entities.

    Args:
        label: Its name.
        precision: Of the examples that are given it, the share that have it; NaN where none is given it.
        recall: Of the examples that have it, the share that are given it; NaN where none has it.
        f1: Of these two; NaN where no example has it and none is given it.
        support: How many examples have it.
        undefined: Why one of them is NaN; empty if none is.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    undefined: str = ""


@dataclass(frozen=True)
class LabelReport:
    """How good a task is, label by label.

    Args:
        labels: One for each label; none for a regression.
        confusion: Examples by given (rows) and predicted label; none for a multi-label task, in which a label that is
            missed is not taken for another one.
        calibration: By score, in tenths that have examples; none for a regression. Of a multi-label task each label of
            each example counts, by its probability.
        calibration_error: How far score and accuracy are apart, the mean over the examples (expected calibration
            error); None for a regression.
        undefined: Why the task's own metric is undefined on these examples; empty if it is defined.
        note: What else there is to say of it.
    """

    labels: list[LabelScores]
    confusion: list[list[int]]
    calibration: list[ScoreBin]
    calibration_error: float | None
    undefined: str
    note: str = ""


def label_report(
    task: Task, predictions: TaskPredictions, labels: npt.NDArray[np.generic], entities: Entities | None = None
) -> LabelReport:
    """The report of a task on R examples.

    Args:
        task: The task.
        predictions: What the model says.
        labels: (R,) Given label ids, or values of a regression; (R, C) those that a text has, of a multi-label task,
            and the types that it has entities of, of a token task.
        entities: Of a token task, the entities that are given.
    """
    why = undefined(cast(Metric, task.metric), labels, task.num_outputs)
    note = "" if why or not is_constant(predictions.values) else _ALL_THE_SAME
    if task.kind == "regression":
        return LabelReport([], [], [], None, why, note)
    if predictions.entities is not None and entities is not None:
        return LabelReport(_entity_scores(task, entities, predictions.entities), [], [], None, why, note)
    known = np.arange(len(task.labels))
    given, predicted = labels, predictions.values
    if task.is_multi_label:
        given, predicted = indicator(given), indicator(predicted)
    columns = sklearn.metrics.precision_recall_fscore_support(given, predicted, labels=known, zero_division=np.nan)
    scores = [
        LabelScores(label, float(precision), float(recall), float(f1), int(support), _why(precision, recall))
        for label, precision, recall, f1, support in zip(task.labels, *columns, strict=True)
    ]
    if task.is_multi_label:
        confusion, bins = [], score_bins(predictions.scores.ravel(), labels.astype(bool).ravel())
    else:
        confusion = sklearn.metrics.confusion_matrix(labels, predictions.values, labels=known).tolist()
        bins = score_bins(predictions.scores, predictions.values == labels)
    return LabelReport(scores, confusion, bins, calibration_error(bins), why, note)


def _entity_scores(task: Task, given: Entities, found: Entities) -> list[LabelScores]:
    """By type; of entities, not of texts."""
    scores = []
    for label, counts in zip(task.labels, count_entities(given, found, len(task.labels))[1:], strict=True):
        f1 = counts.f1 if counts.given or counts.found else math.nan
        why = _why(counts.precision, counts.recall)
        scores.append(LabelScores(label, counts.precision, counts.recall, f1, counts.given, why))
    return scores


def _why(precision: float, recall: float) -> str:
    """Why one of a label's scores is undefined."""
    reasons = (("no evaluation example has it", recall), ("none is given it", precision))
    return ", and ".join(reason for reason, value in reasons if np.isnan(value))


def worst_errors(
    task: Task,
    predictions: TaskPredictions,
    labels: npt.NDArray[np.generic],
    texts: Sequence[str],
    seconds: Sequence[str | None] | None,
    entities: Entities | None = None,
) -> pa.Table:
    """The examples that the model gets wrong, the surest error first: what is hard, or labelled wrongly.

    Args:
        task: The task.
        predictions: What the model says of R examples.
        labels: (R,) Given label ids, or values of a regression, of which every example counts as an error; (R, C) the
            labels that a text has, of a multi-label task: an error is a label too many or too few.
        texts: R of them.
        seconds: Their second texts, if the task has two text columns.
        entities: Of a token task, those that are given; an error is one that is missed, or is none.

    Returns:
        The columns of `ERROR_COLUMNS`.
    """
    values = predictions.values
    if task.kind == "regression":
        scores, wrong = np.abs(values - labels.astype(np.float64)), np.arange(len(values))
        given, predicted = ([f"{value:g}" for value in column] for column in (labels.astype(np.float64), values))
    elif predictions.entities is not None and entities is not None:
        pairs = [*zip(texts, seconds or [None] * len(texts), strict=True)]
        found = predictions.entities
        scores = predictions.scores
        wrong = np.array([row for row in range(len(pairs)) if entities.row(row) != found.row(row)], np.int64)
        given, predicted = (
            [entity_names(task, pair, of.row(row)) for row, pair in enumerate(pairs)] for of in (entities, found)
        )
    elif task.is_multi_label:
        differs = values != labels
        sure_of = np.where(values > 0, predictions.scores, 1 - predictions.scores)
        scores, wrong = np.where(differs, sure_of, 0).max(axis=1), np.flatnonzero(differs.any(axis=1))
        given, predicted = ([_names(task, row) for row in rows] for rows in (labels, values))
    else:
        scores, wrong = predictions.scores, np.flatnonzero(values != labels)
        given, predicted = ([task.labels[int(value)] for value in column] for column in (labels, values))
    rows = wrong[np.argsort(-scores[wrong], kind="stable")]
    return pa.table(
        {
            "task": [task.name] * len(rows),
            "text": [texts[row] for row in rows],
            "second_text": [None if seconds is None else seconds[row] for row in rows],
            "label": [given[row] for row in rows],
            "predicted": [predicted[row] for row in rows],
            "score": scores[rows].astype(np.float32),
        },
        schema=ERROR_COLUMNS,
    )


def _names(task: Task, has_label: npt.NDArray[np.generic]) -> str:
    return ", ".join(task.labels[index] for index in np.flatnonzero(has_label))
