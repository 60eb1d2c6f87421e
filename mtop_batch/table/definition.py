"""What a run wants: which tasks, by which weights, of which columns.

A label file is current for a task when it was computed by the same definition from the source file's current
content. All label files of one label set share one definition; the set's name carries a hash of it, so a rerun
writes to the same place.

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
class Definition:
    """The wanted tasks of one bundle, and the corpus columns that they read.

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

    @property
    def columns(self) -> tuple[tuple[str, ...], str]:
        """The part of the definition that says what is read."""
        return self.text_columns, self.id_column

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
        content = {
            "tasks": sorted((name, self.fingerprints[name]) for name in tasks),
            "text_columns": self.text_columns,
            "id_column": self.id_column,
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        # "=" would read as a hive partition, a leading "_" or "." would hide the directory from readers.
        safe_name = re.sub(r"[^A-Za-z0-9._-]", "-", self.bundle_name).lstrip("._-")
        return f"{safe_name or 'bundle'}-{digest[:8]}"


@dataclass(frozen=True)
class LabelSet:
    """The definition that all files of an existing label set share, as their footers say."""

    name: str
    fingerprints: Mapping[str, str]
    text_columns: tuple[str, ...]
    id_column: str
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[tuple[str, ...], str]:
        """The part of the definition that says what was read."""
        return self.text_columns, self.id_column

    def holds(self, definition: Definition, task: str) -> bool:
        """Whether labels of `task` in this set are what `definition` would compute from the same content."""
        return self.columns == definition.columns and self.fingerprints.get(task) == definition.fingerprints[task]

    def holds_vectors(self, definition: Definition) -> bool:
        """Whether this set has the vectors that `definition` would compute, wanted or not."""
        return self.columns == definition.columns and self.fingerprints.get(VECTOR, "") == definition.vector != ""
