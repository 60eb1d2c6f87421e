"""What labels are wanted, and whether labels that exist are those: which tasks, by which weights, of which columns.

A cell (article x task) is current when its labels were computed from the source file's present content by a definition
that `ViewDefinition.matches` for the task. Where only the decision differs (`has_scores_of`), stored scores are enough.
All label files of one label set share one definition; the set's name carries a hash of it.

Document vectors are planned, written and recorded as if they were one more task, of the name `VECTOR`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mtop_batch.decisions.identity import decision_hashes
from mtop_batch.errors import ConfigError
from mtop_batch.families import EncoderPasses
from mtop_batch.table.columns import OutputKind
from mtop_batch.tasks import Task, VectorInput

VECTOR = "_vector"
"""What document vectors are called among tasks; no task can have the name."""


@dataclass(frozen=True)
class ViewDefinition:
    """What determines labels besides the content of the articles.

    Args:
        fingerprints: Each task's fingerprint.
        text_columns: What each task is asked about: one column, or two that are read as a pair.
        id_column: The column that identifies an article.
        all_scores: The tasks of which the scores of all labels are wanted, or there.
        decisions: The decision hash of each task that decides in a way of its own.
    """

    fingerprints: Mapping[str, str]
    text_columns: Mapping[str, tuple[str, ...]]
    id_column: str
    all_scores: frozenset[str] = frozenset()
    decisions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_one_input(
        cls,
        fingerprints: Mapping[str, str],
        text_columns: tuple[str, ...],
        id_column: str,
        kinds: Mapping[str, OutputKind] | None = None,
        decisions: Mapping[str, str] | None = None,
    ) -> ViewDefinition:
        """That of tasks which are all asked about the same columns, as those of a label set are."""
        all_scores = with_all_scores(kinds or {})
        columns = dict.fromkeys(fingerprints, text_columns)
        return cls(fingerprints, columns, id_column, all_scores, decisions or {})

    def columns(self, task: str) -> tuple[tuple[str, ...], str]:
        """What is read for a task: text columns and id column."""
        return self.text_columns.get(task, ()), self.id_column

    def matches(self, other: ViewDefinition, task: str) -> bool:
        """Whether labels of `task` by the other definition are those that this one would compute.

        Scores of all labels do no harm where they are not wanted.
        """
        if task in self.all_scores and task not in other.all_scores:
            return False
        return self.has_scores_of(other, task) and self.decisions.get(task, "") == other.decisions.get(task, "")

    def has_scores_of(self, other: ViewDefinition, task: str) -> bool:
        """Whether the model puts out the same for `task` by both: labels of one can be computed from the other's.

        That is, as far as the other has kept it (`OutputKind.can_be_decided`).
        """
        own = self.fingerprints.get(task)
        return own is not None and (own, self.columns(task)) == (other.fingerprints.get(task), other.columns(task))

    def identity(self, task: str) -> str:
        """What computes the task's labels: its fingerprint, and its decision hash if it has one."""
        return identity(self.fingerprints[task], self.decisions.get(task, ""))

    def gives_the_same(self, other: ViewDefinition, task: str) -> bool:
        """Whether label files of `task` by the two definitions have the same columns, and labels."""
        return self.matches(other, task) and (task in self.all_scores) == (task in other.all_scores)

    def digest(self, tasks: Collection[str]) -> str:
        """12 hexadecimal digits that depend on the definition of these tasks."""
        content = {
            "tasks": sorted((name, self.fingerprints[name]) for name in tasks),
            "text_columns": sorted({self.text_columns[name] for name in tasks}),
            "id_column": self.id_column,
            **({"all_scores": sorted(self.all_scores & set(tasks))} if self.all_scores & set(tasks) else {}),
        }
        decisions = sorted((name, self.decisions[name]) for name in tasks if self.decisions.get(name))
        content |= {"decisions": decisions} if decisions else {}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Definition:
    """The wanted tasks of one bundle, and the columns of the corpus they are asked about.

    Args:
        bundle_name: Goes into the names of new label sets.
        bundle_uri: Where the bundle lies, for the record.
        tasks: The wanted tasks, in the bundle's order.
        fingerprints: Each wanted task's fingerprint, by name and in the same order; then that of `VECTOR`, if vectors
            are wanted.
        text_columns: What each wanted task is asked about: one column, or two that are read as a pair; by default what
            it was trained on. That of `VECTOR`, wanted or not, is by default the first task's.
        vector: The fingerprint of the bundle's vectors, wanted or not; empty if it has none.
        passes: How often a text goes through the encoder of the bundle's model.
        text_limits: How much of a text the model reads, as the bundle has them; empty if that is not known.
        vector_inputs: What the model reads beside each text; fingerprints cover it.
        text_columns_required: False lets a file lack some of the text columns (not all of them).
        id_column: The column that identifies an article.

    Raises:
        ConfigError: There is no task, or not one or two different text columns.
    """

    bundle_name: str
    bundle_uri: str
    tasks: tuple[Task, ...]
    fingerprints: Mapping[str, str]
    text_columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    vector: str = ""
    passes: EncoderPasses = field(default_factory=EncoderPasses)
    text_limits: Mapping[str, int] = field(default_factory=dict)
    vector_inputs: tuple[VectorInput, ...] = ()
    text_columns_required: bool = False
    id_column: str = "id"

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not self.fingerprints or names != [name for name in self.fingerprints if name != VECTOR]:
            raise ConfigError(f"bundle {self.bundle_uri}: no tasks, or tasks without fingerprints; train it again")
        trained_on = {task.name: task.text for task in self.tasks}
        of_vectors = {VECTOR: next(iter(trained_on.values()))} if trained_on else {}
        object.__setattr__(self, "text_columns", {**trained_on, **of_vectors, **self.text_columns})
        for columns in self.text_columns.values():
            if not 1 <= len(columns) <= 2 or len(set(columns)) < len(columns):
                raise ConfigError(
                    f"--text-columns {','.join(columns)}: give one column, or two different ones for a pair"
                )

    @cached_property
    def view(self) -> ViewDefinition:
        """What determines the wanted labels."""
        text_columns = {task: self.text_columns[task] for task in self.fingerprints}
        decisions = decision_hashes(self.tasks, self.fingerprints)
        return ViewDefinition(
            self.fingerprints, text_columns, self.id_column, with_all_scores(self.kinds), without_empty(decisions)
        )

    @cached_property
    def inputs(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        """The different text columns that are read, each with the wanted tasks that are asked about them."""
        tasks: dict[tuple[str, ...], list[str]] = {}
        for task in self.fingerprints:
            tasks.setdefault(self.text_columns[task], []).append(task)
        return {columns: tuple(names) for columns, names in tasks.items()}

    def vector_view(self, text_columns: tuple[str, ...]) -> ViewDefinition:
        """What determines the bundle's vectors, wanted or not, of these columns."""
        fingerprints = {VECTOR: self.vector} if self.vector else {}
        return ViewDefinition.of_one_input(fingerprints, text_columns, self.id_column)

    @property
    def label_tasks(self) -> tuple[str, ...]:
        """The wanted tasks but vectors, in the bundle's order."""
        return tuple(task.name for task in self.tasks)

    @cached_property
    def kinds(self) -> Mapping[str, OutputKind]:
        """What comes out of each wanted task, and of vectors, as label files have it."""
        return {VECTOR: OutputKind("vector"), **{task.name: OutputKind.stored(task) for task in self.tasks}}

    @cached_property
    def probes(self) -> frozenset[str]:
        """The wanted tasks that can be computed from vectors."""
        return frozenset(task.name for task in self.tasks if task.reads_vector)

    def can_be_decided_from(self, label_set: LabelSet, task: str) -> bool:
        """Whether the labels of a wanted task can be computed from what a label set has of it by another decision."""
        view, definition, kind = self.view, self._by_name.get(task), label_set.kinds.get(task)
        if definition is None or kind is None or not view.has_scores_of(label_set.view, task):
            return False
        has_all = task not in view.all_scores or definition.is_binary or bool(kind.scored)
        return has_all and kind.can_be_decided(definition) and not view.matches(label_set.view, task)

    @cached_property
    def _by_name(self) -> Mapping[str, Task]:
        return {task.name: task for task in self.tasks}

    def label_set_name(self, tasks: Collection[str]) -> str:
        """The name of the label set for these of the definition's tasks: the same for the same definition."""
        # "=" would read as a hive partition, a leading "_" or "." would hide the directory from readers.
        safe_name = re.sub(r"[^A-Za-z0-9._-]", "-", self.bundle_name).lstrip("._-")
        return f"{safe_name or 'bundle'}-{self.view.digest(tasks)}"


@dataclass(frozen=True)
class LabelSet:
    """A label set: its name, the definition that all its files share, and what comes out of its tasks."""

    name: str
    view: ViewDefinition
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Each task's fingerprint."""
        return self.view.fingerprints


def identity(fingerprint: str, decision: str) -> str:
    """What computes a task's labels.

    >>> identity("1a2b", ""), identity("1a2b", "3c4d")
    ('1a2b', '1a2b.3c4d')
    """
    return f"{fingerprint}.{decision}" if decision else fingerprint


def without_empty(decisions: Mapping[str, str]) -> dict[str, str]:
    """The decision hashes of tasks that decide in a way of their own."""
    return {task: decision for task, decision in decisions.items() if decision}


def with_all_scores(kinds: Mapping[str, OutputKind]) -> frozenset[str]:
    """The tasks that have scores of all labels."""
    return frozenset(task for task, kind in kinds.items() if kind.scored)
