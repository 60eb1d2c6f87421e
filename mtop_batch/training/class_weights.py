"""Class weights: what an example of each label counts in the loss of its task, where some labels are rare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from mtop_batch.data.label_values import Labels
from mtop_batch.tasks import Task
from mtop_batch.training.settings import ClassWeights


def class_weights(
    task: Task, wanted: Literal["balanced"] | Mapping[str, float] | None, labels: Labels
) -> ClassWeights | None:
    """The weights of a task's labels; of a classification their mean over the training examples is 1, so that the loss
    keeps its scale.

    Args:
        task: One with labels, if weights are wanted.
        wanted: "balanced" for weights in inverse proportion to the examples of each label, as in scikit-learn; or the
            weights of some labels relative to the others, which have 1; None for no weights.
        labels: (R,) Label ids of the training examples; every label has some. (R, C) of a multi-label task, in which a
            weight is that of an example with the label beside one without it; "balanced" has both kinds count alike.

    >>> class_weights(Task("t", labels=("no", "yes")), {"yes": 5.0}, np.array([0, 0, 0, 1])).tolist()
    [0.5, 2.5]
    """
    if wanted is None:
        return None
    if task.is_multi_label:
        having = labels.sum(axis=0)
        ratio = np.maximum(len(labels) - having, 1) / having
        given = ratio if wanted == "balanced" else np.array([wanted.get(label, 1.0) for label in task.labels])
        return given.astype(np.float32)
    counts = np.bincount(labels.astype(np.int64), minlength=task.num_outputs)
    relative = 1 / counts if wanted == "balanced" else np.array([wanted.get(label, 1.0) for label in task.labels])
    return (relative * counts.sum() / (relative * counts).sum()).astype(np.float32)
