"""Published files and the columns that all of them have: listed, read, and replaced on condition.

current/<source path>         columns id, <task>_label, <task>_score ..., error; a row per article, in its order
_table.json                   the columns that all of them have
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.lines import did_you_mean
from mtop_batch.storage import conditional
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.columns import OutputKind, kinds_of, label_schema
from mtop_batch.table.definition import ViewDefinition
from mtop_batch.table.footer import FOOTER_KEY, PublishedFooter
from mtop_batch.table.names import PUBLISHED, directories
from mtop_batch.table.store import read_metadata, record_of, unfinished

_TABLE_FORMAT = 1
_SCHEMA = "_table.json"


@dataclass(frozen=True)
class TableSchema:
    """The columns of every published file.

    Args:
        kinds: What comes out of each task, in the order of the columns.
        id_type: The type of all ids.
    """

    kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    id_type: pa.DataType = field(default_factory=pa.null)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The columns."""
        return label_schema(self.id_type, self.kinds)

    def with_tasks(self, kinds: Mapping[str, OutputKind]) -> TableSchema:
        """The same, and columns of further tasks behind those that there are.

        Scores of all labels get the labels of these kinds; a table that has such scores of a task keeps their column.
        """
        wanted = {task: kind.published.with_scores_of(self.kinds.get(task)) for task, kind in kinds.items()}
        return replace(
            self, kinds={**self.kinds, **{task: kind for task, kind in wanted.items() if kind.kind != "vector"}}
        )

    def with_more(self, kinds: Mapping[str, OutputKind]) -> TableSchema:
        """The same, and columns that these kinds have beyond these."""
        return self.with_tasks({task: self.kinds.get(task, kind).with_scores_of(kind) for task, kind in kinds.items()})

    def with_columns_of(self, schema: pa.Schema | None) -> TableSchema:
        """The same, and columns that a file has beyond these: another run may have published them."""
        return self if schema is None else self.with_more(kinds_of(schema))

    def with_id_type(self, id_type: pa.DataType) -> TableSchema:
        """The same with ids of a type that has room for these too."""
        return replace(self, id_type=common_id_type(self.id_type, id_type))

    def merged(self, other: TableSchema) -> TableSchema:
        """The columns of both."""
        return self.with_tasks(other.kinds).with_id_type(other.id_type)

    def encode(self) -> bytes:
        """As JSON."""
        id_type = base64.b64encode(pa.schema([pa.field("id", self.id_type)]).serialize()).decode()
        kinds = {task: kind.kind for task, kind in self.kinds.items()}
        scores = {task: kind.scored for task, kind in self.kinds.items() if kind.scored}
        content = {"format": _TABLE_FORMAT, "tasks": kinds, **({"scores": scores} if scores else {})}
        return json.dumps({**content, "id_type": id_type}).encode()

    @classmethod
    def decode(cls, data: bytes, uri: str) -> TableSchema:
        """What `encode` wrote.

        Raises:
            LabelTableError: It is damaged, or of another format.
        """
        try:
            content = json.loads(data)
            if content["format"] != _TABLE_FORMAT:
                raise ValueError(f"it has format {content['format']}, this version reads {_TABLE_FORMAT}")
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["id_type"])))
            scores = {str(task): tuple(map(str, labels)) for task, labels in content.get("scores", {}).items()}
            kinds = {str(task): OutputKind(str(kind), scores.get(task, ())) for task, kind in content["tasks"].items()}
            return cls(kinds, schema.field("id").type)
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise LabelTableError(
                f"{uri} cannot be read: {error}; remove it, and the next `mtop label` or `mtop publish` writes it anew"
            ) from error


_TIME_UNITS = ("s", "ms", "us", "ns")


def common_id_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The type for ids of files that have them in different types.

    Whole numbers stay whole numbers, also those that a file has as floating-point or decimal ones; times have the finer
    unit; what does not go together becomes strings; a file that has no id at all has no say.
    """
    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    kinds = [each.value_type if pa.types.is_dictionary(each) else each for each in (first, second)]
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) for kind in kinds):
        if any(map(pa.types.is_integer, kinds)):
            return pa.int64()
        if all(map(pa.types.is_floating, kinds)):
            return pa.float64()
    if all(map(pa.types.is_timestamp, kinds)) and kinds[0].tz == kinds[1].tz:
        return pa.timestamp(max((kind.unit for kind in kinds), key=_TIME_UNITS.index), kinds[0].tz)
    return pa.string()


@dataclass(frozen=True)
class PublishedFile:
    """A published file as it is now.

    Args:
        path: Below `current`.
        info: Of the listing; None if there is none.
        footer: What it was made of; None if it cannot be read.
        schema: Its columns.
    """

    path: str
    info: FileInfo | None = None
    footer: PublishedFooter | None = None
    schema: pa.Schema | None = None

    def shows(self, source: SourceFile, wanted: ViewDefinition, tasks: Iterable[str]) -> bool:
        """Whether it has the present content's labels of these tasks by this definition."""
        footer = self.footer
        if footer is None or footer.source != source:
            return False
        return all(wanted.matches(footer.view(task), task) for task in tasks) and not self._lacks_scores(wanted)

    def _lacks_scores(self, wanted: ViewDefinition) -> bool:
        """Whether scores of all labels that are wanted stand in the places of another definition's labels."""
        shown = {} if self.schema is None else kinds_of(self.schema)
        made = {} if self.footer is None else self.footer.tasks
        return any(shown[task].scored != made[task].scores for task in wanted.all_scores & made.keys() & shown.keys())

    def has_columns(self, schema: TableSchema) -> bool:
        """Whether it has the columns of the table."""
        # A schema's comparison does not see the labels of scores.
        return self.schema is not None and self.schema.equals(schema.arrow) and kinds_of(self.schema) == schema.kinds


def list_published(labels: str) -> dict[str, FileInfo]:
    """The published files, by path.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    found = storage.list_files(storage.join(labels, PUBLISHED), suffix=".parquet")
    return {info.path: info for info in found}


def read_published(labels: str, path: str, info: FileInfo | None) -> PublishedFile:
    """A published file's record and columns; one that is damaged has none of these.

    Raises:
        LabelTableError: The storage does not answer or refuses, or the file is of another format.
    """
    if info is None:
        return PublishedFile(path)

    def interpret(metadata: pq.FileMetaData) -> tuple[PublishedFooter, pa.Schema]:
        footer = PublishedFooter.decode(record_of(metadata), metadata.num_rows)
        return footer, metadata.schema.to_arrow_schema().remove_metadata()

    try:
        footer, schema = read_metadata(storage.join(labels, PUBLISHED, path), info.size, interpret)
    except DamagedLabelFile:
        return PublishedFile(path, info)
    return PublishedFile(path, info, footer, schema)


def read_table_schema(labels: str) -> TableSchema | None:
    """The columns of the published table; None if there is none yet.

    Raises:
        LabelTableError: It cannot be read.
    """
    uri = _schema_uri(labels)
    found = conditional.read(uri)
    return None if found is None else TableSchema.decode(found.data, uri)


def replace_table_schema(labels: str, before: TableSchema | None, schema: TableSchema) -> bool:
    """Note the columns that all published files have now, if the note is still the one before.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    uri = _schema_uri(labels)
    seen = conditional.read(uri)
    now = None if seen is None else TableSchema.decode(seen.data, uri)
    return now == before and conditional.replace(uri, seen, schema.encode())


def near_tables(labels: str) -> str:
    """The beginning of a hint for who has asked for a label table that is not there; on disks only."""
    place = Path(labels)
    if storage.is_remote(labels) or not place.parent.is_dir():
        return ""
    return did_you_mean(place.name, [found.parent.name for found in place.parent.glob(f"*/{_SCHEMA}")])


def _schema_uri(labels: str) -> str:
    return storage.join(labels, _SCHEMA)


def unpublish(labels: str, before: PublishedFile, schema: TableSchema, run: str) -> bool:
    """Remove the rows of a source file that is gone; whether they are gone, and not replaced by somebody else.

    On object stores an empty file stays in its place: a removal cannot be made on condition there, and one that arrives
    late could take away rows that have come back meanwhile.
    """
    if before.info is None:
        return True
    uri = storage.join(labels, PUBLISHED, before.path)
    if not storage.is_remote(uri):
        return conditional.delete_version(uri, before.info.version, lock=_lock(labels))
    source = before.footer.source if before.footer else SourceFile(before.path, 0, "")
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema.arrow, compression="zstd") as writer:
        footer = PublishedFooter(source, 0, {}, (), run)
        writer.add_key_value_metadata({FOOTER_KEY: footer.encode().decode()})
    return replace_published(labels, before, sink.getvalue())


def remove_published(labels: str, before: PublishedFile, targets: Collection[str]) -> None:
    """Remove a published file for good, because a published file is to be where a directory above it is, or below it.

    Where the removal cannot be made on condition, one that arrives late may take away rows that have come back: the
    next run publishes them again.
    """
    if before.info is None:
        return
    uri = storage.join(labels, PUBLISHED, before.path)
    if not storage.is_remote(uri):
        conditional.delete_version(uri, before.info.version, lock=_lock(labels))
        return
    storage.delete(uri)
    for directory in reversed(directories(before.path)):
        if directory in targets or not set(targets).isdisjoint(directories(directory)):
            conditional.delete_directory(storage.join(labels, PUBLISHED, directory))


def replace_published(labels: str, before: PublishedFile, data: pa.Buffer) -> bool:
    """Write a published file if the one before it is still there; whether it was written."""
    return conditional.replace_version(
        storage.join(labels, PUBLISHED, before.path),
        before.info.version if before.info else None,
        data,
        lock=_lock(labels),
        unfinished=unfinished(labels),
    )


def _lock(labels: str) -> str:
    return storage.join(labels, "_publish.lock")
