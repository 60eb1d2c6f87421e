"""Rules between tasks: what must hold of the labels that one text is given.

    implies("sports_news:yes", "news:yes")      who has the first label has the second
    excludes("satire:yes", "news:yes")          at most one of these labels

Where the labels that each task would give break a rule, the tasks that rules tie together are given those labels that
are likeliest together and break none, as if the tasks were independent: the product of the calibrated probabilities is
the largest. A threshold counts as odds, so that a label at its threshold is even. The combinations are few (they are
counted, and refused beyond `MAX_COMBINATIONS`), so all are looked at.

Shapes: R texts, C labels of a task, A combinations of labels that break no rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mtop_batch.errors import TaskError
from mtop_batch.lines import did_you_mean, listed
from mtop_batch.tasks import Task

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
A = TypeVar("A", Floats, Flags)

MAX_COMBINATIONS = 4096
_RULE = re.compile(r"\s*(implies|excludes)\s*\((.*)\)\s*", re.DOTALL)
# Products of probabilities and thresholds of 0 and 1 are compared as those of this and of what it lacks to 1.
_LEAST = 1e-9
# So many numbers are in memory while combinations are compared.
_AT_ONCE = 1 << 21


class TaskLabel(NamedTuple):
    """A label of a task."""

    task: str
    label: str

    def __str__(self) -> str:
        return f"{self.task}:{self.label}"


@dataclass(frozen=True)
class Rule:
    """What must hold.

    Args:
        kind: "implies" (of two labels, the first the second) or "excludes" (at most one of two or more).
        labels: Of which tasks.
    """

    kind: str
    labels: tuple[TaskLabel, ...]

    @classmethod
    def parse(cls, text: str) -> Rule:
        """A rule as a configuration has it.

        Raises:
            TaskError: It is none.

        >>> str(Rule.parse('implies( "football:yes" , "sports:yes")'))
        'implies("football:yes", "sports:yes")'
        """
        found = _RULE.fullmatch(text)
        try:
            names = json.loads(f"[{found[2]}]") if found else []
        except ValueError:
            names = []
        labels = [TaskLabel(*name.split(":", 1)) for name in names if isinstance(name, str) and ":" in name]
        if found is None or len(labels) < 2 or len(labels) != len(names) or (found[1] == "implies" and len(labels) > 2):
            raise TaskError(
                f'rules: {text!r} is not a rule; write \'implies("task:label", "task:label")\' with two labels, or '
                "'excludes(...)' with two or more"
            )
        if len(set(labels)) < len(labels):
            raise TaskError(f"rules: {text!r} names a label twice; give each once")
        return cls(found[1], tuple(labels))

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(json.dumps(str(label), ensure_ascii=False) for label in self.labels)})"

    def broken(self, given: Mapping[TaskLabel, Flags]) -> Flags:
        """(R,) Where it does not hold of the labels that are given."""
        if self.kind == "implies":
            first, second = (given[label] for label in self.labels)
            return first & ~second
        pairs = combinations((given[label] for label in self.labels), 2)
        return np.asarray(np.logical_or.reduce([first & second for first, second in pairs]))


class _Option(NamedTuple):
    """The label that is given if it is one that rules name; else none of these, or not the one that is asked about."""

    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class RuleGroup:
    """Tasks that rules tie together, and these rules.

    Args:
        tasks: In the order of the model.
        rules: Each names some of them.

    Raises:
        TaskError: A rule names what the tasks do not have, the rules contradict each other, or leave too many
            combinations of labels to look at.
    """

    tasks: tuple[Task, ...]
    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        if len({task.text for task in self.tasks}) > 1:
            raise TaskError(
                f"rules tie {listed([task.name for task in self.tasks])} together, which read different text columns; "
                "rules hold between tasks that read the same text"
            )
        count = prod(len(options) for _, options in self._choices)
        if count > MAX_COMBINATIONS:
            raise TaskError(
                f"rules tie {listed([task.name for task in self.tasks])} together in {count:,} combinations of labels; "
                f"at most {MAX_COMBINATIONS:,} can be compared: name fewer labels"
            )
        self._check_possible()

    def _check_possible(self) -> None:
        """Each label must be possible, and each must be possible not to be given."""
        for label in self._named:
            if not any(self._has(options, label) for options in self._combinations):
                rules = " and ".join(str(rule) for rule in self.rules if label in rule.labels)
                raise TaskError(f"rules contradict each other: no text could be given {str(label)!r}, by {rules}")
        for place, (task, options) in enumerate(self._choices):
            others = [number for number, option in enumerate(options) if not option.labels]
            if others and all(combination[place] != others[0] for combination in self._combinations):
                places = sorted(label for option in options for label in option.labels)
                labels = " or ".join(repr(str(TaskLabel(task.name, task.labels[label]))) for label in places)
                rules = " and ".join(
                    str(rule) for rule in self.rules if any(label.task == task.name for label in rule.labels)
                )
                raise TaskError(f"rules contradict each other: every text would be given {labels}, by {rules}")

    @cached_property
    def _named(self) -> list[TaskLabel]:
        """The labels that rules name."""
        return list(dict.fromkeys(label for rule in self.rules for label in rule.labels))

    @cached_property
    def _choices(self) -> list[tuple[Task, list[_Option]]]:
        """What is to be chosen, and from what: one label of a classification, or a label or not of a multi-label."""
        found: list[tuple[Task, list[_Option]]] = []
        for task in self.tasks:
            named = [task.labels.index(label.label) for label in self._named if label.task == task.name]
            if task.is_multi_label:
                found += [(task, [_Option(), _Option((label,))]) for label in named]
            else:
                others = [_Option()] if len(named) < len(task.labels) else []
                found.append((task, [*(_Option((label,)) for label in named), *others]))
        return found

    @cached_property
    def _combinations(self) -> list[tuple[int, ...]]:
        """A The options, one of each choice, that break no rule."""
        every = list(product(*(range(len(options)) for _, options in self._choices)))
        given = {label: np.array([self._has(options, label) for options in every]) for label in self._named}
        broken = np.logical_or.reduce([rule.broken(given) for rule in self.rules])
        return [options for options, is_broken in zip(every, broken, strict=True) if not is_broken]

    def _has(self, options: Sequence[int], label: TaskLabel) -> bool:
        """Whether a combination gives a label."""
        return any(
            task.name == label.task and task.labels.index(label.label) in of_task[option].labels
            for (task, of_task), option in zip(self._choices, options, strict=True)
        )

    def broken(self, given: Mapping[str, Flags]) -> Flags:
        """(R,) Where a rule does not hold of the (R, C) labels that each task gives."""
        indices = {task.name: task.labels for task in self.tasks}
        columns = {label: given[label.task][:, indices[label.task].index(label.label)] for label in self._named}
        return np.asarray(np.logical_or.reduce([rule.broken(columns) for rule in self.rules]))

    def likeliest(self, probabilities: Mapping[str, Floats], given: Mapping[str, Flags]) -> dict[str, Flags]:
        """(R, C) By task: the labels that are likeliest together and break no rule.

        Args:
            probabilities: (R, C) By task, calibrated.
            given: (R, C) By task, as without rules: of a multi-label task, labels that no rule names stay as they are.
        """
        at_once = max(1, _AT_ONCE // len(self._combinations))
        num_rows = len(given[self.tasks[0].name])
        parts = []
        for start in range(0, num_rows, at_once):
            rows = slice(start, start + at_once)
            parts.append(self._likeliest(rows_of(probabilities, rows), rows_of(given, rows)))
        return {task.name: np.concatenate([part[task.name] for part in parts]) for task in self.tasks}

    def _likeliest(self, probabilities: Mapping[str, Floats], given: Mapping[str, Flags]) -> dict[str, Flags]:
        worth = {task.name: _worth(task, probabilities[task.name]) for task in self.tasks}
        columns = [self._worth_of(task, options, *worth[task.name]) for task, options in self._choices]
        totals = sum(
            values[:, [combination[place] for combination in self._combinations]]
            for place, values in enumerate(columns)
        )
        best = np.array(self._combinations)[np.asarray(totals).argmax(axis=1)]  # (R, choices)
        found = {name: flags.copy() for name, flags in given.items()}
        for place, (task, options) in enumerate(self._choices):
            mine = found[task.name]
            if task.is_multi_label:
                mine[:, options[1].labels[0]] = best[:, place] == 1
                continue
            rest = _without(worth[task.name][0], options).argmax(axis=1)
            labels = np.array([option.labels[0] if option.labels else -1 for option in options])[best[:, place]]
            mine[:] = False
            np.put_along_axis(mine, np.where(labels < 0, rest, labels)[:, None], True, axis=1)
        return found

    @staticmethod
    def _worth_of(
        task: Task, options: Sequence[_Option], of_labels: npt.NDArray[np.float64], without: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """(R, options) What each option of a choice counts."""
        if task.is_multi_label:
            label = options[1].labels[0]
            return np.stack([without[:, label], of_labels[:, label]], axis=1)
        rest = _without(of_labels, options).max(axis=1)
        return np.stack([of_labels[:, option.labels[0]] if option.labels else rest for option in options], axis=1)


def rows_of(of_tasks: Mapping[str, A], rows: slice | npt.NDArray[np.int64]) -> dict[str, A]:
    """Some rows of each task's values."""
    return {name: values[rows] for name, values in of_tasks.items()}


def _without(of_labels: npt.NDArray[np.float64], options: Sequence[_Option]) -> npt.NDArray[np.float64]:
    """(R, C) What labels of a classification count, those aside that are options of their own."""
    others = of_labels.copy()
    others[:, [label for option in options for label in option.labels]] = -np.inf
    return others


def rule_groups(tasks: Iterable[Task]) -> list[RuleGroup]:
    """The tasks with rules, in groups that no rule connects.

    Raises:
        TaskError: A rule names a task or label that is not there, or the rules cannot be kept.
    """
    members = [task for task in tasks if task.decision.rules]
    known = {task.name: task for task in members}
    rules = {text: Rule.parse(text) for task in members for text in task.decision.rules}
    for rule in rules.values():
        for label in rule.labels:
            if label.task not in known:
                tied = listed(sorted({str(other.task) for other in rule.labels} - {label.task}))
                raise TaskError(f"the rule {rule} ties {tied} to the task {label.task!r}, which is left out; name both")
    groups: list[set[str]] = []
    for rule in rules.values():
        tasks_of_rule = {label.task for label in rule.labels}
        apart = [group for group in groups if group.isdisjoint(tasks_of_rule)]
        touched = [group for group in groups if not group.isdisjoint(tasks_of_rule)]
        groups = [*apart, tasks_of_rule.union(*touched)]
    return [
        RuleGroup(
            tuple(task for task in members if task.name in group),
            tuple(rule for rule in rules.values() if rule.labels[0].task in group),
        )
        for group in groups
    ]


def with_rules(tasks: Sequence[Task], texts: Iterable[str]) -> list[Task]:
    """The tasks with these rules and no others, each with those that name it.

    Raises:
        TaskError: A rule is none, names a task or label that is not there or has none, or the rules cannot be kept.
    """
    rules = list(dict.fromkeys(Rule.parse(text) for text in texts))
    known = {task.name: task for task in tasks}
    for rule in rules:
        for name, label in rule.labels:
            if name not in known:
                raise TaskError(
                    f"rules: {rule} names a task {name!r}, which there is not; {did_you_mean(name, known)}tasks: "
                    f"{listed(known)}"
                )
            if label not in known[name].labels:
                labels = known[name].labels
                hint = f"labels: {listed(labels)}" if labels else "it is a regression, which has none"
                raise TaskError(
                    f"rules: {rule} names a label {label!r} of task {name!r}, which it does not have; "
                    f"{did_you_mean(label, labels)}{hint}"
                )
    changed = []
    for task in tasks:
        own = tuple(sorted(str(rule) for rule in rules if any(label.task == task.name for label in rule.labels)))
        changed.append(task if own == task.decision.rules else _with(task, own))
    rule_groups(changed)
    return changed


def _with(task: Task, rules: tuple[str, ...]) -> Task:
    return replace(task, decision=replace(task.decision, rules=rules))


def _worth(task: Task, probabilities: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(R, C) The logarithm of what each label counts if it is given, and if it is not: of one label of several 0."""
    sure = np.clip(probabilities.astype(np.float64), _LEAST, 1 - _LEAST)
    if task.is_multi_label:
        thresholds = np.clip(np.array(task.decision.thresholds or 0.5, np.float64), _LEAST, 1 - _LEAST)
        return np.log(sure) - np.log(thresholds), np.log1p(-sure) - np.log1p(-thresholds)
    of_labels = np.log(sure)
    if task.decision.thresholds:
        last = min(max(task.decision.thresholds[0], _LEAST), 1 - _LEAST)
        of_labels = of_labels - np.log([1 - last, last])
    return of_labels, np.zeros_like(of_labels)
