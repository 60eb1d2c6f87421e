"""Reading the published table from Python: every article once, with the labels of each task.

Any Parquet reader reads <labels>/current as well; here partition columns, provenance and vectors come along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.paths import empty_partition, in_partition, other_keys, partition_keys, partition_values
from mtop_batch.errors import DamagedLabelFile, LabelTableError, NotInTable
from mtop_batch.table.columns import VECTOR_COLUMN, with_labels_of
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.footer import LabelFooter, PublishedFooter
from mtop_batch.table.names import PUBLISHED, content_id
from mtop_batch.table.published import TableSchema, list_published, near_tables, read_table_schema
from mtop_batch.table.row_ranges import is_tiling
from mtop_batch.table.runs import current_definitions
from mtop_batch.table.store import StoreListing, list_store, read_label_file, read_label_sets, read_metadata, record_of
from mtop_batch.tasks import select_tasks

# Published files in memory at a time: enough to keep an object store busy.
_FILES_AHEAD = 4
_ATTEMPTS = 3


def iter_labels(
    labels: str,
    tasks: Sequence[str] | None = None,
    *,
    partition: Mapping[str, str] | None = None,
    allow_empty: bool = False,
    provenance: bool = False,
    vectors: bool = False,
) -> Iterator[pa.Table]:
    """The rows of `read_labels` as a stream of tables, for label tables that do not fit into memory.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition, such as `{"date": "2026-11-20"}`.
        allow_empty: No article need be in the partition.
        provenance: Also say what computed each label.
        vectors: Also the document vectors.

    Returns:
        Tables of one schema (label columns with dictionaries of their own), one for each published file, in the order
        of `read_labels`: by the path of the source file, then as there.

    Raises:
        NotInTable: Nothing is published, there are no vectors, or no file is in the partition.
        LabelTableError: A file cannot be read (then while it is read from).
        TaskError: The table does not have one of the tasks.
    """
    table = open_table(labels, tasks, partition, allow_empty=allow_empty, provenance=provenance, vectors=vectors)
    return (rows for _, rows in table.files())


def read_labels(
    labels: str,
    tasks: Sequence[str] | None = None,
    *,
    partition: Mapping[str, str] | None = None,
    allow_empty: bool = False,
    provenance: bool = False,
    vectors: bool = False,
) -> pa.Table:
    """Every article once, with the published labels of each task.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition, such as `{"date": "2026-11-20"}`.
        allow_empty: No article need be in the partition.
        provenance: Also say what computed each label: per task `<task>_bundle` and `<task>_fingerprint`.
        vectors: Also the document vectors, float16, of the definition that the newest run which wanted vectors asked
            for; those of other definitions, which cannot be compared with them, are left out.

    Returns:
        `id`, the corpus' partition columns (strings), per task its columns, `vector` if wanted, `error`; in the order
        of the source files' paths and of their rows.

    Raises:
        NotInTable: Nothing is published, there are no vectors, or no file is in the partition.
        LabelTableError: A file cannot be read.
        TaskError: The table does not have one of the tasks.
    """
    table = open_table(labels, tasks, partition, allow_empty=allow_empty, provenance=provenance, vectors=vectors)
    tables = [rows for _, rows in table.files()]
    return pa.concat_tables(tables).unify_dictionaries() if tables else table.schema.empty_table()


def view_sql(labels: str) -> str:
    """SQL that makes a view of the published table in DuckDB.

    Raises:
        NotInTable: Nothing is published.
    """
    table = open_table(labels, None, None)
    place = storage.join(table.labels, PUBLISHED, "**", "*.parquet").replace("'", "''")
    options = ", hive_partitioning = true" if table.partition_columns else ""
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in table.schema.names)
    return f"CREATE VIEW labels AS SELECT {columns} FROM read_parquet('{place}'{options});"


@dataclass(frozen=True)
class PublishedTable:
    """The published table, before its rows are read.

    Args:
        labels: The label table.
        tasks: The tasks to show.
        columns: The columns that all published files have.
        paths: The published files in scope, in order.
        partition_columns: The keys of hive partitions that are shown.
        provenance: Whether what computed each label is shown.
        vectors: Where document vectors are looked up, if they are wanted.
    """

    labels: str
    tasks: tuple[str, ...]
    columns: TableSchema
    paths: tuple[str, ...]
    partition_columns: tuple[str, ...]
    provenance: bool
    vectors: VectorLookup | None

    @property
    def schema(self) -> pa.Schema:
        """What is shown."""
        fields = [pa.field("id", self.columns.id_type)]
        fields += [pa.field(key, pa.string()) for key in self.partition_columns]
        for task in self.tasks:
            fields += self.columns.kinds[task].fields(task)
            if self.provenance:
                fields += [pa.field(f"{task}_{what}", pa.string()) for what in ("bundle", "fingerprint")]
        if self.vectors is not None:
            fields.append(pa.field(VECTOR_COLUMN, self.vectors.type))
            if self.provenance:
                fields += [pa.field(f"{VECTOR}_{what}", pa.string()) for what in ("bundle", "fingerprint")]
        return pa.schema([*fields, pa.field("error", pa.string())])

    def files(self) -> Iterator[tuple[PublishedFooter, pa.Table]]:
        """The rows, published file by published file, with what each was made of.

        Raises:
            LabelTableError: A file cannot be read.
        """
        for footer, rows in storage.in_threads(self._read, self.paths, _FILES_AHEAD, ahead=_FILES_AHEAD):
            if footer.has_rows:
                yield footer, rows

    def _read(self, path: str) -> tuple[PublishedFooter, pa.Table]:
        names = [name for task in self.tasks for name in self.columns.kinds[task].names(task)]
        footer, found = read_published_file(self.labels, path, ["id", *names, "error"])
        constants: dict[str, str | None] = dict(partition_values(path))
        for task, made in footer.tasks.items():
            constants |= {f"{task}_bundle": made.bundle, f"{task}_fingerprint": made.identity}
        vectors = None
        if self.vectors is not None:
            made_by, vectors = self.vectors.of(footer)
            if made_by is not None:
                constants[f"{VECTOR}_bundle"] = made_by.bundles[VECTOR]
                constants[f"{VECTOR}_fingerprint"] = made_by.fingerprints[VECTOR]
        schema = self.schema
        arrays = []
        for field in schema:
            if field.name == VECTOR_COLUMN and vectors is not None:
                arrays.append(vectors)
            elif field.name in found.schema.names:
                values = found[field.name]
                if field.name.endswith("_scores"):
                    values = with_labels_of(values, found.schema.field(field.name), field)
                arrays.append(values.cast(field.type))
            elif field.type == pa.string() and constants.get(field.name) is not None:
                arrays.append(pa.repeat(pa.scalar(constants[field.name], pa.string()), len(found)))
            else:
                arrays.append(pa.nulls(len(found), field.type))
        return footer, pa.table(arrays, schema=schema)


def open_table(
    labels: str,
    tasks: Sequence[str] | None,
    partition: Mapping[str, str] | None,
    *,
    allow_empty: bool = False,
    provenance: bool = False,
    vectors: bool = False,
) -> PublishedTable:
    """The published table, for reading; arguments and errors are those of `read_labels`."""
    labels = storage.absolute(labels)
    columns = read_table_schema(labels)
    if columns is None:
        raise NotInTable(
            f"no labels are published in {labels}; {near_tables(labels)}check the path, or run `mtop label` first"
        )
    wanted = tuple(columns.kinds) if tasks is None else tuple(select_tasks(tasks, list(columns.kinds)))
    paths = sorted(list_published(labels))
    keys = partition_keys(paths)
    for key in partition or ():
        if key not in keys:
            raise NotInTable(f"the label table {labels} has no partition key {key!r}; {other_keys(key, keys)}")
    if not allow_empty and (problem := empty_partition(paths, partition or {})):
        raise NotInTable(f"the label table {labels} has {problem}; correct it, or allow an empty result")
    in_scope = tuple(path for path in paths if in_partition(path, partition or {}))
    shown_keys = tuple(key for key in keys if key != "id")
    lookup = VectorLookup.open(labels) if vectors else None
    return PublishedTable(labels, wanted, columns, in_scope, shown_keys, provenance, lookup)


def read_published_file(labels: str, path: str, columns: Sequence[str]) -> tuple[PublishedFooter, pa.Table]:
    """A published file's record, and those of its columns that it has, of one moment.

    Raises:
        LabelTableError: It cannot be read.
    """
    uri = storage.join(labels, PUBLISHED, path)
    for attempt in range(_ATTEMPTS):
        try:  # all bytes at once: the file may be replaced between two requests
            parquet = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
            footer = PublishedFooter.decode(record_of(parquet.metadata), parquet.metadata.num_rows)
            names = set(parquet.schema_arrow.names)
            return footer, parquet.read([name for name in columns if name in names], use_threads=False)
        except FileNotFoundError as error:
            raise LabelTableError(f"{uri} was removed while the table was read; read it again") from error
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise DamagedLabelFile(f"{uri} cannot be read: {error}; remove it and run `mtop publish`") from error
    raise LabelTableError(f"{uri} cannot be read")


class VectorLookup:
    """Document vectors of published articles, from the store.

    Args:
        labels: The label table.
        listing: Its store.
        label_sets: Those with the vectors of the definition that the newest run which wanted vectors asked for.
        vector_type: Of the vectors.
    """

    def __init__(self, labels: str, listing: StoreListing, label_sets: Sequence[str], vector_type: pa.DataType) -> None:
        self._labels, self._listing, self._label_sets = labels, listing, label_sets
        self.type = vector_type

    @classmethod
    def open(cls, labels: str) -> VectorLookup:
        """Find the vectors.

        Raises:
            NotInTable: There are none.
        """
        listing = list_store(labels)
        wanted = current_definitions(labels, [VECTOR]).get(VECTOR)
        sets = [found for found in read_label_sets(labels, listing) if VECTOR in found.fingerprints]
        chosen = [found.name for found in sets if wanted is not None and wanted.matches(found.view, VECTOR)]
        if not chosen:
            raise NotInTable(f"there are no vectors in {labels}; run `mtop label --vectors` first")
        file = listing.files_of(chosen[0])[0]
        schema = read_metadata(
            file.uri(labels), listing.sizes[file], lambda metadata: metadata.schema.to_arrow_schema()
        )
        return cls(labels, listing, chosen, schema.field(VECTOR_COLUMN).type)

    def of(self, footer: PublishedFooter) -> tuple[LabelFooter | None, pa.ChunkedArray]:
        """The vectors of a published file's rows, null where there are none, and what one of their files says.

        Raises:
            LabelTableError: They cannot be read.
        """
        stored = self._listing.of(footer.source.path, content_id(footer.source))
        for name in self._label_sets:
            files = stored.get(name, {})
            if is_tiling(files, footer.num_rows):
                parts = [read_label_file(self._labels, files[rows], [VECTOR_COLUMN]) for rows in sorted(files)]
                return parts[0][0], pa.concat_tables([table for _, table in parts])[VECTOR_COLUMN]
        return None, pa.chunked_array([pa.nulls(footer.num_rows, self.type)])
