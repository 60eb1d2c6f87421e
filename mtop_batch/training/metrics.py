"""The metrics that judge tasks, and the errors shown beside them: those of scikit-learn and SciPy.

All take predictions and labels of shape (rows,) and return a float; a larger metric is better. One that is not defined,
because predictions or labels are constant, is 0 where a checkpoint is chosen: who says the same of every text has
learned nothing. `undefined` says so to people.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics
from scipy import stats

from mtop_batch.tasks import Metric

Values = npt.NDArray[Any]


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
    if _is_constant(predictions) or _is_constant(labels):
        return 0.0
    return float(stats.pearsonr(predictions.astype(np.float64), labels.astype(np.float64)).statistic)


def spearman(predictions: Values, labels: Values) -> float:
    """Spearman rank correlation; ties share the mean of their ranks."""
    if _is_constant(predictions) or _is_constant(labels):
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
    """
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


def undefined(name: Metric, predictions: Values, labels: Values) -> str:
    """Why a metric means nothing here; empty if it does mean something.

    >>> undefined("matthews", np.array([0, 1]), np.array([1, 1]))
    'all examples have the same label'
    """
    if name in ("accuracy", "subset_accuracy"):
        return ""
    if name in ("micro_f1", "macro_f1"):
        return "" if labels.any() else "no example has a label"
    if name == "f1":
        return "" if labels.any() or predictions.any() else "no example has, and none is given, the second label"
    if _is_constant(labels):
        return "all examples have the same label"
    return "the same is predicted of all examples" if _is_constant(predictions) else ""


def _is_constant(values: Values) -> bool:
    return bool(np.ptp(values) == 0)
