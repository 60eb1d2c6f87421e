"""The metrics that judge tasks, and the errors shown beside them: those of scikit-learn and SciPy.

All take predictions and labels of shape (rows,) and return a float; a larger metric is better. One that labels leave
undefined, whatever is predicted, is NaN, and `undefined` says why. One that is undefined only because the same is
predicted of every text is 0: who says so has learned nothing, and must not be chosen for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics
from scipy import stats

from mtop_batch.tasks import Metric

Values = npt.NDArray[Any]

_ONE_LABEL = "only one label in the evaluation data"


def accuracy(predictions: Values, labels: Values) -> float:
    """The share of rows whose predicted label is right."""
    return float(sklearn.metrics.accuracy_score(labels, predictions))


def f1(predictions: Values, labels: Values, num_labels: int = 2) -> float:
    """F1: of the second label if there are two; else the mean over the labels (macro).

    Labels that neither occur nor are predicted are left out of the mean.
    """
    average = "binary" if num_labels == 2 else "macro"
    wanted = [0, 1] if num_labels == 2 else np.union1d(predictions, labels)
    return float(sklearn.metrics.f1_score(labels, predictions, labels=wanted, average=average, zero_division=0))


def matthews(predictions: Values, labels: Values) -> float:
    """Matthews correlation; for more than two labels its generalisation R_K (Gorodkin, 2004)."""
    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


def micro_f1(predictions: Values, labels: Values) -> float:
    """F1 of all labels of all rows of a multi-label task, counted together; both are (rows, labels)."""
    given, predicted = indicator(labels), indicator(predictions)
    return float(sklearn.metrics.f1_score(given, predicted, average="micro", zero_division=0))


def macro_f1(predictions: Values, labels: Values) -> float:
    """The mean over the labels of a multi-label task of each one's F1; both are (rows, labels).

    Labels that neither occur nor are predicted are left out of the mean.
    """
    wanted = np.flatnonzero(labels.any(axis=0) | predictions.any(axis=0))
    if not len(wanted):
        return 0.0
    given, predicted = indicator(labels), indicator(predictions)
    return float(sklearn.metrics.f1_score(given, predicted, labels=wanted, average="macro", zero_division=0))


def subset_accuracy(predictions: Values, labels: Values) -> float:
    """The share of rows of a multi-label task with all of their labels, and no others; both are (rows, labels)."""
    return float(sklearn.metrics.accuracy_score(indicator(labels), indicator(predictions)))


def indicator(has_label: Values) -> Values:
    """Which labels rows have, as scikit-learn takes it: one label alone it would take for one of two classes."""
    return has_label if has_label.shape[1] > 1 else np.column_stack([has_label, np.zeros_like(has_label)])


def pearson(predictions: Values, labels: Values) -> float:
    """Pearson correlation."""
    if is_constant(predictions):
        return 0.0
    return float(stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def spearman(predictions: Values, labels: Values) -> float:
    """Spearman rank correlation; ties share the mean of their ranks."""
    if is_constant(predictions):
        return 0.0
    return float(stats.spearmanr(predictions, labels).statistic)


def pearson_spearman(predictions: Values, labels: Values) -> float:
    """The mean of Pearson's and Spearman's correlations (STS-B in the paper)."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def rmse(predictions: Values, labels: Values) -> float:
    """The root of the mean squared error, in the unit of the labels: what a correlation does not show."""
    return float(sklearn.metrics.root_mean_squared_error(labels, predictions))


def mae(predictions: Values, labels: Values) -> float:
    """The mean absolute error, in the unit of the labels."""
    return float(sklearn.metrics.mean_absolute_error(labels, predictions))


def compute_metric(name: Metric, predictions: Values, labels: Values, num_labels: int = 2) -> float:
    """The metric of that name.

    Args:
        name: One of `mtop_batch.tasks.METRICS`.
        predictions: Label ids, or values for regression (rows,), at least one; which labels a row has, of a multi-label
            task (rows, labels).
        labels: The same for the truth.
        num_labels: How many labels the task has; of use to "f1".

    Returns:
        Its value; NaN if it is `undefined`.
    """
    if undefined(name, labels, num_labels):
        return math.nan
    match name:
        case "accuracy":
            return accuracy(predictions, labels)
        case "f1":
            return f1(predictions, labels, num_labels)
        case "matthews":
            return matthews(predictions, labels)
        case "micro_f1":
            return micro_f1(predictions, labels)
        case "macro_f1":
            return macro_f1(predictions, labels)
        case "subset_accuracy":
            return subset_accuracy(predictions, labels)
        case "pearson":
            return pearson(predictions, labels)
        case "spearman":
            return spearman(predictions, labels)
        case "pearson_spearman":
            return pearson_spearman(predictions, labels)
        case "entity_f1":
            raise ValueError("entities are counted by `count_entities`, and not as labels of texts")


def undefined(name: Metric, labels: Values, num_labels: int = 2) -> str:
    """Why a metric is undefined on these labels, whatever is predicted; empty if it is not.

    >>> undefined("matthews", np.array([1, 1])), undefined("accuracy", np.array([1, 1]))
    ('only one label in the evaluation data', '')
    """
    if name in ("accuracy", "subset_accuracy"):
        return ""
    if name == "entity_f1":
        return "" if labels.any() else "no entity in the evaluation data"
    if name in ("micro_f1", "macro_f1"):
        return "" if labels.any() else "no label in the evaluation data"
    if not is_constant(labels):
        return ""
    if name == "f1":  # of two labels it is that of the second; of more, the mean of those that occur
        return "" if num_labels > 2 or labels[0] == 1 else _ONE_LABEL
    return _ONE_LABEL if name == "matthews" else "only one value in the evaluation data"


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of those that are defined; NaN if none is.

    >>> mean_of_defined([0.5, float("nan"), 1.0])
    0.75
    """
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def is_constant(values: Values) -> bool:
    """Whether all are the same."""
    return bool((values == values[0]).all())
