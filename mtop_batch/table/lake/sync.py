"""Bringing a lake table to what the published table is, in one commit, by the libraries' own overwrite.

The two are compared by the versions that their rows say, so nothing is remembered between runs: one that was killed
before its commit leaves the old snapshot, and the next run catches up; one that was killed behind it has nothing left
to do. Two runs at once are told apart by the formats' own optimistic concurrency: the second compares afresh.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import pyarrow as pa

from mtop_batch.errors import ConfigError, LabelTableError
from mtop_batch.lines import counted, listed
from mtop_batch.table.lake.rows import (
    SOURCE_COLUMN,
    VERSION_COLUMN,
    CurrentTable,
    TableChanged,
    VersionRows,
    read_current,
)
from mtop_batch.table.lake.target import LakeTarget

_ATTEMPTS = 8
_LONGEST_WAIT_S = 5.0
_LIBRARIES = {"delta": "deltalake", "iceberg": "pyiceberg"}


@dataclass(frozen=True)
class Change:
    """What makes a lake table equal to the published table.

    Args:
        schema: The columns of the new rows.
        removed: Versions whose rows go.
        kept: Versions whose rows stay.
        added: Versions whose rows come.
        sources: The first and the last source file of the rows that go or come, in their order as strings. Libraries
            pass over data files that have none in between: rows lie in the order of source files.
        new_ids: Whether the ids get another type; then all rows are new.
        batches: The new rows, each time it is called.
    """

    schema: pa.Schema
    removed: frozenset[str]
    kept: frozenset[str]
    added: Mapping[str, VersionRows]
    sources: tuple[str, str]
    new_ids: bool
    batches: Callable[[], Iterator[pa.RecordBatch]]


class CommitConflict(Exception):
    """Somebody else has committed since the table was read; nothing was committed."""


class LakeSnapshot(Protocol):
    """A lake table at one snapshot."""

    @property
    def columns(self) -> pa.Schema:
        """Its columns."""

    @property
    def id(self) -> int | None:
        """Its version or snapshot id; None while it has none."""

    def versions(self) -> Mapping[str, VersionRows]:
        """The rows of each version that it has, as `by_version` gives them."""

    def commit(self, change: Change, properties: Mapping[str, str]) -> int | None:
        """Make the change in one commit, which keeps the properties; the new snapshot.

        Raises:
            CommitConflict: It is not at this snapshot any more.
            LabelTableError: The library cannot; the table is what it was.
        """


class Lake(Protocol):
    """Where a lake table is, or will be."""

    def open(self) -> LakeSnapshot | None:
        """The table as it is now; None if there is none.

        Raises:
            ConfigError: Something else is in its place.
            LabelTableError: The catalogue or the storage does not answer, or refuses.
        """

    def create(self, schema: pa.Schema) -> None:
        """Create it without rows; one that somebody else has created meanwhile is fine."""


@dataclass(frozen=True)
class LakeCommit:
    """What publishing to a lake table did.

    Args:
        format: Of the table.
        table: Which it is.
        snapshot: Delta's version or Iceberg's snapshot id that has the rows of the published table.
        committed: Whether this run made it; else the table was up to date.
        files: Source files with new rows.
        rows: New rows.
        removed_rows: Rows that made way.
    """

    format: str
    table: str
    snapshot: int | None
    committed: bool
    files: int = 0
    rows: int = 0
    removed_rows: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; a snapshot id has more digits than a JavaScript number, so it is text."""
        snapshot = None if self.snapshot is None else str(self.snapshot)
        return {**asdict(self), "snapshot": snapshot, "summary": self.summary()}

    def summary(self) -> str:
        """What was done, as part of a line."""
        at = "version" if self.format == "delta" else "snapshot"
        if not self.committed:
            return f"{self.table} already up to date, {at} {self.snapshot}"
        return (
            f"{self.table} at {at} {self.snapshot}: {counted(self.rows, 'row')} of {counted(self.files, 'file')} in "
            f"place of {self.removed_rows:,}"
        )


def check_lake(target: LakeTarget, labels: str) -> None:
    """Make sure that a lake table can be published to, before any work starts; nothing is written.

    Raises:
        ConfigError: The library is missing, the catalogue or storage does not answer or refuses, or what is there is
            not a table of a label table.
    """
    try:
        table = connect(target, labels).open()
        if table is not None:
            current = read_current(labels)
            _check_columns(target, table.columns, None if current is None else current.schema)
    except LabelTableError as error:
        raise ConfigError(str(error)) from error


def sync_lake(target: LakeTarget, labels: str, run: str) -> LakeCommit | None:
    """Commit to a lake table what makes it equal to the published table; None if nothing has ever been published.

    Args:
        target: The lake table.
        labels: The label table.
        run: Id of the run, which the commit keeps.

    Raises:
        ConfigError: As `check_lake`.
        LabelTableError: The table changes all the time, or its library, catalogue or storage fails. Readers of the
            lake table see what they saw before, unless the message says otherwise; the same call does the rest.
    """
    lake = connect(target, labels)
    for attempt in range(_ATTEMPTS):
        if attempt > 1:  # the first one may only have created the table
            time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.1 * 2**attempt)))
        current = read_current(labels)
        if current is None:
            return None
        table = lake.open()
        if table is None:
            with suppress(CommitConflict):
                lake.create(current.schema)
            continue
        _check_columns(target, table.columns, current.schema)
        there = table.versions()
        change = _change(current, table.columns, there)
        if change is None:
            return LakeCommit(target.format, str(target), table.id, committed=False)
        try:
            snapshot = table.commit(change, {"mtop_run": run, "mtop_labels": labels})
        except (CommitConflict, TableChanged):
            continue
        rows, removed_rows = _count(change.added), _count({version: there[version] for version in change.removed})
        return LakeCommit(target.format, str(target), snapshot, True, len(change.added), rows, removed_rows)
    raise LabelTableError(
        f"{target} changes whenever it is committed to; find out what else writes it, and run the same command again. "
        "The published table is as it should be"
    )


def connect(target: LakeTarget, labels: str) -> Lake:
    """The place of a lake table, by its library.

    Raises:
        ConfigError: The library is not installed, or the catalogue's configuration cannot work.
        LabelTableError: The catalogue does not answer.
    """
    try:
        module = importlib.import_module(f"mtop_batch.table.lake.{target.format}")
    except ImportError as error:
        library = _LIBRARIES[target.format]
        raise ConfigError(
            f"--format {target.format} needs {library}: pip install 'mtop-batch[{target.format}]' ({error})"
        ) from error
    connected: Lake = module.connect(target, labels)
    return connected


def _change(current: CurrentTable, columns: pa.Schema, there: Mapping[str, VersionRows]) -> Change | None:
    """What is to be done; None if nothing is.

    A version with another number of rows is replaced; where somebody else has added rows without a version, or ids get
    another type, all is written anew.
    """
    schema = current.schema
    new_ids = _plain(columns.field("id").type) != schema.field("id").type
    is_known = not new_ids and "" not in there
    kept = frozenset(version for version, rows in current.rows.items() if is_known and there.get(version) == rows)
    added = {version: rows for version, rows in current.rows.items() if version not in kept}
    removed = frozenset(there.keys() - kept)
    if not added and not removed and set(schema.names) <= set(columns.names):
        return None
    names = [rows.source_file for rows in (*added.values(), *(there[version] for version in removed))]
    sources = (min(names, default=""), max(names, default=""))
    return Change(schema, removed, kept, added, sources, new_ids, lambda: current.batches(added))


def _count(versions: Mapping[str, VersionRows]) -> int:
    return sum(rows.num_rows for rows in versions.values())


def _check_columns(target: LakeTarget, there: pa.Schema, wanted: pa.Schema | None) -> None:
    """Refuse a table of something else, and columns whose type is not that of ours; further columns stay, as null."""
    own = [column for column in ("id", SOURCE_COLUMN, VERSION_COLUMN) if column not in there.names]
    if own:
        raise ConfigError(
            f"{target} is not one that mtop has created: it lacks {listed(own)}, and has {listed(there.names)}; name "
            "another place"
        )
    for field in wanted or ():
        if field.name != "id" and field.name in there.names:
            found = _plain(there.field(field.name).type)
            if found != field.type:
                raise ConfigError(
                    f"{target} has a column {field.name} of type {found}, the label table one of type {field.type}; "
                    "name another place, or drop that column"
                )


def _plain(arrow: pa.DataType) -> pa.DataType:
    """A type without the difference between strings, bytes or lists that Arrow keeps in different ways."""
    if pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return pa.string()
    if pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
        return pa.list_(_plain(arrow.value_type))
    if pa.types.is_struct(arrow):
        return pa.struct([pa.field(member.name, _plain(member.type)) for member in arrow])
    return pa.binary() if pa.types.is_large_binary(arrow) or pa.types.is_binary_view(arrow) else arrow


def shorter_side(change: Change) -> tuple[bool, Collection[str]]:
    """The condition for the rows that go, or are new: whether it is "one of", or else "none of", and the versions."""
    some = change.removed | change.added.keys()
    return (True, some) if len(some) <= len(change.kept) else (False, change.kept)
