"""What publishing would change, read from the store and from the published table before anything is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import DamagedLabelFile
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import VECTOR, LabelSet, ViewDefinition
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.gate.distributions import LabelCounts
from mtop_batch.table.gate.rules import TableChange
from mtop_batch.table.gate.statistics import TaskChange
from mtop_batch.table.names import published_path
from mtop_batch.table.publish import StoredContent, choose_label_sets, read_stored_content
from mtop_batch.table.published import list_published, read_published
from mtop_batch.table.read import read_published_file
from mtop_batch.table.runs import list_runs, run_uri
from mtop_batch.table.store import StoreListing, list_store, read_label_file, read_label_sets

RECENT_RUNS = 7
_RUNS_LOOKED_AT = 50
# Each holds old and new labels of a source file.
_THREADS = 4
_MAX_CELLS = 2**25


def preview(
    labels: str,
    wanted: ViewDefinition,
    kinds: Mapping[str, OutputKind],
    sources: Sequence[SourceFile],
    *,
    require_all: bool = True,
) -> TableChange:
    """What `publisher.publish` with the same arguments would change.

    Raises:
        LabelTableError: The storage does not answer or refuses, or a published file cannot be read.
    """
    looking = _Preview(labels, wanted, kinds, require_all)
    change = TableChange()
    for of_source in storage.in_threads(looking.of, sources, _THREADS, ahead=_THREADS):
        change.merge(of_source)
    change.tasks = {task: change.tasks[task] for task in wanted.fingerprints if task in change.tasks}
    change.usual = usual_shares(labels, {task: of.fingerprint for task, of in change.tasks.items()})
    return change


class _Preview:
    """One call of `preview`."""

    def __init__(self, labels: str, wanted: ViewDefinition, kinds: Mapping[str, OutputKind], require_all: bool) -> None:
        self._labels, self._wanted, self._require_all = labels, wanted, require_all
        # Scores of labels that a text is not given say nothing of how labels change.
        self._kinds = {task: OutputKind(kind.kind) for task, kind in kinds.items()}
        self._tasks = [task for task in wanted.fingerprints if task != VECTOR]
        self._listing: StoreListing = list_store(labels)
        self._label_sets: Mapping[str, LabelSet] = {
            found.name: found for found in read_label_sets(labels, self._listing)
        }
        self._published: Mapping[str, FileInfo] = list_published(labels)

    def of(self, source: SourceFile) -> TableChange:
        """What changes for one source file; nothing if it will not be published."""
        content = read_stored_content(self._labels, self._listing, source)
        if content is None:
            return TableChange()
        path = published_path(source.path)
        before = read_published(self._labels, path, self._published.get(path)).footer
        choice = choose_label_sets(content, self._wanted, self._tasks, self._label_sets, before)
        wanted = [
            task
            for task in self._tasks
            if task in choice and self._wanted.matches(self._label_sets[choice[task]].view, task)
        ]
        if self._require_all and len(wanted) < len(self._tasks):
            return TableChange()
        changed = [task for task in wanted if not _is_shown(before, source, self._wanted, task)]
        try:
            return (
                self._changes(content, {task: choice[task] for task in changed}, before) if changed else TableChange()
            )
        except DamagedLabelFile:  # publishing finds it too, and leaves the file alone
            return TableChange()

    def _changes(
        self, content: StoredContent, choice: Mapping[str, str], before: PublishedFooter | None
    ) -> TableChange:
        change = TableChange(articles=content.num_rows)
        tasks = list(choice)
        at_once = max(1, _MAX_CELLS // max(content.num_rows, 1))
        for start in range(0, len(tasks), at_once):
            some = {task: choice[task] for task in tasks[start : start + at_once]}
            new = self._new(content, some)
            footer, old = self._old(content.source, new, some, before)
            if start == 0:
                change.new_errors = _new_errors(new, old)
            for task in some:
                of_task = change.tasks[task] = TaskChange(self._kinds[task].kind, self._wanted.identity(task))
                made = None if footer is None else footer.tasks.get(task)
                replaced = ("", "") if made is None else (made.bundle, made.identity)
                of_task.add(task, new, old, source=content.source.path, replaced=replaced)
        return change

    def _new(self, content: StoredContent, choice: Mapping[str, str]) -> pa.Table:
        """The new labels of some tasks."""
        by_set: dict[str, list[str]] = {}
        for task, name in choice.items():
            by_set.setdefault(name, []).extend(self._kinds[task].names(task))
        columns: dict[str, pa.ChunkedArray] = {}
        errors: list[pa.ChunkedArray] = []
        for name, wanted in by_set.items():
            files = content.files[name]
            parts = [read_label_file(self._labels, files[rows], ["id", *wanted, "error"])[1] for rows in sorted(files)]
            table = pa.concat_tables(parts)
            columns |= {column: table[column] for column in table.column_names}
            errors.append(table["error"])
        return pa.table({**columns, "error": errors[0] if len(errors) == 1 else pc.coalesce(*errors)})

    def _old(
        self, source: SourceFile, new: pa.Table, choice: Mapping[str, str], before: PublishedFooter | None
    ) -> tuple[PublishedFooter | None, pa.Table | None]:
        """The published labels of the same articles, null where an article has none."""
        if before is None or not before.has_rows:
            return None, None
        columns = [column for task in choice for column in self._kinds[task].names(task)]
        footer, table = read_published_file(self._labels, published_path(source.path), ["id", *columns, "error"])
        missing = [name for name in columns if name not in table.schema.names]
        for name in missing:
            table = table.append_column(name, pa.nulls(len(table), new.schema.field(name).type))
        if footer.source == source:
            return footer, table
        found = pc.index_in(_as_strings(new["id"]), value_set=_as_strings(table["id"]).combine_chunks())
        return footer, table.take(found)


def _is_shown(before: PublishedFooter | None, source: SourceFile, wanted: ViewDefinition, task: str) -> bool:
    return before is not None and before.source == source and wanted.matches(before.view(task), task)


def _new_errors(new: pa.Table, old: pa.Table | None) -> int:
    has_error = new["error"].is_valid().to_numpy()
    had_error = np.zeros(len(new), bool) if old is None else old["error"].is_valid().to_numpy()
    return int((has_error & ~had_error).sum())


def _as_strings(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return ids.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.chunked_array([[None if value is None else str(value) for value in ids.to_pylist()]], pa.string())


def usual_shares(labels: str, fingerprints: Mapping[str, str]) -> dict[str, list[LabelCounts]]:
    """What the last runs that published some of these tasks showed: per task and run, articles per label.

    Where some of these runs showed labels of the same fingerprint, only they count: what was usual before is then over.
    """
    found: dict[str, list[tuple[str, LabelCounts]]] = {task: [] for task in fingerprints}
    for tasks in _published_by_run(labels):
        for task in found.keys() & tasks.keys():
            counts = Counter[str](tasks[task]["fresh_counts"])
            counts.update(tasks[task]["new_counts"])
            shares = LabelCounts(counts, tasks[task]["fresh_articles"] + tasks[task]["same_articles"])
            if shares.articles and len(found[task]) < RECENT_RUNS:
                found[task].append((tasks[task]["fingerprint"], shares))
        if all(len(runs) >= RECENT_RUNS for runs in found.values()):
            break
    usual = {}
    for task, runs in found.items():
        same = [counts for fingerprint, counts in runs if fingerprint == fingerprints[task]]
        usual[task] = same or [counts for _, counts in runs]
    return usual


def _published_by_run(labels: str) -> Iterator[dict[str, dict[str, Any]]]:
    """What the gate saw of each run that published, the newest first."""

    def read(run: str) -> dict[str, dict[str, Any]]:
        try:
            report = json.loads(storage.read_bytes(run_uri(labels, run, "report.json")))
            return dict(report["gate"]["tasks"]) if report["published"] else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    return storage.in_threads(read, list_runs(labels)[:_RUNS_LOOKED_AT], ahead=RECENT_RUNS)
