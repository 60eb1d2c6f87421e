"""The metrics that judge tasks, in numpy.

All take predictions and labels of shape (rows,) and return a float, larger being better. A correlation that is
not defined, because predictions or labels are constant, is 0: who says the same of every text has learned nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mtop_batch.tasks import Metric

Values = npt.NDArray[Any]


def accuracy(predictions: Values, labels: Values) -> float:
    """The share of rows whose predicted label is right."""
    return float(np.mean(predictions == labels))


def f1(predictions: Values, labels: Values, num_labels: int = 2) -> float:
    """F1: of the second label if there are two; else the mean over the labels (macro).

    Labels that neither occur nor are predicted are left out of the mean.
    """
    confusion = _confusion(predictions, labels, num_labels)
    hits = np.diagonal(confusion)
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    scores = 2 * hits / np.maximum(sizes, 1)
    return float(scores[1] if num_labels == 2 else scores[sizes > 0].mean())


def matthews(predictions: Values, labels: Values, num_labels: int = 2) -> float:
    """Matthews correlation; for more than two labels its generalisation R_K (Gorodkin, 2004)."""
    confusion = _confusion(predictions, labels, num_labels).astype(np.float64)
    total, hits = confusion.sum(), np.trace(confusion)
    true, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    scale = np.sqrt((total**2 - true @ true) * (total**2 - predicted @ predicted))
    return float((hits * total - true @ predicted) / scale) if scale > 0 else 0.0


def pearson(predictions: Values, labels: Values) -> float:
    """Pearson correlation."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    first = predictions.astype(np.float64) - predictions.mean(dtype=np.float64)
    second = labels.astype(np.float64) - labels.mean(dtype=np.float64)
    return float((first / np.linalg.norm(first)) @ (second / np.linalg.norm(second)))


def spearman(predictions: Values, labels: Values) -> float:
    """Spearman rank correlation; ties share the mean of their ranks."""
    return pearson(_ranks(predictions), _ranks(labels))


def pearson_spearman(predictions: Values, labels: Values) -> float:
    """The mean of Pearson's and Spearman's correlations (STS-B in the paper)."""
    return (pearson(predictions, labels) + spearman(predictions, labels)) / 2


def compute_metric(name: Metric, predictions: Values, labels: Values, num_labels: int = 2) -> float:
    """The metric of that name.

    Args:
        name: One of `mtop_batch.tasks.METRICS`.
        predictions: Label ids, or values for regression (rows,), at least one.
        labels: The same for the truth (rows,).
        num_labels: How many labels the task has; of use to "f1" and "matthews".
    """
    match name:
        case "accuracy":
            return accuracy(predictions, labels)
        case "f1":
            return f1(predictions, labels, num_labels)
        case "matthews":
            return matthews(predictions, labels, num_labels)
        case "pearson":
            return pearson(predictions, labels)
        case "spearman":
            return spearman(predictions, labels)
        case "pearson_spearman":
            return pearson_spearman(predictions, labels)


def _confusion(predictions: Values, labels: Values, num_labels: int) -> Values:
    """Row counts by true and predicted label (num_labels, num_labels)."""
    pairs = labels.astype(np.int64) * num_labels + predictions.astype(np.int64)
    return np.bincount(pairs, minlength=num_labels**2).reshape(num_labels, num_labels)


def _ranks(values: Values) -> Values:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    return (last_ranks - (counts - 1) / 2)[group]
