"""What is decided of a text, from the probabilities of a task's labels. Pure, so that it can be done again at any time.

Whoever labels texts and whoever computes labels from stored probabilities call `decide` with the same numbers, so both
get the same labels and scores, to the last bit. Of a task with two labels one number is enough: what the likelier one
lacks to 1 is the probability of the other.

Shapes: R texts, C labels of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mtop_batch.decisions.rules import RuleGroup, rows_of, rule_groups
from mtop_batch.tasks import Task

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]

THRESHOLD = 0.5
"""The least probability of a label that a text of a multi-label task is given, where nothing else is said."""
# Logarithms need something above 0: the least float32, and half of what float32 can tell from 1.
_LEAST, _LEAST_BELOW_1 = np.float32(2**-126), np.float32(2**-25)


@dataclass(frozen=True)
class Decided:
    """What is decided of R texts for one task.

    Args:
        probabilities: (R, C) Calibrated; NaN where there are none.
        given: (R, C) Which labels each text is given, also where the task abstains.
        abstained: (R,) Where that is too unsure to be a label.
        corrected: (R,) Where a rule has changed it.
    """

    probabilities: Floats
    given: Flags
    abstained: Flags
    corrected: Flags


def decide(tasks: Sequence[Task], probabilities: Mapping[str, Floats]) -> dict[str, Decided]:
    """What is decided of each text.

    Args:
        tasks: Classifications and multi-label tasks, with all that rules name.
        probabilities: (R, C) By task, as the model puts them out; NaN where there are none, and then no label is given.

    Raises:
        TaskError: A rule names a task that is not there.

    >>> topics = Task("t", "multi-label", ("a", "b", "c"))
    >>> decide([topics], {"t": np.array([[0.5, 0.9, 0.1], [0.4, 0.4, 0.2]])})["t"].given.tolist()
    [[True, True, False], [False, False, False]]
    """
    calibrated = {task.name: calibrate(task, probabilities[task.name]) for task in tasks}
    given = {task.name: given_labels(task, probabilities[task.name], calibrated[task.name]) for task in tasks}
    corrected = {name: np.zeros(len(flags), bool) for name, flags in given.items()}
    for group in _groups(tuple(task for task in tasks if task.decision.rules)):
        corrected |= _correct(group, calibrated, given)
    return {
        task.name: Decided(
            calibrated[task.name],
            given[task.name],
            abstained(task, calibrated[task.name], given[task.name]),
            corrected[task.name],
        )
        for task in tasks
    }


def both_of(last: Floats) -> Floats:
    """(R, 2) The probabilities of two labels from (R,) that of the last one.

    >>> both_of(np.array([0.25, 1.0], np.float32)).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    return np.stack([1 - last, last], axis=1)


def last_of(label_ids: npt.NDArray[np.integer[Any]], scores: Floats) -> Floats:
    """(R,) The probability of the last of two labels, from the likelier one and its probability; `both_of` undone."""
    return np.where(label_ids == 1, scores, 1 - scores)


def calibrate(task: Task, probabilities: Floats) -> Floats:
    """(R, C) The probabilities that logits divided by the task's temperature give.

    >>> from mtop_batch.tasks import Decision
    >>> unsure = Task("t", labels=("no", "yes"), decision=Decision(temperature=2.0))
    >>> calibrate(unsure, np.array([[0.1, 0.9]], np.float32)).round(3).tolist()
    [[0.25, 0.75]]
    """
    temperature = np.float32(task.decision.temperature)
    if temperature == 1:
        return probabilities
    if task.is_binary:
        lower, upper = np.maximum(probabilities.min(axis=1), _LEAST_BELOW_1), probabilities.max(axis=1)
        likelier = 1 / (1 + np.exp((np.log(lower) - np.log(upper)) / temperature))
        return both_of(np.where(probabilities[:, 1] > probabilities[:, 0], likelier, 1 - likelier))
    logits = np.log(np.maximum(probabilities, _LEAST))
    if task.is_multi_label:
        logits -= np.log(np.maximum(1 - probabilities, _LEAST_BELOW_1))
        with np.errstate(over="ignore"):  # then it is 0
            odds = np.exp(-logits / temperature)
        return np.asarray(1 / (1 + odds))
    parts = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    return np.asarray(parts / parts.sum(axis=1, keepdims=True))


def given_labels(task: Task, probabilities: Floats, calibrated: Floats | None = None) -> Flags:
    """(R, C) Which labels each text is given, rules and abstention aside.

    The likeliest one; of two labels the last one from its threshold on; of a multi-label task all from theirs on. A
    temperature alone changes none of them, not even where rounding would.

    Args:
        task: The task.
        probabilities: (R, C) As the model puts them out.
        calibrated: (R, C) What `calibrate` makes of them, if that is known.

    >>> given_labels(Task("t", labels=("a", "b", "c")), np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4]])).tolist()
    [[True, False, False], [False, True, False]]
    """
    if not task.decision.thresholds:
        if task.is_multi_label:
            return probabilities >= THRESHOLD
        given = np.zeros(probabilities.shape, bool)
        np.put_along_axis(given, probabilities.argmax(axis=1)[:, None], True, axis=1)
        return given & ~np.isnan(probabilities)
    if calibrated is None:
        calibrated = calibrate(task, probabilities)
    thresholds = np.array(task.decision.thresholds, np.float64)  # an array: float32 is compared as it is
    if task.is_multi_label:
        return calibrated >= thresholds
    is_last = calibrated[:, 1:] >= thresholds
    return np.concatenate([~is_last, is_last], axis=1) & ~np.isnan(calibrated)


def abstained(task: Task, probabilities: Floats, given: Flags) -> Flags:
    """(R,) Where the probability of what is decided is less than the task asks for.

    Of a multi-label task that is the least over its labels, of those given and of those not given.
    """
    if not task.decision.abstain_below:
        return np.zeros(len(given), bool)
    if task.is_multi_label:
        sure = np.where(given, probabilities, 1 - probabilities).min(axis=1)
    else:
        sure = np.where(given, probabilities, 0).max(axis=1)
    return np.asarray(sure < np.float64(task.decision.abstain_below)) & ~np.isnan(probabilities[:, 0])


@lru_cache(maxsize=16)
def _groups(tasks: tuple[Task, ...]) -> tuple[RuleGroup, ...]:
    return tuple(rule_groups(tasks))


def _correct(group: RuleGroup, probabilities: Mapping[str, Floats], given: Mapping[str, Flags]) -> dict[str, Flags]:
    """Change what is given where a rule does not hold; by task, where it changed."""
    rows = np.flatnonzero(group.broken(given) & ~np.isnan(probabilities[group.tasks[0].name][:, 0]))
    changed = {task.name: np.zeros(len(given[task.name]), bool) for task in group.tasks}
    if len(rows):
        best = group.likeliest(
            rows_of({task.name: probabilities[task.name] for task in group.tasks}, rows),
            rows_of({task.name: given[task.name] for task in group.tasks}, rows),
        )
        for task in group.tasks:
            mine = given[task.name]
            changed[task.name][rows] = (mine[rows] != best[task.name]).any(axis=1)
            mine[rows] = best[task.name]
    return changed
