"""The gate: may readers see these labels? Pure functions of what publishing would change.

A rule closes the gate only where chance does not explain what it sees. Articles of a file are alike, so ten of them are
taken to say as much as one drawn at random: below some fifty articles, shares and flips never close it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from mtop_batch.table.gate.distributions import LabelCounts
from mtop_batch.table.gate.statistics import TaskChange

_ALIKE = 10
_SIGMAS = 3.0
# A run with fewer articles says nothing by itself about what is usual.
_MIN_RUN_ARTICLES = 100
_MAX_LINES = 20


@dataclass(frozen=True)
class Rules:
    """How far labels may move before readers see them.

    Args:
        max_label_share_change: Of a label's share of the articles that have had a label before.
        max_new_share_change: Of a label's share of the articles that have none yet, from what the last runs had.
        max_flips: Share of the articles whose label changes.
        max_error_fraction: Share of the articles that cannot be labelled, and did not have that error before.
        min_articles: Articles that are published, at least.
        max_metric_drop: Of a task's metric on the development data that the two bundles record.
    """

    max_label_share_change: float = 0.2
    max_new_share_change: float = 0.5
    max_flips: float = 0.3
    max_error_fraction: float = 0.1
    min_articles: int = 0
    max_metric_drop: float = 0.05


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Reason:
    """Why the gate is closed.

    Args:
        rule: The rule's name.
        task: The task; empty where it is about the articles.
        text: What was found, in a line.
    """

    rule: str
    task: str
    text: str

    def __str__(self) -> str:
        return f"{self.task}: {self.text}" if self.task else self.text


@dataclass(frozen=True)
class MetricChange:
    """A task's metric on development data: of the published bundle, and of the one to publish.

    Args:
        metric: Its name.
        old: Its value, and `num_old` the examples.
        new: Its value, and `num_new` the examples.
    """

    metric: str
    old: float
    num_old: int
    new: float
    num_new: int


@dataclass
class TableChange:
    """What publishing would change.

    Args:
        articles: That would be new or replaced.
        new_errors: Those that cannot be labelled, and did not have an error before.
        tasks: The tasks whose labels change.
        usual: Per task, what earlier runs published: articles per label (or bin of values), a run each;
            `LabelCounts` where an article has several labels.
        metrics: Per task, on development data.
    """

    articles: int = 0
    new_errors: int = 0
    tasks: dict[str, TaskChange] = field(default_factory=dict)
    usual: Mapping[str, Sequence[Mapping[str, int]]] = field(default_factory=dict)
    metrics: Mapping[str, MetricChange] = field(default_factory=dict)

    def merge(self, other: TableChange) -> None:
        """Count the articles of the other too."""
        self.articles += other.articles
        self.new_errors += other.new_errors
        for task, change in other.tasks.items():
            if task in self.tasks:
                self.tasks[task].merge(change)
            else:
                self.tasks[task] = change

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "articles": self.articles,
            "new_errors": self.new_errors,
            "tasks": {task: self._task_dict(task, change) for task, change in self.tasks.items()},
        }

    def _task_dict(self, task: str, change: TaskChange) -> dict[str, Any]:
        usual = _pooled(self.usual.get(task, ()))
        metric = self.metrics.get(task)
        return {
            **change.to_dict(),
            "usual_counts": dict(usual),
            "usual_articles": usual.articles,
            "fresh_stability": change.stability(usual, change.fresh_shares),
            "metric": None if metric is None else vars(metric),
        }


@dataclass(frozen=True)
class Verdict:
    """What the gate says.

    Args:
        change: What it looked at.
        rules: By which rules.
        reasons: Why it is closed; none where it is open.
        opened_by: Why labels pass although there are reasons; empty where they do not.
    """

    change: TableChange
    rules: Rules
    reasons: tuple[Reason, ...]
    opened_by: str = ""

    @property
    def is_open(self) -> bool:
        """Whether readers may see the labels."""
        return not self.reasons or bool(self.opened_by)

    def __str__(self) -> str:
        """A line per reason."""
        lines = [f"  {reason}" for reason in self.reasons[:_MAX_LINES]]
        more = len(self.reasons) - len(lines)
        return "\n".join([*lines, f"  ... and {more:,} more reasons"] if more else lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "open": self.is_open,
            "opened_by": self.opened_by,
            "reasons": [{**vars(reason), "text": str(reason)} for reason in self.reasons],
            "rules": vars(self.rules),
            **self.change.to_dict(),
        }


def judge(change: TableChange, rules: Rules, *, opened_by: str = "") -> Verdict:
    """Whether readers may see a change."""
    reasons = [*_articles(change, rules)]
    for task, of_task in change.tasks.items():
        reasons += _shares(task, of_task, rules)
        reasons += _flips(task, of_task, rules)
        reasons += _fresh(task, of_task, change.usual.get(task, ()), rules)
        if task in change.metrics:
            reasons += _metric(task, change.metrics[task], rules)
    return Verdict(change, rules, tuple(reasons), opened_by)


def _articles(change: TableChange, rules: Rules) -> list[Reason]:
    reasons = []
    if 0 < change.articles < rules.min_articles:
        text = f"{change.articles:,} articles to publish; min_articles = {rules.min_articles:,}"
        reasons.append(Reason("min_articles", "", text))
    if _surely_above(change.new_errors, change.articles, rules.max_error_fraction):
        share = change.new_errors / change.articles
        text = (
            f"{share:.1%} of {change.articles:,} articles cannot be labelled; max_error_fraction = "
            f"{rules.max_error_fraction:g}"
        )
        reasons.append(Reason("max_error_fraction", "", text))
    return reasons


def _flips(task: str, change: TaskChange, rules: Rules) -> list[Reason]:
    n = change.num_same
    if not _surely_above(change.disagreement * n, n, rules.max_flips):
        return []
    what = "labels change" if change.has_labels else "disagreement of the values"
    return [
        Reason(
            "max_flips", task, f"{change.disagreement:.1%} {what} on {n:,} articles; max_flips = {rules.max_flips:g}"
        )
    ]


def _shares(task: str, change: TaskChange, rules: Rules) -> list[Reason]:
    n, limit = change.num_same, rules.max_label_share_change
    if not change.has_labels:
        distance = _surely_apart(change.old_shares, change.new_shares)
        if distance <= limit:
            return []
        means = f"the mean goes from {change.old.mean:.4g} to {change.new.mean:.4g}"
        return [
            Reason("max_label_share_change", task, f"{means} on {n:,} articles; max_label_share_change = {limit:g}")
        ]
    old, new = change.old_shares, change.new_shares
    moved = []
    for label in old.keys() | new.keys():
        gained = sum(count for (before, now), count in change.pairs.items() if now == label != before)
        lost = sum(count for (before, now), count in change.pairs.items() if before == label != now)
        if _lowest_share(max(gained, lost), n) - min(gained, lost) / n > limit:
            moved.append((abs(gained - lost), label))
    return [
        Reason(
            "max_label_share_change",
            task,
            f"{label!r} goes from {old[label] / n:.1%} to {new[label] / n:.1%} of {n:,} articles; "
            f"max_label_share_change = {limit:g}",
        )
        for _, label in sorted(moved, reverse=True)[:1]
    ]


def _fresh(task: str, change: TaskChange, usual: Sequence[Mapping[str, int]], rules: Rules) -> list[Reason]:
    """New articles against each of the last runs, and against all of them together: one that is near is enough."""
    fresh = change.fresh_shares
    runs = [_shares_of(run) for run in usual]
    compared = [_pooled(usual), *(run for run in runs if run.articles >= _MIN_RUN_ARTICLES)]
    if not fresh.articles or not compared[0].articles:
        return []
    if min(_surely_apart(run, fresh, ordered=not change.has_labels) for run in compared) <= rules.max_new_share_change:
        return []
    n, before = fresh.articles, compared[0]
    was = {label: count / before.articles for label, count in before.items()}
    label = max(fresh.keys() | was.keys(), key=lambda name: abs(fresh[name] / n - was.get(name, 0.0)))
    text = (
        f"{label!r} is {fresh[label] / n:.1%} of {n:,} new articles, and was {was.get(label, 0.0):.1%} in the last "
        f"{len(usual)} runs; max_new_share_change = {rules.max_new_share_change:g}"
    )
    return [Reason("max_new_share_change", task, text)]


def _metric(task: str, change: MetricChange, rules: Rules) -> list[Reason]:
    def variance(value: float, num: int) -> float:
        near = min(max(value, 0.0), 1.0)
        return (near * (1 - near) + 1 / (num + 4)) / max(num, 1)

    chance = _SIGMAS * math.sqrt(variance(change.old, change.num_old) + variance(change.new, change.num_new))
    if change.old - change.new - chance <= rules.max_metric_drop:
        return []
    text = (
        f"{change.metric} on development data goes from {change.old:.4f} ({change.num_old:,} examples) to "
        f"{change.new:.4f} ({change.num_new:,}); max_metric_drop = {rules.max_metric_drop:g}"
    )
    return [Reason("max_metric_drop", task, text)]


def _lowest_share(count: float, total: float) -> float:
    """The share that chance alone would not raise to what is seen: the lower end of Wilson's interval.

    >>> round(_lowest_share(20, 20), 3), round(_lowest_share(1000, 1000), 3), round(_lowest_share(300, 1000), 3)
    (0.182, 0.917, 0.184)
    """
    share, n, z2 = count / total, total / _ALIKE, _SIGMAS**2
    half = _SIGMAS * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (share + z2 / (2 * n) - half) / (1 + z2 / n)


def _surely_above(count: float, total: float, limit: float) -> bool:
    """Whether a share is above a limit beyond chance."""
    return total > 0 and _lowest_share(count, total) > limit


def _surely_apart(old: LabelCounts, new: LabelCounts, *, ordered: bool = True) -> float:
    """How far apart two distributions are, beyond chance: the largest difference of a share.

    Args:
        old: Articles per label, or per bin in order.
        new: The same.
        ordered: They are bins of values: shares are those of all values up to each bin (Kolmogorov and Smirnov).
    """
    m, n = (counts.articles / _ALIKE for counts in (old, new))
    keys = sorted(old.keys() | new.keys(), key=float) if ordered else sorted(old.keys() | new.keys())
    largest = 0.0
    first, second = ([counts.get(key, 0) / _ALIKE for key in keys] for counts in (old, new))
    if ordered:
        first, second = list(accumulate(first)), list(accumulate(second))
    for a, b in zip(first, second, strict=True):
        p, q = (a + 1) / (m + 2), (b + 1) / (n + 2)
        chance = math.sqrt(p * (1 - p) / m + q * (1 - q) / n) if m and n else 1.0
        largest = max(largest, abs(a / m - b / n) - _SIGMAS * chance if m and n else 0.0)
    return largest


def _shares_of(run: Mapping[str, int]) -> LabelCounts:
    return run if isinstance(run, LabelCounts) else LabelCounts(run)


def _pooled(runs: Sequence[Mapping[str, int]]) -> LabelCounts:
    pooled: Counter[str] = Counter()
    for run in runs:
        pooled.update(run)
    return LabelCounts(pooled, sum(_shares_of(run).articles for run in runs))
