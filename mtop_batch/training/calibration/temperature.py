"""Probabilities that can be trusted: the temperature of a task, and how far scores are from what comes true.

Guo et al., "On Calibration of Modern Neural Networks" (2017): logits are divided by one number, fitted on examples that
nothing was learned from. Which label is likeliest does not change, and neither does any metric of labels.

Shapes: R examples, C labels of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from mtop_batch.decisions.decide import calibrate, given_labels
from mtop_batch.tasks import Decision, Task
from mtop_batch.training.checkpoint import TaskMetrics

Floats = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.generic]

# The logarithm of a temperature: at most this far from 0, and likely to be near, which few examples do not outweigh.
_MAX_LOG, _PRIOR_STD = 2.5, 1.0
_LEAST = 1e-12


@dataclass(frozen=True)
class ScoreBin:
    """Examples whose scores are alike.

    Args:
        examples: How many.
        score: The mean of their scores, which are probabilities of the predicted label.
        accuracy: The share of them whose predicted label is right; as large as `score` if scores can be trusted.
    """

    examples: int
    score: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far the scores of a task can be trusted.

    Args:
        error: The expected calibration error: how far score and accuracy are apart, the mean over the examples.
        brier: The Brier score: the mean squared distance between probability and outcome; of more than two labels,
            of which one is right, their sum.
        bins: By score, in tenths that have examples.
    """

    error: float
    brier: float
    bins: tuple[ScoreBin, ...]


def fit_temperature(task: Task, probabilities: Floats, labels: Labels) -> float:
    """The temperature at which a task's labels are likeliest.

    Args:
        task: A classification or a multi-label task.
        probabilities: (R, C) As the model puts them out.
        labels: (R,) Label ids, or (R, C) which labels an example has, of a multi-label task.
    """

    def loss(log_temperature: float) -> float:
        found = calibrate(_at(task, float(np.exp(log_temperature))), probabilities)
        return float(-np.log(np.maximum(_of_outcome(task, found, labels), _LEAST)).sum()) + _prior(log_temperature)

    best = minimize_scalar(loss, bounds=(-_MAX_LOG, _MAX_LOG), method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(best.x)), 4)


def calibration(task: Task, probabilities: Floats, labels: Labels) -> Calibration:
    """How far the probabilities of a task's labels can be trusted.

    Args:
        task: A classification or a multi-label task, with what decides which label is given.
        probabilities: (R, C) As the model puts them out; the task's temperature is applied.
        labels: As for `fit_temperature`.
    """
    found = calibrate(task, probabilities)
    if task.is_multi_label:
        bins = score_bins(found.ravel(), labels.astype(bool).ravel())
        return Calibration(calibration_error(bins), float(((found - labels.astype(float)) ** 2).mean()), tuple(bins))
    given = given_labels(task, probabilities, found)
    rows = np.arange(len(labels))
    bins = score_bins(found[given], given[rows, labels.astype(np.int64)])
    outcome = np.zeros(found.shape)
    outcome[rows, labels.astype(np.int64)] = 1
    brier = float(((found - outcome) ** 2).sum(axis=1).mean())
    return Calibration(calibration_error(bins), brier / 2 if task.is_binary else brier, tuple(bins))


def before_and_after(task: Task, probabilities: Floats, labels: Labels) -> tuple[Calibration, Calibration]:
    """How far probabilities can be trusted without the task's temperature, and with it; thresholds aside."""
    return (
        calibration(_at(task, 1.0), probabilities, labels),
        calibration(_at(task, task.decision.temperature), probabilities, labels),
    )


def trust(before: Calibration, after: Calibration) -> TaskMetrics:
    """The numbers for `metrics.json`."""
    return {"ece_before": before.error, "ece": after.error, "brier": after.brier}


def score_bins(scores: Floats, right: npt.NDArray[np.bool_]) -> list[ScoreBin]:
    """Scores and outcomes by tenths of the score."""
    tenths = np.clip((scores * 10).astype(np.int64), 0, 9)
    in_bins = [tenths == tenth for tenth in np.unique(tenths)]
    return [ScoreBin(int(rows.sum()), float(scores[rows].mean()), float(right[rows].mean())) for rows in in_bins]


def calibration_error(bins: Sequence[ScoreBin]) -> float:
    """How far score and accuracy are apart, the mean over the examples (expected calibration error)."""
    return sum(of.examples * abs(of.score - of.accuracy) for of in bins) / sum(of.examples for of in bins)


def _at(task: Task, temperature: float) -> Task:
    return replace(task, decision=Decision(temperature=temperature))


def _of_outcome(task: Task, probabilities: Floats, labels: Labels) -> Floats:
    """The probability of what is so: of the label, or of each label's being there or not."""
    if task.is_multi_label:
        return np.where(labels.astype(bool), probabilities, 1 - probabilities)
    return np.asarray(probabilities[np.arange(len(labels)), labels.astype(np.int64)])


def _prior(log_temperature: float) -> float:
    return (log_temperature / _PRIOR_STD) ** 2 / 2
