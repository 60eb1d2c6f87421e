"""The three ways of GradTS to choose auxiliary tasks from correlations (Ma et al., 2021).

threshold     the tasks whose correlation with the primary one is above a threshold
trial         the most correlated task, the two most correlated ones, ...: what does best on evaluation examples
fine-grained  of the tasks that trial found, the examples whose own correlation is above a threshold
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.selection.correlation import example_correlations
from mtop_batch.selection.importance import FloatArray
from mtop_batch.tasks import Task

TASK_THRESHOLD = 0.47
EXAMPLE_THRESHOLD = 0.62
"""Those of the authors' code, for the 144 heads of bert-base."""


def above_threshold(correlations: Mapping[str, float], threshold: float) -> list[str]:
    """The tasks that correlate with the primary one by more, the most correlated first.

    >>> above_threshold({"a": 0.2, "b": 0.6, "c": 0.5}, 0.47)
    ['b', 'c']
    """
    return [name for name in ranked(correlations) if correlations[name] > threshold]


def ranked(correlations: Mapping[str, float]) -> list[str]:
    """The tasks by their correlation with the primary one, the highest first."""
    return sorted(correlations, key=lambda name: (-correlations[name], name))


def trial_sets(correlations: Mapping[str, float], most: int | None = None) -> list[tuple[str, ...]]:
    """The sets of auxiliary tasks to try: none, and so many of the most correlated ones.

    >>> trial_sets({"a": 0.2, "b": 0.6})
    [(), ('b',), ('b', 'a')]
    """
    names = ranked(correlations)[:most]
    return [tuple(names[:count]) for count in range(len(names) + 1)]


def best(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equal ones; one that is undefined counts least."""
    known = [-math.inf if math.isnan(score) else score for score in scores]
    return known.index(max(known))


def similar_rows(gradients: FloatArray, primary: FloatArray, threshold: float) -> npt.NDArray[np.int64]:
    """The rows of a task's examples whose own importance correlates with the primary task's by more."""
    return np.flatnonzero(example_correlations(gradients, primary) > threshold)


def can_be_learned(task: Task, examples: LabelledTokens, rows: npt.NDArray[np.integer]) -> bool:
    """Whether these examples are some, and have every label that all examples have: a head needs them."""
    if not len(rows):
        return False
    if task.is_multi_label or task.is_token:
        return bool((examples.labels[rows].any(axis=0) >= examples.labels.any(axis=0)).all())
    return task.kind == "regression" or len(np.unique(examples.labels[rows])) == len(np.unique(examples.labels))
