"""Iceberg tables by `pyiceberg`. The only module that imports it.

One change of a table is one commit to its catalogue. Where rows go and rows come, the library notes two or three
snapshots in that commit (delete, overwrite, append); readers see the table before the first or behind the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NoSuchTableError,
    ValidationException,
)
from pyiceberg.expressions import (
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    In,
    LessThanOrEqual,
    Not,
    Reference,
)
from pyiceberg.io.pyarrow import bin_pack_record_batches, pyarrow_to_schema, schema_to_pyarrow, write_file
from pyiceberg.table import Table, Transaction, WriteTask
from pyiceberg.utils.config import Config

from mtop_batch import storage
from mtop_batch.errors import ConfigError, LabelTableError, MtopError, one_line
from mtop_batch.table.lake.rows import SOURCE_COLUMN, VERSION_COLUMN, TableChanged, VersionRows, by_version
from mtop_batch.table.lake.sync import Change, CommitConflict, shorter_side
from mtop_batch.table.lake.target import LakeTarget

# A file is written again when some of its rows go, and is in memory while it is written: not too large. In memory, that
# is; on disk it takes a fifth or less.
_FILE_BYTES = 128 << 20
_PROPERTIES = {
    "write.target-file-size-bytes": str(_FILE_BYTES),
    # By default bounds are those of the first 16 characters, which paths may have in common.
    f"write.metadata.metrics.column.{SOURCE_COLUMN}": "full",
    # Else the library would put rows that another run has added meanwhile there once more.
    "commit.retry.num-retries": "0",
}


def connect(target: LakeTarget, labels: str) -> IcebergLake:
    """The place of an Iceberg table: its catalogue, by pyiceberg's own configuration.

    Raises:
        ConfigError: There is no such catalogue, or it cannot be loaded.
    """
    is_uri = "://" in target.catalog
    name = "default" if is_uri else target.catalog
    try:
        known = Config().get_catalog_config(name) or {}
        if not is_uri and not known:
            raise ConfigError(
                f"--catalog {name!r} is not configured; give its URI in ~/.pyiceberg.yaml or as "
                f"PYICEBERG_CATALOG__{name.upper()}__URI, or name a URI such as sqlite:////data/catalog.db"
            )
        properties: dict[str, Any] = {**_s3_properties(), **known}
        catalog = load_catalog(name, **properties | ({"uri": target.catalog} if is_uri else {}))
    except MtopError:
        raise
    except Exception as error:  # those of databases, HTTP and configuration share no base class
        raise ConfigError(f"--catalog {target.catalog} cannot be used: {one_line(error)}") from error
    return IcebergLake(catalog, target, target.place or _default_place(catalog, labels))


def _default_place(catalog: Catalog, labels: str) -> str | None:
    """Where the files of a new table lie if the catalogue, a database without a warehouse, does not say."""
    is_database = str(catalog.properties.get("uri", "")).startswith(("sqlite", "postgresql"))
    return storage.join(labels, "iceberg") if is_database and "warehouse" not in catalog.properties else None


def _s3_properties() -> dict[str, str]:
    """The credentials of the environment, under pyiceberg's names."""
    names = {
        "AWS_ENDPOINT_URL": "s3.endpoint",
        "AWS_REGION": "s3.region",
        "AWS_ACCESS_KEY_ID": "s3.access-key-id",
        "AWS_SECRET_ACCESS_KEY": "s3.secret-access-key",
        "AWS_SESSION_TOKEN": "s3.session-token",
    }
    return {names[name]: value for name, value in storage.s3_options("s3://").items() if name in names}


class IcebergLake:
    """A `Lake`: a name in a catalogue."""

    def __init__(self, catalog: Catalog, target: LakeTarget, place: str | None) -> None:
        self._catalog, self._name, self._place = catalog, str(target), place
        self._table = tuple(target.table.split("."))

    def open(self) -> IcebergSnapshot | None:
        """The newest snapshot."""
        found = self._load()
        if found is None and self._has_files():
            found = self._load()  # somebody may have created it between the two looks
            if found is None:
                raise ConfigError(
                    f"--lake {self._place} has files, and the catalogue knows no table {'.'.join(self._table)}; name a "
                    "place that is empty or not there yet, or the catalogue that knows it"
                )
        return found

    def _load(self) -> IcebergSnapshot | None:
        with _explained(self._name):
            try:
                return IcebergSnapshot(self._catalog.load_table(self._table), self._name)
            except NoSuchTableError:
                return None

    def _has_files(self) -> bool:
        """Whether there is anything where a new table is to be, but for metadata of a creation that was cut short."""
        files = [] if self._place is None else storage.list_files(self._place)
        return not all(file.path.startswith("metadata/") for file in files)

    def create(self, schema: pa.Schema) -> None:
        """Without a snapshot; the namespace too."""
        catalog, namespace = self._catalog, self._table[:-1]
        with _explained(self._name):
            # Two runs may be here at once, and databases say so in ways of their own.
            with _unless(lambda: catalog.namespace_exists(namespace)):
                catalog.create_namespace_if_not_exists(namespace)
            with _unless(lambda: catalog.table_exists(self._table)):
                catalog.create_table(self._table, schema, location=self._place, properties=_PROPERTIES)


class IcebergSnapshot:
    """A `LakeSnapshot`: as it was read, and behind each commit."""

    def __init__(self, table: Table, name: str) -> None:
        self._table, self._name = table, name

    @property
    def columns(self) -> pa.Schema:
        """As Arrow has them."""
        return schema_to_pyarrow(self._table.schema(), include_field_ids=False)

    @property
    def id(self) -> int | None:
        """The snapshot's id."""
        current = self._table.current_snapshot()
        return None if current is None else current.snapshot_id

    def versions(self) -> dict[str, VersionRows]:
        """Counted in a scan of two columns."""
        columns = (VERSION_COLUMN, SOURCE_COLUMN)
        groups: list[tuple[str | None, str | None, int]] = []
        with _explained(self._name):
            for batch in self._table.scan(selected_fields=columns).to_arrow_batch_reader():
                counted = pa.table(batch).group_by(columns).aggregate([([], "count_all")])
                names = (*columns, "count_all")
                groups += zip(*(counted[name].to_pylist() for name in names), strict=True)
        return by_version(groups)

    def commit(self, change: Change, properties: Mapping[str, str]) -> int | None:
        """One commit, file by file."""
        with _explained(self._name), self._table.transaction() as transaction:
            if change.removed:
                transaction.delete(_condition(change), snapshot_properties=dict(properties))
            _evolve(transaction, change)
            if change.added:
                _append(transaction, self._table, change, dict(properties))
        return self.id


def _condition(change: Change) -> BooleanExpression:
    """The rows that go."""
    if not change.kept:
        return AlwaysTrue()
    is_in, versions = shorter_side(change)
    # Pydantic's types hide how expressions are made.
    found = In(Reference(VERSION_COLUMN), set(versions))  # type: ignore[call-arg, arg-type]
    first, last = change.sources
    not_before = GreaterThanOrEqual(Reference(SOURCE_COLUMN), first)  # type: ignore[call-arg, arg-type]
    not_behind = LessThanOrEqual(Reference(SOURCE_COLUMN), last)  # type: ignore[call-arg, arg-type]
    return And(not_before, not_behind, found if is_in else Not(found))


def _evolve(transaction: Transaction, change: Change) -> None:
    """Give the table the columns that it lacks; ids of another type are another column."""
    if change.new_ids:
        with transaction.update_schema(allow_incompatible_changes=True) as update:
            update.delete_column("id")
    with transaction.update_schema() as update:
        update.union_by_name(change.schema)
    if change.new_ids:
        with transaction.update_schema() as update:
            update.move_first("id")


def _append(transaction: Transaction, table: Table, change: Change, properties: dict[str, str]) -> None:
    """Add the rows as one snapshot.

    The library's own `append` of a stream reads as far ahead as it can, so the files are handed to it one by one.
    """
    schema = transaction.table_metadata.schema()
    task_schema = pyarrow_to_schema(change.schema, name_mapping=schema.name_mapping)
    with transaction.update_snapshot(snapshot_properties=properties).fast_append() as append:
        for number, batches in enumerate(bin_pack_record_batches(change.batches(), _FILE_BYTES)):
            task = WriteTask(append.commit_uuid, number, task_schema, batches)
            for data_file in write_file(table.io, transaction.table_metadata, iter([task])):
                append.append_data_file(data_file)


@contextmanager
def _unless(is_there: Callable[[], bool]) -> Iterator[None]:
    """Whatever is raised does not matter if what was to be created is there."""
    try:
        yield
    except Exception:
        if not is_there():
            raise


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the library, its catalogues and its storage raise into one line."""
    try:
        yield
    except (MtopError, TableChanged):
        raise
    except (CommitFailedException, ValidationException) as error:
        raise CommitConflict from error
    except CommitStateUnknownException as error:
        raise LabelTableError(
            f"{name}: the catalogue did not answer a commit, which may have been made or not: {one_line(error)}; the "
            "same command finds out and does the rest"
        ) from error
    except Exception as error:  # those of databases, HTTP and file systems share no base class
        raise LabelTableError(f"{name} cannot be used: {one_line(error)}") from error
