"""What the published table has, as rows of a lake table: typed as Delta and Iceberg have types, and named by version.

A row says which source file it comes from, and which labels of that file it shows: `labels_version` is a hash of the
label files that the published file was made of. So whoever compares the versions of both tables knows what is to be
replaced, without a record beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from mtop_batch import storage
from mtop_batch.errors import ConfigError, DamagedLabelFile
from mtop_batch.lines import shown
from mtop_batch.table.columns import ENTITIES_TYPE
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.names import PUBLISHED
from mtop_batch.table.publish import cast_column
from mtop_batch.table.published import TableSchema, list_published, read_published, read_table_schema
from mtop_batch.table.read import PublishedTable, open_table

SOURCE_COLUMN, VERSION_COLUMN = "source_file", "labels_version"
_THREADS = 16
# What both formats have in the same way; other types of ids become strings.
_TYPES = {
    **dict.fromkeys((pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.date32(), pa.binary())),
    **dict.fromkeys((pa.int8(), pa.int16(), pa.uint8(), pa.uint16()), pa.int32()),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.large_binary(): pa.binary(),
    **dict.fromkeys((pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")), pa.timestamp("us")),
    **dict.fromkeys((pa.timestamp(unit, "UTC") for unit in ("s", "ms", "us")), pa.timestamp("us", "UTC")),
}


class TableChanged(Exception):
    """A published file is not what it was when the tables were compared."""


class VersionRows(NamedTuple):
    """The rows of one version: which source file they are of, and how many."""

    source_file: str
    num_rows: int


@dataclass(frozen=True)
class CurrentTable:
    """The published table at one moment.

    Args:
        table: Its rows.
        paths: Version -> published file.
        rows: Version -> its rows.
    """

    table: PublishedTable
    paths: Mapping[str, str]
    rows: Mapping[str, VersionRows]

    @property
    def schema(self) -> pa.Schema:
        """The columns that its rows have in a lake table."""
        return lake_schema(self.table.schema)

    def batches(self, versions: Collection[str]) -> Iterator[pa.RecordBatch]:
        """The rows of these versions, file by file, in the order of the files.

        Raises:
            TableChanged: A file has been replaced since.
            LabelTableError: A file cannot be read.
        """
        chosen = {self.paths[version]: version for version in versions}
        table = replace(self.table, paths=tuple(sorted(chosen)))
        seen: set[str] = set()
        for footer, rows in table.files():
            version = labels_version(footer, self.table.columns)
            if version not in versions:
                raise TableChanged(footer.source.path)
            seen.add(version)
            yield from _lake_rows(rows, footer.source.path, version, self.schema).to_batches()
        if len(seen) < len(chosen):
            raise TableChanged("a published file is gone")


def read_current(labels: str) -> CurrentTable | None:
    """The published table, by versions; None if nothing has ever been published.

    Raises:
        ConfigError: A partition key has the name of a column that a lake table has for itself.
        LabelTableError: A published file cannot be read, or the storage does not answer.
    """
    if read_table_schema(labels) is None:
        return None
    table, infos = open_table(labels, None, None), list_published(labels)
    for key in table.partition_columns:
        if key.lower() in (SOURCE_COLUMN, VERSION_COLUMN):
            raise ConfigError(
                f"the partition key {key!r} has the name of a column that Delta and Iceberg tables get; rename the "
                "directories of the corpus, or publish as Parquet only"
            )

    def footer_of(path: str) -> PublishedFooter:
        found = read_published(labels, path, infos.get(path)).footer
        if found is None:
            uri = storage.join(labels, PUBLISHED, path)
            raise DamagedLabelFile(f"{shown(uri)} cannot be read; remove it and run `mtop publish`")
        return found

    paths: dict[str, str] = {}
    rows: dict[str, VersionRows] = {}
    for path, footer in zip(table.paths, storage.in_threads(footer_of, table.paths, _THREADS), strict=True):
        if footer.has_rows and footer.num_rows:
            version = labels_version(footer, table.columns)
            paths[version], rows[version] = path, VersionRows(footer.source.path, footer.num_rows)
    return CurrentTable(table, paths, rows)


def labels_version(footer: PublishedFooter, columns: TableSchema) -> str:
    """Which rows a published file has: 32 hexadecimal digits of all that they depend on.

    Scores of all labels stand in the order that the table has now, whatever that of the label files is.
    """
    made_of = {task: made.label_set for task, made in sorted(footer.tasks.items())}
    content = [footer.source.path, str(lake_type(columns.id_type)), made_of, footer.label_files]
    scored = {task: columns.kinds[task].scored for task, made in footer.tasks.items() if made.scores}
    content += [scored] if scored else []
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def by_version(groups: Iterable[tuple[str | None, str | None, int]]) -> dict[str, VersionRows]:
    """Versions, source files and numbers of rows as a lake table counts them; "" for rows that no run has written.

    >>> by_version([("v1", "a", 2), ("v1", "a", 1), (None, "a", 1)])
    {'v1': VersionRows(source_file='a', num_rows=3), '': VersionRows(source_file='', num_rows=1)}
    """
    found: dict[str, VersionRows] = {}
    for version, source, num_rows in groups:
        if not version or not source or found.get(version, (source,))[0] != source:
            version, source = "", ""
        before = found[version].num_rows if version in found else 0
        found[version] = VersionRows(source, before + num_rows)
    return found


def lake_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of a lake table for these of the published table."""
    fields = [pa.field(field.name, lake_type(field.type)) for field in schema]
    return pa.schema([*fields, pa.field(SOURCE_COLUMN, pa.string()), pa.field(VERSION_COLUMN, pa.string())])


def lake_type(arrow: pa.DataType) -> pa.DataType:
    """The type that a column has in a lake table.

    >>> lake_type(pa.float32()), lake_type(pa.uint32()), lake_type(pa.dictionary(pa.int32(), pa.string()))
    (DataType(float), DataType(int64), DataType(string))
    """
    if pa.types.is_dictionary(arrow):
        return lake_type(arrow.value_type)
    is_list = pa.types.is_list(arrow) or pa.types.is_fixed_size_list(arrow)
    if is_list and arrow.value_type in (pa.string(), pa.float32()):  # labels and scores
        return pa.list_(arrow.value_type)
    if pa.types.is_decimal128(arrow) or arrow == ENTITIES_TYPE:
        return arrow
    return (_TYPES[arrow] or arrow) if arrow in _TYPES else pa.string()


def _lake_rows(rows: pa.Table, source: str, version: str, schema: pa.Schema) -> pa.Table:
    constants = {SOURCE_COLUMN: source, VERSION_COLUMN: version}
    columns = []
    for field in schema:
        if field.name in constants:
            columns.append(pa.repeat(pa.scalar(constants[field.name], pa.string()), len(rows)))
        else:
            columns.append(cast_column(rows[field.name], field, source))
    return pa.table(columns, schema=schema)
