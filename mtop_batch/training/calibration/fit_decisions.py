"""What a task decides, fitted on development data, with what it reaches there.

Shapes: R examples, C labels of a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mtop_batch.decisions.decide import THRESHOLD, abstained, calibrate, given_labels
from mtop_batch.errors import TaskError
from mtop_batch.lines import listed, shown
from mtop_batch.tasks import Decision, Task
from mtop_batch.training.calibration.temperature import Calibration, before_and_after, fit_temperature, trust
from mtop_batch.training.checkpoint import TaskMetrics

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
Wish = tuple[str, float]
"""What a threshold is to reach: ("threshold", it), ("precision", share), ("recall", share) or ("metric", 0) for F1."""

_DIGITS = 6
_MOST_NAMED = 5


@dataclass(frozen=True)
class LabelDecision:
    """From where on a label is given, and what that reaches on development data.

    Args:
        label: Its name.
        threshold: The least probability.
        precision: Of the examples that are given it, the share that have it; NaN where none is given it.
        recall: Of the examples that have it, the share that are given it; NaN where none has it.
        f1: Of these two; 0 where no example has it and is given it.
        support: How many examples have it.
    """

    label: str
    threshold: float
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class FittedDecision:
    """What was fitted for a task, and on what.

    Args:
        task: With its decision.
        num_examples: Development examples.
        before: How far its scores could be trusted without a temperature.
        after: The same with it.
        wish: What its thresholds were to reach, if anything.
        labels: What they reach, where there are thresholds.
        abstained: The share of the examples that it is too unsure of.
        accuracy: Of the others, the share decided rightly; of a multi-label task, with all labels right. NaN for none.
        problem: Why the wish is not fulfilled; empty if it is. The thresholds are then those without a wish.
    """

    task: Task
    num_examples: int
    before: Calibration
    after: Calibration
    wish: Wish | None
    labels: tuple[LabelDecision, ...]
    abstained: float
    accuracy: float
    problem: str = ""

    def metrics(self) -> TaskMetrics:
        """The numbers for `metrics.json`."""
        return trust(self.before, self.after)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready but for NaN."""
        decision = self.task.decision
        return {
            "temperature": decision.temperature,
            "examples": self.num_examples,
            "wish": None if self.wish is None else {self.wish[0]: self.wish[1] or "f1"},
            "labels": [asdict(label) for label in self.labels],
            "abstain_below": decision.abstain_below,
            "abstained": self.abstained,
            "accuracy": self.accuracy,
            "rules": list(decision.rules),
            "before": asdict(self.before),
            "after": asdict(self.after),
            **({"problem": self.problem} if self.problem else {}),
        }


def fit_decision(
    task: Task, probabilities: Floats, labels: npt.NDArray[np.generic], wish: Wish | None, abstain_below: float
) -> FittedDecision:
    """Fit a task's decision; its rules stay.

    Args:
        task: A classification or a multi-label task.
        probabilities: (R, C) As the model puts them out.
        labels: (R,) Label ids, or (R, C) which labels an example has, of a multi-label task.
        wish: What the thresholds of a task with two labels, or of a multi-label task, are to reach.
        abstain_below: As `Decision.abstain_below`.
    """
    plain = replace(task, decision=Decision())
    decision = Decision(fit_temperature(plain, probabilities, labels), (), abstain_below, task.decision.rules)
    task = replace(task, decision=decision)
    calibrated = calibrate(task, probabilities)
    has_label = labels.astype(bool) if task.is_multi_label else labels[:, None] == np.arange(len(task.labels))
    about = range(len(task.labels)) if task.is_multi_label else [len(task.labels) - 1]
    problem = ""
    if wish is not None:
        found = [_threshold(wish, calibrated[:, label], has_label[:, label]) for label in about]
        problem = _problem(task, wish, list(zip(about, found, strict=True)), len(labels))
        if not problem:
            thresholds = tuple(threshold for threshold, _ in found)
            task = replace(task, decision=replace(decision, thresholds=thresholds))
    given = given_labels(task, probabilities, calibrated)
    decided = ~abstained(task, calibrated, given)
    is_right = (given == has_label).all(axis=1)
    reached = task.decision.thresholds or (THRESHOLD,) * len(about)
    return FittedDecision(
        task,
        len(labels),
        *before_and_after(task, probabilities, labels),
        wish,
        tuple(
            _reached(task.labels[label], threshold, given[:, label], has_label[:, label])
            for label, threshold in zip(about, reached, strict=True)
            if wish is not None
        ),
        float(1 - decided.mean()),
        float(is_right[decided].mean()) if decided.any() else float("nan"),
        problem,
    )


def _reached(label: str, threshold: float, given: Flags, has_label: Flags) -> LabelDecision:
    both = float((given & has_label).sum())
    num_given, support = int(given.sum()), int(has_label.sum())
    return LabelDecision(
        label,
        threshold,
        both / num_given if num_given else float("nan"),
        both / support if support else float("nan"),
        2 * both / (num_given + support) if both else 0.0,
        support,
    )


def _threshold(wish: Wish, probabilities: Floats, has_label: Flags) -> tuple[float, float | None]:
    """The threshold that fulfils a wish; and where none does, the best that one reaches.

    Args:
        wish: What it is to reach.
        probabilities: (R,) Calibrated, of a label.
        has_label: (R,) Which examples have it.
    """
    kind, share = wish
    if kind == "threshold":
        return share, None
    # Texts that are the same may differ by rounding: no threshold is to part them.
    probabilities = probabilities.round(_DIGITS)
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    # With the first k examples given the label: where k does not part examples of the same probability.
    ends = np.flatnonzero(np.append(ordered[1:] < ordered[:-1], True))
    both = np.cumsum(has_label[order])[ends].astype(float)
    num_given, support = ends + 1.0, float(has_label.sum())
    precision = both / num_given
    if kind == "metric":
        best = int(np.argmax(2 * both / (num_given + support)))
        return (_between(ordered, int(ends[best])) if support else THRESHOLD), None
    reached = precision if kind == "precision" else both / support if support else np.zeros(len(ends))
    enough = np.flatnonzero((reached >= share) & (both > 0))
    if not len(enough):
        return THRESHOLD, float(reached.max(initial=0.0))
    # The lowest threshold with that precision, the highest with that recall.
    return _between(ordered, int(ends[enough[-1 if kind == "precision" else 0]])), None


def _between(ordered: Floats, last: int) -> float:
    """The number in the middle between the last probability that is to be enough and the next one, or 0."""
    upper, lower = float(ordered[last]), float(ordered[last + 1]) if last + 1 < len(ordered) else 0.0
    return round((upper + lower) / 2, _DIGITS + 1)


def _problem(task: Task, wish: Wish, found: list[tuple[int, tuple[float, float | None]]], num_examples: int) -> str:
    """Why the wish is not fulfilled; empty if it is."""
    kind, share = wish
    short = [(label, best) for label, (_, best) in found if best is not None]
    if not short:
        return ""
    some = [f"{shown(task.labels[label])!r} {best:.3f}" for label, best in short[:_MOST_NAMED]]
    some += [f"and {len(short) - _MOST_NAMED} more labels"] if len(short) > _MOST_NAMED else []
    return (
        f"task {task.name!r}: a {kind} of {share:g} cannot be reached by any threshold on its {num_examples:,} "
        f"evaluation examples; the best are: {listed(some)}; ask for less, or give it more evaluation examples"
    )


def decision_reports(fitted: Mapping[str, FittedDecision]) -> dict[str, dict[str, Any]]:
    """By task, what `decisions.json` of a bundle says."""
    return {name: of.to_dict() for name, of in fitted.items()}


def with_decision_metrics(
    metrics: Mapping[str, TaskMetrics], fitted: Mapping[str, FittedDecision]
) -> dict[str, TaskMetrics]:
    """Metrics of tasks, and how far the scores of those that were fitted can be trusted."""
    return {name: {**of, **(fitted[name].metrics() if name in fitted else {})} for name, of in metrics.items()}


def check_fitted(fitted: Iterable[FittedDecision]) -> None:
    """Refuse wishes that are not fulfilled.

    Raises:
        TaskError: Says which, and what can be reached.
    """
    problems = [of.problem for of in fitted if of.problem]
    if problems:
        raise TaskError("; ".join(problems))
