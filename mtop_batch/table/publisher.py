"""Publishing a run's labels: brings the published table to what the store has of a definition.

Where the table gets a task or another type of ids, every published file is written with the columns that all are to
have, and `_table.json` says so only when all have them. So a run that is cut short leaves a table of which each file is
right, though some may lack a column, and the next run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.lines import counted
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.columns import OutputKind
from mtop_batch.table.definition import VECTOR, LabelSet, ViewDefinition
from mtop_batch.table.names import displaced, published_path
from mtop_batch.table.publish import (
    IdsDoNotFit,
    StoredContent,
    choose_label_sets,
    publish_content,
    read_stored_content,
    with_columns,
)
from mtop_batch.table.published import (
    PublishedFile,
    TableSchema,
    list_published,
    read_published,
    read_table_schema,
    remove_published,
    replace_table_schema,
    unpublish,
)
from mtop_batch.table.store import list_store, read_label_sets

_ATTEMPTS = 10
# Each holds the labels of a slice and a compressed published file.
_THREADS = 8


@dataclass
class Published:
    """What publishing did, in source files.

    Args:
        files: Replaced or new, with their rows.
        current: That were what they should be.
        incomplete: Of which the store lacks labels of a wanted task: these tasks stay what they were.
        columns_only: That only got other columns.
        removed: Of sources that are gone.
        damaged: Label files that were found damaged, with the reason.
    """

    files: dict[str, int] = field(default_factory=dict)
    current: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    columns_only: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the published files that were replaced or are new."""
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The numbers, and what is not right, as JSON-ready values."""
        return {
            "files": len(self.files),
            "rows": self.rows,
            "files_already_current": len(self.current),
            "files_with_new_columns_only": len(self.columns_only),
            "incomplete_files": sorted(self.incomplete),
            "damaged_files": dict(sorted(self.damaged.items())),
        }

    def summary(self) -> str:
        """What was done, as part of a line."""
        parts = [f"{counted(len(self.files), 'file')} published"]
        counts = {
            "only got columns": self.columns_only,
            "removed": self.removed,
            "not published, for labels are missing": self.incomplete,
            "not published, for label files are damaged": self.damaged,
        }
        parts += [f"{len(paths):,} {what}" for what, paths in counts.items() if paths]
        return ", ".join(parts)


def publish(
    labels: str,
    wanted: ViewDefinition,
    kinds: Mapping[str, OutputKind],
    sources: Sequence[SourceFile],
    run: str,
    *,
    orphans: Sequence[str] = (),
    require_all: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Published:
    """Make the published files of some sources what the store has of a definition.

    Args:
        labels: The label table.
        wanted: The definition of the wanted tasks.
        kinds: What comes out of them.
        sources: The source files, as they are in the corpus.
        run: Id of the run.
        orphans: Paths of published files whose source is gone, to remove, with their label files.
        require_all: A source of which the store lacks a wanted task is left alone; else it gets what there is.
        check: Called before each write; raises if this run may not write any more.

    Raises:
        LabelTableError: The storage does not answer or refuses. Each published file is the old one or the new one;
            the same call does the rest.
    """
    return _Publishing(labels, wanted, kinds, run, require_all, check).publish(sources, orphans)


class _Publishing:
    """One call of `publish`."""

    def __init__(
        self,
        labels: str,
        wanted: ViewDefinition,
        kinds: Mapping[str, OutputKind],
        run: str,
        require_all: bool,
        check: Callable[[], None],
    ) -> None:
        self._labels, self._wanted, self._run, self._check = labels, wanted, run, check
        self._tasks = [task for task in wanted.fingerprints if task != VECTOR]
        self._kinds = {task: kinds[task] for task in self._tasks}
        self._require_all = require_all
        self._label_sets: Mapping[str, LabelSet]
        self._look()
        self._table = read_table_schema(labels)
        self._result = Published()

    def publish(self, sources: Sequence[SourceFile], orphans: Sequence[str]) -> Published:
        contents = {
            source: content
            for source, content in zip(sources, self._stored(sources), strict=True)
            if content is not None
        }
        schema = (self._table or TableSchema()).with_tasks(self._kinds)
        for content in contents.values():
            schema = schema.with_id_type(content.id_type)
        made_way = self._make_way(contents.values())
        for _ in range(_ATTEMPTS):
            try:
                self._publish_all(sources, contents, schema)
                if self._table != schema:
                    self._give_columns(schema, orphans)
            except IdsDoNotFit:
                schema = TableSchema(schema.kinds, pa.string())
                continue
            if self._note(schema):
                break
            # Another publisher has brought columns meanwhile.
            self._table = read_table_schema(self._labels)
            schema = (self._table or TableSchema()).merged(schema)
        else:
            raise LabelTableError(f"the columns of {self._labels} change all the time; find out what else writes it")
        self._forget(set(orphans))  # first: while a published file is there, the next run knows that it is an orphan
        for path in orphans:
            self._unpublish(path, schema)
        self._result.removed = [*made_way, *self._result.removed]
        return self._result

    def _look(self) -> None:
        """List the store."""
        self._listing = list_store(self._labels)
        self._label_sets = {found.name: found for found in read_label_sets(self._labels, self._listing)}

    def _note(self, schema: TableSchema) -> bool:
        """Note the columns that all files have; False if somebody else has noted others."""
        if self._table == schema:
            return read_table_schema(self._labels) == schema
        self._check()
        if not replace_table_schema(self._labels, self._table, schema):
            return False
        self._table = schema
        # Who published a file since they were listed, and had noted nothing new, could not know of these columns.
        self._give_columns(schema, ())
        return True

    def _stored(self, sources: Sequence[SourceFile]) -> Iterable[StoredContent | None]:
        return storage.in_threads(
            lambda source: read_stored_content(self._labels, self._listing, source), sources, _THREADS
        )

    def _publish_all(
        self,
        sources: Sequence[SourceFile],
        contents: Mapping[SourceFile, StoredContent],
        schema: TableSchema,
    ) -> None:
        before = list_published(self._labels)
        self._result = Published(files=self._result.files, columns_only=self._result.columns_only)

        def one(source: SourceFile) -> None:
            content = contents.get(source)
            if content is None:
                self._result.incomplete.append(source.path)
            else:
                self._publish_one(content, before.get(published_path(source.path)), schema)

        for _ in storage.in_threads(one, sources, _THREADS):
            pass

    def _publish_one(self, content: StoredContent, info: FileInfo | None, schema: TableSchema) -> None:
        path = published_path(content.source.path)
        for _ in range(_ATTEMPTS):
            now = read_published(self._labels, path, info)
            if now.footer and now.footer.source == content.source:
                made_of = {made.label_set for made in now.footer.tasks.values()}
                if made_of - content.complete_sets:  # somebody has labelled, and published, since the store was listed
                    self._look()
                    content = read_stored_content(self._labels, self._listing, content.source) or content
            choice = choose_label_sets(content, self._wanted, self._tasks, self._label_sets, now.footer)
            is_complete = all(self._is_wanted(task, choice) for task in self._tasks)
            if not is_complete and content.source.path not in self._result.incomplete:
                self._result.incomplete.append(content.source.path)
            if not choice or (self._require_all and not is_complete):
                return
            if self._is_current(now, content, choice, schema):
                if is_complete and content.source.path not in self._result.files:
                    self._result.current.append(content.source.path)
                return
            # Other tasks' columns stay, whoever added them.
            columns = schema.with_more({task: self._label_sets[name].kinds[task] for task, name in choice.items()})
            columns = columns.with_columns_of(now.schema)
            self._check()
            try:
                replaced = publish_content(self._labels, content, choice, columns, now, self._run)
            except DamagedLabelFile as error:
                self._result.damaged[content.source.path] = str(error)
                return
            if replaced:
                self._result.files[content.source.path] = content.num_rows
                return
            info = list_one(self._labels, path)
        raise LabelTableError(f"{path} changes whenever it is published; find out what else writes {self._labels}")

    def _is_wanted(self, task: str, choice: Mapping[str, str]) -> bool:
        """Whether a task's labels are those of the wanted definition."""
        return task in choice and self._wanted.matches(self._label_sets[choice[task]].view, task)

    def _is_current(
        self, now: PublishedFile, content: StoredContent, choice: Mapping[str, str], schema: TableSchema
    ) -> bool:
        footer = now.footer
        if footer is None or footer.source != content.source or not now.has_columns(schema):
            return False
        return {task: made.label_set for task, made in footer.tasks.items()} == choice

    def _give_columns(self, schema: TableSchema, orphans: Sequence[str]) -> None:
        """Give the table's columns to all published files that lack them."""
        before = list_published(self._labels)

        def one(path: str) -> None:
            info: FileInfo | None = before[path]
            for _ in range(_ATTEMPTS):
                now = read_published(self._labels, path, info)
                if now.info is None or now.has_columns(schema.with_columns_of(now.schema)):
                    return
                self._check()
                try:
                    replaced = with_columns(self._labels, now, schema, self._run)
                except DamagedLabelFile as error:
                    self._result.damaged[path] = str(error)
                    return
                if replaced:
                    self._result.columns_only.append(path)
                    return
                info = list_one(self._labels, path)

        for _ in storage.in_threads(one, sorted(before.keys() - set(orphans)), _THREADS):
            pass

    def _make_way(self, contents: Iterable[StoredContent]) -> list[str]:
        """Remove published files where a path is to be a directory that is a file's now, or the other way round.

        Their source files are gone: on the corpus' storage, too, a path is one of the two.
        """
        targets = [published_path(content.source.path) for content in contents if content.complete_sets]
        paths = displaced(list_published(self._labels), targets)
        for path in paths:
            self._check()
            before = read_published(self._labels, path, list_one(self._labels, path))
            remove_published(self._labels, before, targets)
        return paths

    def _forget(self, orphans: Collection[str]) -> None:
        """Remove the label files of source files that are gone, which `mtop publish` would bring back."""
        for file, name in self._listing.names.items():
            if published_path(name.source_path) in orphans:
                self._check()
                storage.delete(file.uri(self._labels))

    def _unpublish(self, path: str, schema: TableSchema) -> None:
        now = read_published(self._labels, path, list_one(self._labels, path))
        self._check()
        if unpublish(self._labels, now, schema, self._run):
            self._result.removed.append(path)


def list_one(labels: str, path: str) -> FileInfo | None:
    """A published file as it is listed now; None if there is none."""
    try:
        found = storage.stat(storage.join(labels, "current", path))
    except FileNotFoundError:
        return None
    return FileInfo(path, found.size, found.version)
