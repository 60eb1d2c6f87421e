"""Choose the auxiliary tasks of a primary one: GradTS in three ways, or AUTOSEM."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from mtop_batch.errors import ConfigError
from mtop_batch.lines import counted, listed
from mtop_batch.selection import autosem, gradts
from mtop_batch.selection.correlation import Correlations, task_correlations
from mtop_batch.selection.importance import FloatArray, importance
from mtop_batch.selection.jobs import Job, Jobs
from mtop_batch.selection.records import Record
from mtop_batch.tasks import select_tasks

Method = Literal["threshold", "trial", "fine-grained", "autosem"]
METHODS: tuple[Method, ...] = get_args(Method)
Run = Callable[[Sequence[Job]], Sequence[Record]]
"""Gives the record of each job; the caller decides where jobs run, and which of them are known."""


@dataclass(frozen=True)
class SelectOptions:
    """How to choose.

    Args:
        method: One of `METHODS`.
        threshold: Correlations above it count: those of tasks for "threshold", those of examples for "fine-grained";
            None for the paper's.
        most: "trial" and "fine-grained" try at most so many auxiliary tasks; None for all.

    Raises:
        ConfigError: A value is outside what is allowed.
    """

    method: Method = "trial"
    threshold: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"--method {self.method!r} is not a method; allowed: {', '.join(METHODS)}")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ConfigError(f"--threshold {self.threshold} is no correlation; give a number from -1 to 1")


@dataclass(frozen=True)
class Heads:
    """What measuring the tasks alone has shown.

    Args:
        names: Of N tasks.
        importance: (L, H) of each.
        correlations: (N, N)
        gradients: (R, L, H) of each task's examples.
        scores: Each task's own metric, trained alone.
    """

    names: tuple[str, ...]
    importance: tuple[FloatArray, ...]
    correlations: Correlations
    gradients: tuple[FloatArray, ...]
    scores: tuple[float, ...]

    def with_(self, primary: str) -> dict[str, float]:
        """The correlation of each other task with a primary one."""
        row = self.correlations[self.names.index(primary)]
        return {name: float(value) for name, value in zip(self.names, row, strict=True) if name != primary}


@dataclass(frozen=True)
class Tried:
    """A training of the primary task with others, and what came of it."""

    auxiliary: tuple[str, ...]
    ratio: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Selection:
    """What was chosen, and why.

    Args:
        primary: The task that is to be helped.
        method: How its auxiliary tasks were chosen.
        auxiliary: These.
        ratio: How often steps take the primary task, and each of the others; empty to go by their sizes.
        rows: Auxiliary task -> which of its training examples; empty for all.
        heads: What was measured; None for AUTOSEM.
        utilities: Task -> how useful the bandit found it.
        tried: Trainings with auxiliary tasks, in their order.
        notes: What a reader should know.
        num_steps: Training steps that the selection takes where nothing is known yet.
        seconds: The same as time, one training after the other.
    """

    primary: str
    method: Method
    auxiliary: tuple[str, ...]
    ratio: tuple[int, ...] = ()
    rows: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    heads: Heads | None = None
    utilities: dict[str, float] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    notes: tuple[str, ...] = ()
    num_steps: int = 0
    seconds: float = 0.0


def check_primary(primary: str, names: Sequence[str]) -> None:
    """Refuse a task that is not there, or has no others beside it.

    Raises:
        ConfigError, TaskError: Says so.
    """
    select_tasks([primary], names)
    if len(names) < 2:
        raise ConfigError(f"{primary!r} is the only task, so there is none to help it; give the configuration others")


def measure(jobs: Jobs, run: Run, names: Sequence[str] | None = None) -> Heads:
    """Train tasks alone, measure their heads, and correlate.

    Args:
        jobs: Of the configuration.
        run: Runs the trainings.
        names: The tasks; None for all.

    Raises:
        MtopError: As `run`.
    """
    names = jobs.names if names is None else names
    records = list(run([jobs.measure(name) for name in names]))
    matrices = [importance(record.gradients) for record in records]
    return Heads(
        names=tuple(names),
        importance=tuple(matrices),
        correlations=task_correlations(matrices),
        gradients=tuple(record.gradients for record in records),
        scores=tuple(record.score for record in records),
    )


def select(jobs: Jobs, primary: str, options: SelectOptions, run: Run) -> Selection:
    """Choose auxiliary tasks.

    Args:
        jobs: Of the configuration with all tasks.
        primary: The task that is to be helped.
        options: How to choose.
        run: Runs the trainings that this asks for.

    Raises:
        MtopError: There is no such task or none beside it, or a training cannot work.
    """
    check_primary(primary, jobs.names)
    started, used = time.monotonic(), list[Record]()

    def counting(wanted: Sequence[Job]) -> Sequence[Record]:
        nonlocal started
        waited = time.monotonic()
        records = run(wanted)
        used.extend(records)
        started += time.monotonic() - waited  # what trainings take is in their records
        return records

    chosen = {"threshold": _threshold, "trial": _trial, "fine-grained": _fine_grained, "autosem": _autosem}
    selection = chosen[options.method](jobs, primary, options, counting)
    own = time.monotonic() - started
    return replace(
        selection,
        num_steps=sum(record.num_steps for record in used),
        seconds=sum(record.seconds for record in used) + own,
    )


def _threshold(jobs: Jobs, primary: str, options: SelectOptions, run: Run) -> Selection:
    heads = measure(jobs, run)
    limit = gradts.TASK_THRESHOLD if options.threshold is None else options.threshold
    correlations = heads.with_(primary)
    names = gradts.above_threshold(correlations, limit)
    notes = []
    if not names:
        closest = gradts.ranked(correlations)[0]
        notes.append(
            f"no task correlates with {primary} by more than {limit:g}; the closest is {closest} with "
            f"{correlations[closest]:.2f}: lower --threshold, or use --method trial"
        )
    return Selection(primary, options.method, tuple(names), heads=heads, notes=tuple(notes))


def _trial(jobs: Jobs, primary: str, options: SelectOptions, run: Run) -> Selection:
    heads = measure(jobs, run)
    sets = gradts.trial_sets(heads.with_(primary), options.most)
    records = run([jobs.train(primary, names) for names in sets])
    scores = [record.score for record in records]
    tried = tuple(Tried(names, (), score) for names, score in zip(sets, scores, strict=True))
    names = sets[gradts.best(scores)]
    notes = () if names else (f"{primary} does best on its own: no set that was tried helps it",)
    return Selection(primary, options.method, names, heads=heads, tried=tried, notes=notes)


def _fine_grained(jobs: Jobs, primary: str, options: SelectOptions, run: Run) -> Selection:
    found_by_trial = _trial(jobs, primary, options, run)
    heads = found_by_trial.heads
    if heads is None:
        raise ValueError("a trial measures heads")
    limit = gradts.EXAMPLE_THRESHOLD if options.threshold is None else options.threshold
    own = heads.importance[heads.names.index(primary)]
    rows, notes = {}, []
    for name in found_by_trial.auxiliary:
        item = jobs.data[name]
        found = gradts.similar_rows(heads.gradients[heads.names.index(name)], own, limit)
        if gradts.can_be_learned(item.task, item.train, found):
            rows[name] = found
        else:
            notes.append(
                f"{name} is left out: {counted(len(found), 'example')} of it correlate by more than {limit:g}, too few "
                "for all its labels; lower --threshold"
            )
    return replace(found_by_trial, auxiliary=tuple(rows), rows=rows, notes=(*found_by_trial.notes, *notes))


def _autosem(jobs: Jobs, primary: str, options: SelectOptions, run: Run) -> Selection:
    utilities = run([jobs.explore(primary)])[0].utilities
    useful = [name for name in jobs.names if name != primary and utilities[name] > autosem.USEFUL]
    if not useful:
        note = f"the bandit found no task useful to {primary}"
        return Selection(primary, options.method, (), utilities=utilities, notes=(note,))
    seed = jobs.config.train.seed
    ratios = autosem.first_ratios(1 + len(useful), seed)
    scores: list[float] = []

    def try_(new: Sequence[autosem.Ratio]) -> None:
        asked = [_mixture(useful, ratio) for ratio in new]
        scores.extend(record.score for record in run([jobs.train(primary, *mixture) for mixture in asked]))

    try_(ratios)
    while len(ratios) < autosem.RATIO_TRIALS:
        ratios.append(autosem.next_ratio(ratios, scores, seed))
        try_(ratios[-1:])
    tried = [Tried(tuple(useful), ratio, score) for ratio, score in zip(ratios, scores, strict=True)]
    names, ratio = _mixture(useful, ratios[gradts.best(scores)])
    notes = () if names else (f"the best ratio has steps of {primary} only",)
    return Selection(
        primary,
        options.method,
        tuple(names),
        ratio=tuple(ratio or ()),
        utilities=utilities,
        tried=tuple(tried),
        notes=notes,
    )


def _mixture(useful: Sequence[str], ratio: autosem.Ratio) -> tuple[list[str], list[int] | None]:
    """The tasks that have a part in a ratio, and their parts."""
    pairs = [(name, part) for name, part in zip(useful, ratio[1:], strict=True) if part]
    names = [name for name, _ in pairs]
    return names, [ratio[0], *(part for _, part in pairs)] if names else None


def described(selection: Selection) -> str:
    """What was chosen, as one line."""
    if not selection.auxiliary:
        return f"{selection.primary}: train it alone"
    names = [
        f"{name} ({counted(len(selection.rows[name]), 'example')})" if name in selection.rows else name
        for name in selection.auxiliary
    ]
    at = f", at {':'.join(map(str, selection.ratio))}" if selection.ratio else ""
    return f"{selection.primary} with {listed(names)}{at}"
