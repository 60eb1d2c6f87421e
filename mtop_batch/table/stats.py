"""What a label table holds, in numbers, for `mtop labels`: counted as the rows stream by.

Whether the corpus has changed since nobody can tell from the labels alone: that is what `mtop label --plan` is for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.table.merge import Part, View, open_view


@dataclass
class TaskOverview:
    """One task over all articles in scope; `current + older + errors + missing == articles`.

    Args:
        kind: "classification" or "regression".
        current: Articles with a label of the definition that the newest run wanted.
        older: Articles whose newest label is of another definition.
        errors: Articles that cannot be labelled, such as those without text.
        missing: Articles that no label file answers for.
        label_counts: Articles per label.
        score_sum: Sum of the scores.
        made_by: Labelled articles per (bundle, fingerprint).
    """

    kind: str
    current: int = 0
    older: int = 0
    errors: int = 0
    missing: int = 0
    label_counts: Counter[str] = field(default_factory=Counter)
    score_sum: float = 0.0
    made_by: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def labelled(self) -> int:
        """Articles with a label."""
        return self.current + self.older

    @property
    def articles(self) -> int:
        """All articles."""
        return self.labelled + self.errors + self.missing

    @property
    def coverage(self) -> float:
        """Share of the articles that have a current label; 0 where there are none."""
        return self.current / self.articles if self.articles else 0.0

    @property
    def shares(self) -> dict[str, float]:
        """Share of the labelled articles per label, the most frequent first."""
        return {label: count / self.labelled for label, count in self.label_counts.most_common()}

    def to_dict(self) -> dict[str, Any]:
        """The overview as JSON-ready values."""
        return {
            "kind": self.kind,
            "articles": self.articles,
            "current": self.current,
            "older": self.older,
            "errors": self.errors,
            "missing": self.missing,
            "coverage": round(self.coverage, 6),
            "label_counts": dict(self.label_counts.most_common()),
            "label_shares": {label: round(share, 6) for label, share in self.shares.items()},
            "mean_score": round(self.score_sum / self.labelled, 6) if self.labelled else None,
            "bundles": [
                {"bundle": bundle, "fingerprint": fingerprint, "articles": count}
                for (bundle, fingerprint), count in self.made_by.most_common()
            ],
        }


@dataclass
class SetOverview:
    """The files of a label set in scope, whether their labels are current or not."""

    tasks: tuple[str, ...]
    files: int = 0
    rows: int = 0
    num_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The overview as JSON-ready values."""
        return {"tasks": list(self.tasks), "files": self.files, "rows": self.rows, "bytes": self.num_bytes}


@dataclass
class Overview:
    """A label table in numbers.

    Args:
        labels: The label table.
        articles: Articles in scope, each once.
        source_files: Source files that they come from.
        tasks: What is known of each task.
        label_sets: The label sets with files in scope.
    """

    labels: str
    articles: int
    source_files: int
    tasks: Mapping[str, TaskOverview]
    label_sets: Mapping[str, SetOverview]

    def to_dict(self) -> dict[str, Any]:
        """The overview as JSON-ready values."""
        return {
            "labels": self.labels,
            "articles": self.articles,
            "source_files": self.source_files,
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
            "label_sets": {name: label_set.to_dict() for name, label_set in self.label_sets.items()},
        }


def label_overview(
    labels: str, tasks: Sequence[str] | None = None, partition: Mapping[str, str] | None = None
) -> Overview:
    """Count what a label table holds, a few label files in memory at a time.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition.

    Raises:
        LabelTableError: There are no labels, or they cannot be read, or one was replaced meanwhile.
        TaskError: No label set has one of the tasks.
    """
    view = open_view(labels, tasks, partition)
    found = {task: TaskOverview(view.kind(task)) for task in view.tasks}
    articles = 0
    for part in view.parts():
        articles += len(part)
        for task, overview in found.items():
            _add(overview, task, part, view)
    return Overview(view.labels, articles, len(view.sources), found, _label_sets(view))


def _add(overview: TaskOverview, task: str, part: Part, view: View) -> None:
    file = part.file_of(task)
    if file is None:
        overview.missing += len(part)
        return
    scores = part.column(file, f"{task}_score")
    num_labelled = len(part) - scores.null_count
    overview.errors += scores.null_count
    if view.chooser.is_present(task, file.label_set):
        overview.current += num_labelled
    else:
        overview.older += num_labelled
    overview.score_sum += pc.sum(scores).as_py() or 0.0
    footer = part.footer(file)
    if num_labelled:
        overview.made_by[footer.bundles[task], footer.fingerprints[task]] += num_labelled
    if part.has(file, f"{task}_label"):
        overview.label_counts.update(_counts(part.column(file, f"{task}_label")))


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(values.drop_null()).to_pylist()}


def _label_sets(view: View) -> dict[str, SetOverview]:
    found: dict[str, SetOverview] = {}
    for file, num_bytes in view.files:
        overview = found.setdefault(file.label_set, SetOverview(tuple(view.label_sets[file.label_set].tasks)))
        overview.files += 1
        overview.rows += file.rows[1] - file.rows[0]
        overview.num_bytes += num_bytes
    return found
