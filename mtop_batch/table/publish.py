"""Making published files: one per source file, of label files, replaced in one step.

A published file is a pure function of label files, which its footer names. It is written on condition that the one
before it is still there, so that whoever reads the table sees each article once, with labels of one content and of one
definition per task, whatever else goes on. If a write fails, the file before it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.table.columns import dictionary_columns, with_labels_of
from mtop_batch.table.definition import LabelSet, ViewDefinition
from mtop_batch.table.footer import FOOTER_KEY, LabelFooter, PublishedFooter, PublishedTask
from mtop_batch.table.names import PUBLISHED, content_id
from mtop_batch.table.published import PublishedFile, TableSchema, replace_published
from mtop_batch.table.row_ranges import RowRange, is_tiling
from mtop_batch.table.store import (
    LabelFile,
    StoreListing,
    open_table_file,
    read_footer,
    read_label_file,
    read_metadata,
)


@dataclass(frozen=True)
class StoredContent:
    """What the store has of one content of a source file.

    Args:
        source: The source file.
        num_rows: Its rows.
        files: Label set -> rows -> label file.
        id_type: The type of its ids.
    """

    source: SourceFile
    num_rows: int
    files: Mapping[str, Mapping[RowRange, LabelFile]]
    id_type: pa.DataType

    @cached_property
    def complete_sets(self) -> frozenset[str]:
        """The label sets that have all its rows."""
        return frozenset(name for name, files in self.files.items() if is_tiling(files, self.num_rows))


def read_stored_content(labels: str, listing: StoreListing, source: SourceFile) -> StoredContent | None:
    """What the store has of a source file's content; None if it has no readable label file of it.

    Raises:
        LabelTableError: The storage does not answer or refuses.
    """
    files = listing.of(source.path, content_id(source))
    for of_set in files.values():
        for file in of_set.values():
            try:
                footer = read_footer(labels, file, listing.sizes[file])
            except DamagedLabelFile:
                continue
            return StoredContent(footer.source, footer.num_rows, files, _id_type(labels, listing, of_set.values()))
    return None


def _id_type(labels: str, listing: StoreListing, files: Iterable[LabelFile]) -> pa.DataType:
    """The type of a source file's ids; null where it has none, whatever type that column has."""
    for file in files:
        with suppress(DamagedLabelFile):
            id_type = read_metadata(file.uri(labels), listing.sizes[file], _type_of_ids)
            if not pa.types.is_null(id_type):
                return id_type
    return pa.null()


def _type_of_ids(metadata: pq.FileMetaData) -> pa.DataType:
    id_type = metadata.schema.to_arrow_schema().field("id").type
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    own = [column for column in columns if column.path_in_schema.split(".")[0] == "id"]
    return id_type if any(_has_values(column, id_type) for column in own) else pa.null()


def _has_values(column: pq.ColumnChunkMetaData, id_type: pa.DataType) -> bool:
    """Whether a column chunk may hold anything but null and NaN."""
    statistics = column.statistics
    if statistics is None or not statistics.has_null_count:
        return bool(column.num_values)
    only_nan = pa.types.is_floating(id_type) and not statistics.has_min_max
    return statistics.null_count < column.num_values and not only_nan


def choose_label_sets(
    content: StoredContent,
    wanted: ViewDefinition,
    tasks: Iterable[str],
    label_sets: Mapping[str, LabelSet],
    before: PublishedFooter | None,
) -> dict[str, str]:
    """Which label set a published file takes each task from.

    A wanted task comes from a complete set of the wanted definition; other tasks stay what they were, if that was of
    the same content. Tasks that the store lacks are not here.

    Args:
        content: What the store has.
        wanted: The definition.
        tasks: The wanted tasks.
        label_sets: Definitions of the label sets.
        before: The published file that is to be replaced.
    """
    complete = sorted(
        content.complete_sets & label_sets.keys(), key=lambda name: (-len(label_sets[name].fingerprints), name)
    )
    same_content = before is not None and before.source == content.source
    chosen: dict[str, str] = {}
    if before is not None and same_content:
        chosen = {task: made.label_set for task, made in before.tasks.items() if made.label_set in complete}
    for task in tasks:
        of_task = [name for name in complete if wanted.matches(label_sets[name].view, task)]
        if of_task and chosen.get(task) not in of_task:
            chosen[task] = of_task[0]
    return chosen


def publish_content(
    labels: str,
    content: StoredContent,
    choice: Mapping[str, str],
    schema: TableSchema,
    before: PublishedFile,
    run: str,
) -> bool:
    """Replace a source file's published file.

    Args:
        labels: The label table.
        content: What the store has of the source file.
        choice: The label set of each task that it is to have labels of; at least one.
        schema: The columns.
        before: The published file that is to be replaced.
        run: Id of the run.

    Returns:
        Whether it was replaced; if not, somebody else has changed it since it was read.

    Raises:
        DamagedLabelFile: One of the label files is damaged; nothing was replaced.
        LabelTableError: Ids do not fit the table's type, or the storage does not answer or refuses.
    """
    ranges = sorted(content.files[next(iter(choice.values()))])
    label_sets = list(dict.fromkeys(choice.values()))
    files = tuple(content.files[name][rows] for rows in ranges for name in label_sets)
    sink = pa.BufferOutputStream()
    footers: dict[str, LabelFooter] = {}
    with pq.ParquetWriter(
        sink, schema.arrow, compression="zstd", use_dictionary=dictionary_columns(schema.arrow)
    ) as writer:
        for rows in ranges:
            parts = {}
            for name in label_sets:
                columns = [column for task, of in choice.items() if of == name for column in _columns(schema, task)]
                footer, table = read_label_file(labels, content.files[name][rows], ["id", *columns, "error"])
                footers[name] = footer
                parts[name] = table
            writer.write_table(_merged(list(parts.values()), schema, content.source.path))
        record = PublishedFooter(
            content.source,
            content.num_rows,
            {task: _published_task(task, name, footers[name]) for task, name in choice.items()},
            tuple((file.label_set, file.path) for file in files),
            run,
        )
        writer.add_key_value_metadata({FOOTER_KEY: record.encode().decode()})
    return replace_published(labels, before, sink.getvalue())


def with_columns(labels: str, before: PublishedFile, schema: TableSchema, run: str) -> bool:
    """Give a published file the table's columns, null where it has none; otherwise as `publish_content`."""
    if before.footer is None:
        raise DamagedLabelFile(f"{PUBLISHED}/{before.path} cannot be read")
    schema = schema.with_columns_of(before.schema)
    sink = pa.BufferOutputStream()
    with open_table_file(storage.join(labels, PUBLISHED, before.path)) as parquet:
        table = _merged([parquet.read(use_threads=False)], schema, before.path)
    with pq.ParquetWriter(
        sink, schema.arrow, compression="zstd", use_dictionary=dictionary_columns(schema.arrow)
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FOOTER_KEY: replace(before.footer, run=run).encode().decode()})
    return replace_published(labels, before, sink.getvalue())


def _columns(schema: TableSchema, task: str) -> list[str]:
    return schema.kinds[task].names(task)


def _published_task(task: str, label_set: str, footer: LabelFooter) -> PublishedTask:
    return PublishedTask(
        footer.fingerprints[task],
        footer.kinds[task].kind,
        footer.bundles[task],
        footer.text_columns,
        footer.id_column,
        label_set,
        footer.kinds[task].scored,
        footer.decisions.get(task, ""),
    )


def _merged(tables: Sequence[pa.Table], schema: TableSchema, path: str) -> pa.Table:
    """The columns of tables with the same rows, in the table's schema; null where none has them."""
    found = {name: table[name] for table in tables for name in table.column_names if name != "error"}
    fields = {field.name: field for table in tables for field in table.schema}
    errors = [table["error"] for table in tables]
    found["error"] = errors[0] if len(errors) == 1 else pc.coalesce(*errors)
    num_rows = len(tables[0])
    if any(len(table) != num_rows for table in tables):
        raise DamagedLabelFile(f"label files of the same rows of {path} have different numbers of rows")
    arrays = []
    for column in schema.arrow:
        values = found.get(column.name)
        if values is not None and column.name.endswith("_scores"):
            values = with_labels_of(values, fields[column.name], column)
        if values is None:
            arrays.append(pa.nulls(num_rows, column.type))
        elif values.type == column.type:
            arrays.append(values)
        else:
            arrays.append(cast_column(values, column, path))
    return pa.table(arrays, schema=schema.arrow)


def cast_column(values: pa.ChunkedArray, column: pa.Field, path: str) -> pa.ChunkedArray:
    """A column of a file in another type; what Arrow does not turn into strings is written as Python does.

    Raises:
        IdsDoNotFit: There is a value that the type has no room for.
    """
    if pa.types.is_dictionary(values.type) and not pa.types.is_dictionary(column.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):  # NaN is how pandas writes that there is none
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
    if values.null_count == len(values):
        return pa.chunked_array([pa.nulls(len(values), column.type)])
    try:
        return _as_strings(values) if pa.types.is_string(column.type) else values.cast(column.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if pa.types.is_string(column.type):  # bytes, lists and what else Arrow does not turn into strings
            return pa.chunked_array([[_as_string(value) for value in values.to_pylist()]], pa.string())
        raise IdsDoNotFit(f"{path}: {column.name} of type {values.type} is not {column.type}: {error}") from error


def _as_strings(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as strings; a whole number has the same one whatever type it has."""
    if not (pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        return values.cast(pa.string())
    is_whole = pc.equal(pc.floor(values), values)
    if pa.types.is_floating(values.type):
        is_whole = pc.and_(is_whole, pc.less(pc.abs(values), 2.0**63))
    whole = pc.if_else(is_whole, values, pa.scalar(None, values.type)).cast(pa.int64())
    return pc.coalesce(whole.cast(pa.string()), values.cast(pa.string()))


def _as_string(value: Any) -> str | None:
    return value if value is None else value.hex() if isinstance(value, bytes) else str(value)


class IdsDoNotFit(LabelTableError):
    """Ids have values that the table's type has no room for; as strings they do."""
