"""What is decided of a text, from the probabilities of a task's labels. Pure, so that it can be done again at any time.

Shapes: R texts, C labels of a task.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mtop_batch.tasks import Task

THRESHOLD = 0.5
"""The least probability of a label that a text of a multi-label task is given."""


def decide(task: Task, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """(R, C) Which labels each text is given: the likeliest, or of a multi-label task all that are likely.

    Args:
        task: A classification or a multi-label task.
        probabilities: (R, C) Of its labels; NaN where there are none, and then no label is given.

    >>> decide(Task("t", "multi-label", ("a", "b", "c")), np.array([[0.5, 0.9, 0.1], [0.4, 0.4, 0.2]])).tolist()
    [[True, True, False], [False, False, False]]
    >>> decide(Task("t", labels=("a", "b", "c")), np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4]])).tolist()
    [[True, False, False], [False, True, False]]
    """
    if task.is_multi_label:
        return probabilities >= THRESHOLD
    given = np.zeros(probabilities.shape, bool)
    np.put_along_axis(given, probabilities.argmax(axis=1)[:, None], True, axis=1)
    return given & ~np.isnan(probabilities)
