"""What a label table holds, in numbers, for `mtop labels`: counted as the rows stream by.

The labels alone do not say whether the corpus has changed since; `mtop label --plan` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.corpus.paths import in_partition
from mtop_batch.table.columns import given_labels, label_counts
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.read import open_table
from mtop_batch.table.runs import current_definitions
from mtop_batch.table.store import list_store, read_label_sets


@dataclass
class TaskStats:
    """One task over all articles in scope; `current + older + errors + missing == articles`.

    Args:
        kind: "classification", "multi-label" or "regression".
        current: Articles with a label of the definition that the newest run wanted.
        older: Articles whose label is of another definition.
        errors: Articles that cannot be labelled, such as those without text.
        missing: Articles that the task has not been published for.
        label_counts: Articles per label.
        without_label: Articles to which a multi-label task gives no label.
        num_scores: Scores: of articles, or of the labels that a multi-label task gives them.
        score_sum: Their sum.
        made_by: Labelled articles per (bundle, what computed them: `ViewDefinition.identity`).
    """

    kind: str
    current: int = 0
    older: int = 0
    errors: int = 0
    missing: int = 0
    label_counts: Counter[str] = field(default_factory=Counter)
    without_label: int = 0
    num_scores: int = 0
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
        """Share of the labelled articles per label, the most frequent first; an article may have several."""
        return {label: count / self.labelled for label, count in self.label_counts.most_common()}

    @property
    def mean_score(self) -> float | None:
        """None if there are none."""
        return self.score_sum / self.num_scores if self.num_scores else None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        without = {"without_label": self.without_label} if self.kind in ("multi-label", "token") else {}
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
            **without,
            "mean_score": None if self.mean_score is None else round(self.mean_score, 6),
            "bundles": [
                {"bundle": bundle, "fingerprint": fingerprint, "articles": count}
                for (bundle, fingerprint), count in self.made_by.most_common()
            ],
        }


@dataclass
class LabelSetStats:
    """The files of a label set in scope, whether their labels are current or not."""

    tasks: tuple[str, ...]
    files: int = 0
    rows: int = 0
    num_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        return {"tasks": list(self.tasks), "files": self.files, "rows": self.rows, "bytes": self.num_bytes}


@dataclass
class TableStats:
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
    tasks: Mapping[str, TaskStats]
    label_sets: Mapping[str, LabelSetStats]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        return {
            "labels": self.labels,
            "articles": self.articles,
            "source_files": self.source_files,
            "tasks": {name: task.to_dict() for name, task in self.tasks.items()},
            "label_sets": {name: label_set.to_dict() for name, label_set in self.label_sets.items()},
        }


def table_stats(
    labels: str,
    tasks: Sequence[str] | None = None,
    partition: Mapping[str, str] | None = None,
    *,
    allow_empty: bool = False,
) -> TableStats:
    """Count what a label table shows, a few published files in memory at a time.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition.
        allow_empty: No article need be in the partition.

    Raises:
        LabelTableError: Nothing is published, or it cannot be read.
        TaskError: The table does not have one of the tasks.
    """
    table = open_table(labels, tasks, partition, allow_empty=allow_empty)
    current = current_definitions(table.labels, table.tasks)
    found = {task: TaskStats(table.columns.kinds[task].kind) for task in table.tasks}
    articles = source_files = 0
    for footer, rows in table.files():
        articles += len(rows)
        source_files += 1
        for task, stats in found.items():
            wanted = current.get(task)
            _add(stats, task, footer, rows, is_current=wanted is not None and wanted.matches(footer.view(task), task))
    return TableStats(table.labels, articles, source_files, found, _label_sets(table.labels, partition or {}))


def _add(stats: TaskStats, task: str, footer: PublishedFooter, rows: pa.Table, *, is_current: bool) -> None:
    made = footer.tasks.get(task)
    if made is None:
        stats.missing += len(rows)
        return
    scores = rows[f"{task}_score"]
    num_labelled = len(rows) - scores.null_count
    stats.errors += scores.null_count
    if is_current:
        stats.current += num_labelled
    else:
        stats.older += num_labelled
    if num_labelled:
        stats.made_by[made.bundle, made.identity] += num_labelled
    if stats.kind in ("multi-label", "token"):
        num_labels = pc.list_value_length(rows[f"{task}_label"] if stats.kind == "token" else scores)
        stats.without_label += pc.sum(pc.equal(num_labels, 0)).as_py() or 0
    if stats.kind == "multi-label":
        scores = pc.list_flatten(scores)
    stats.num_scores += len(scores) - scores.null_count
    stats.score_sum += pc.sum(scores).as_py() or 0.0
    if f"{task}_label" in rows.schema.names:
        stats.label_counts.update(label_counts(given_labels(rows[f"{task}_label"])))


def _label_sets(labels: str, partition: Mapping[str, str]) -> dict[str, LabelSetStats]:
    listing = list_store(labels)
    found: dict[str, LabelSetStats] = {}
    for label_set in read_label_sets(labels, listing):
        files = [
            file
            for file in listing.files_of(label_set.name)
            if in_partition(listing.names[file].source_path, partition)
        ]
        if files:
            rows = sum(stop - start for start, stop in (listing.names[file].rows for file in files))
            num_bytes = sum(listing.sizes[file] for file in files)
            found[label_set.name] = LabelSetStats(tuple(label_set.fingerprints), len(files), rows, num_bytes)
    return found
