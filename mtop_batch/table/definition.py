"""What labels are wanted, and whether labels that exist are those: which tasks, by which weights, of which columns.

A cell (article x task) is current when its labels were computed from the source file's present content by a definition
that `ViewDefinition.matches` for the task. All label files of one label set share one definition; the set's name
carries a hash of it.

Document vectors are planned, written and recorded as if they were one more task, of the name `VECTOR`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mtop_batch.errors import ConfigError
from mtop_batch.tasks import Task

DEFAULT_TEXT_COLUMNS = ("title", "body")
VECTOR = "_vector"
"""What document vectors are called among tasks; no task can have the name."""


@dataclass(frozen=True)
class ViewDefinition:
    """What determines labels besides the content of the articles.

    Args:
        fingerprints: Each task's fingerprint.
        text_columns: One column, or two that are read as a pair.
        id_column: The column that identifies an article.
    """

    fingerprints: Mapping[str, str]
    text_columns: tuple[str, ...]
    id_column: str

    @property
    def columns(self) -> tuple[tuple[str, ...], str]:
        """The part that says what is read."""
        return self.text_columns, self.id_column

    def matches(self, other: ViewDefinition, task: str) -> bool:
        """Whether labels of `task` by the other definition are those that this one would compute."""
        own = self.fingerprints.get(task)
        return own is not None and (own, self.columns) == (other.fingerprints.get(task), other.columns)

    def digest(self, tasks: Iterable[str]) -> str:
        """12 hexadecimal digits that depend on the definition of these tasks."""
        content = {
            "tasks": sorted((name, self.fingerprints[name]) for name in tasks),
            "text_columns": self.text_columns,
            "id_column": self.id_column,
        }
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
        vector: The fingerprint of the bundle's vectors, wanted or not; empty if it has none.
        text_columns: One column, or two that are read as a pair.
        text_columns_required: False lets a file lack some of the text columns (not all of them).
        id_column: The column that identifies an article.

    Raises:
        ConfigError: There is no task, or not one or two different text columns.
    """

    bundle_name: str
    bundle_uri: str
    tasks: tuple[Task, ...]
    fingerprints: Mapping[str, str]
    vector: str = ""
    text_columns: tuple[str, ...] = DEFAULT_TEXT_COLUMNS
    text_columns_required: bool = False
    id_column: str = "id"

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not self.fingerprints or names != [name for name in self.fingerprints if name != VECTOR]:
            raise ConfigError(f"bundle {self.bundle_uri}: no tasks, or tasks without fingerprints; train it again")
        if not 1 <= len(self.text_columns) <= 2 or len(set(self.text_columns)) < len(self.text_columns):
            raise ConfigError(
                f"--text-columns {','.join(self.text_columns)}: give one column, or two different ones for a pair"
            )

    @cached_property
    def view(self) -> ViewDefinition:
        """What determines the wanted labels."""
        return ViewDefinition(self.fingerprints, self.text_columns, self.id_column)

    @cached_property
    def vector_view(self) -> ViewDefinition:
        """What determines the bundle's vectors, wanted or not."""
        return ViewDefinition({VECTOR: self.vector} if self.vector else {}, self.text_columns, self.id_column)

    @property
    def label_tasks(self) -> tuple[str, ...]:
        """The wanted tasks but vectors, in the bundle's order."""
        return tuple(task.name for task in self.tasks)

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """The kind of each wanted task; "vector" for vectors."""
        return {VECTOR: "vector", **{task.name: task.kind for task in self.tasks}}

    @cached_property
    def probes(self) -> frozenset[str]:
        """The wanted tasks that can be computed from vectors."""
        return frozenset(task.name for task in self.tasks if task.reads_vector)

    def label_set_name(self, tasks: Iterable[str]) -> str:
        """The name of the label set for these of the definition's tasks: the same for the same definition."""
        # "=" would read as a hive partition, a leading "_" or "." would hide the directory from readers.
        safe_name = re.sub(r"[^A-Za-z0-9._-]", "-", self.bundle_name).lstrip("._-")
        return f"{safe_name or 'bundle'}-{self.view.digest(tasks)}"


@dataclass(frozen=True)
class LabelSet:
    """A label set: its name, the definition that all its files share, and the kinds of its tasks."""

    name: str
    view: ViewDefinition
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Each task's fingerprint."""
        return self.view.fingerprints
