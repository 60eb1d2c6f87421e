"""Delta Lake tables by `deltalake`. The only module that imports it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from mtop_batch import storage
from mtop_batch.errors import ConfigError, LabelTableError, MtopError, one_line
from mtop_batch.table.lake.rows import SOURCE_COLUMN, VERSION_COLUMN, TableChanged, VersionRows, by_version
from mtop_batch.table.lake.sync import Change, CommitConflict, shorter_side
from mtop_batch.table.lake.target import LakeTarget

# A file is written again when some of its rows go, and is in memory while it is written: not too large.
_FILE_BYTES = 32 << 20


def connect(target: LakeTarget, _labels: str) -> DeltaLake:
    """The place of a Delta table.

    Raises:
        ConfigError: It is one that the library gets wrong.
    """
    if unquote(str(target.place)) != target.place:  # the library would write there, and read elsewhere
        raise ConfigError(f"--lake {target.place}: deltalake takes the '%' for an escape; name a place without it")
    return DeltaLake(str(target.place), str(target))


class DeltaLake:
    """A `Lake`: a directory or prefix."""

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._name = uri, name
        self._options = storage.s3_options(uri)

    def open(self) -> DeltaSnapshot | None:
        """The newest version."""
        found = self._load()
        if found is None and self._has_files():
            found = self._load()  # somebody may have created it between the two looks
            if found is None:
                raise ConfigError(
                    f"--lake {self._uri} has files, and is not a Delta table; name a place that is empty or not there "
                    "yet"
                )
        return found

    def _load(self) -> DeltaSnapshot | None:
        with _explained(self._name):
            try:
                return DeltaSnapshot(DeltaTable(self._uri, storage_options=self._options), self._name)
            except TableNotFoundError:
                return None

    def _has_files(self) -> bool:
        """Whether there is anything, but for the log that a table begins with."""
        if storage.is_remote(self._uri):
            return storage.exists(self._uri)
        storage.check_directory(self._uri, "--lake")
        return os.path.isdir(self._uri) and any(path.name != "_delta_log" for path in Path(self._uri).iterdir())

    def create(self, schema: pa.Schema) -> None:
        """Version 0, without rows: what a killed first run leaves beside it is not taken for something else."""
        try:
            with _explained(self._name):
                DeltaTable.create(
                    self._uri,
                    schema,
                    mode="ignore",
                    name="labels",
                    configuration={"delta.targetFileSize": str(_FILE_BYTES)},
                    storage_options=self._options,
                )
        except (CommitConflict, LabelTableError):
            if self._load() is None:  # else another run has created it at the same moment
                raise


class DeltaSnapshot:
    """A `LakeSnapshot`: one version."""

    def __init__(self, table: DeltaTable, name: str) -> None:
        self._table, self._name = table, name

    @property
    def columns(self) -> pa.Schema:
        """As Arrow has them."""
        return pa.schema(self._table.schema().to_arrow())

    @property
    def id(self) -> int:
        """The version."""
        return self._table.version()

    def versions(self) -> dict[str, VersionRows]:
        """Counted by the library's own engine, which knows of deletion vectors."""
        query = f"select {VERSION_COLUMN}, {SOURCE_COLUMN}, count(*) from labels group by 1, 2"
        with _explained(self._name):
            found = pa.table(QueryBuilder().register("labels", self._table).execute(query).read_all())
        return by_version(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def commit(self, change: Change, properties: Mapping[str, str]) -> int:
        """One commit, streamed."""
        failure: list[Exception] = []

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                yield from change.batches()
            except (MtopError, TableChanged) as error:  # on the other side of the library it is a text
                failure.append(error)
                raise

        before = self._table.version()
        # Without retries of its own, the library commits on top of the version that was compared, or not at all.
        settings = CommitProperties(custom_metadata=dict(properties), max_commit_retries=0)
        with _explained(self._name, failure):
            write_deltalake(
                self._table,
                pa.RecordBatchReader.from_batches(change.schema, batches()),
                mode="overwrite",
                predicate=_predicate(change) if change.kept else None,
                schema_mode="overwrite" if change.new_ids else "merge",
                commit_properties=settings,
            )
        return before + 1


def _predicate(change: Change) -> str:
    """SQL for the rows that are replaced; the new rows, too, must be among them."""
    is_in, versions = shorter_side(change)
    if not versions:  # there are new columns only
        return "false"
    first, last = (name.replace("'", "''") for name in change.sources)
    listed = ", ".join(f"'{version}'" for version in sorted(versions))
    in_range = f"{SOURCE_COLUMN} >= '{first}' AND {SOURCE_COLUMN} <= '{last}'"
    return f"{in_range} AND {VERSION_COLUMN} {'IN' if is_in else 'NOT IN'} ({listed})"


@contextmanager
def _explained(name: str, failure: list[Exception] | None = None) -> Iterator[None]:
    """Turn what the library raises into one line, or into what the rows that it read have raised."""
    try:
        yield
    except MtopError:
        raise
    except Exception as error:  # the library raises plain exceptions too
        if failure:
            raise failure[0] from error
        if isinstance(error, CommitFailedError):
            raise CommitConflict from error
        raise LabelTableError(f"{name} cannot be used: {one_line(error)}") from error
