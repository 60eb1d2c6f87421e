"""Reading a label table: every article once, with the current labels of each task.

<labels>/<label set>/...      label files, see `mtop_batch.table.store`
<labels>/_runs/<run>/...      see `mtop_batch.table.runs`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.corpus.paths import partition_keys, partition_values
from mtop_batch.errors import LabelTableError
from mtop_batch.table.columns import LABEL_TYPE, SCORE_TYPE, VECTOR_COLUMN
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.merge import LoadedSegment, TableScan, open_scan


def iter_labels(
    labels: str,
    tasks: Sequence[str] | None = None,
    *,
    partition: Mapping[str, str] | None = None,
    provenance: bool = False,
    vectors: bool = False,
) -> Iterator[pa.Table]:
    """The rows of `read_labels` as a stream of small tables, for label tables that do not fit into memory.

    When it is called, the footers of all label files are read: memory for about a kilobyte per label file. The rows
    follow as they are asked for, with at most about ten label files in memory.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition, such as `{"date": "2026-11-20"}`.
        provenance: Also say what computed each label.
        vectors: Also the document vectors.

    Returns:
        Tables of one schema (label columns with dictionaries of their own) and at most one label file's rows each,
        which stand in the order of `read_labels`: by the path of the source file, then as there.

    Raises:
        LabelTableError: There are no labels, or they cannot be read; while it is read from: a label file was replaced
            meanwhile, or ids do not have one type.
        TaskError: No label set has one of the tasks.
    """
    scan = open_scan(labels, tasks, partition, vectors=vectors)
    schema = _schema(scan, provenance)
    return (_table(segment, scan, schema) for segment in scan.load())


def read_labels(
    labels: str,
    tasks: Sequence[str] | None = None,
    *,
    partition: Mapping[str, str] | None = None,
    provenance: bool = False,
    vectors: bool = False,
) -> pa.Table:
    """Every article once, with the current labels of each task, over all label sets.

    A task's current labels are those of the definition that the newest run wanted; where there are none yet, the
    newest others. Label sets are merged by source file and row, in the order of the corpus' paths.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition, such as `{"date": "2026-11-20"}`.
        provenance: Also say what computed each label: per task `<task>_bundle` and `<task>_fingerprint`.
        vectors: Also the document vectors, float16, of the definition that the newest run which wanted vectors asked
            for; those of other definitions, which cannot be compared with them, are left out.

    Returns:
        `id`, the corpus' partition columns (strings), per task `<task>_label` and `<task>_score`, `vector` if wanted,
        `error`.

    Raises:
        LabelTableError: There are no labels, or no vectors, or they cannot be read.
        TaskError: No label set has one of the tasks.
    """
    scan = open_scan(labels, tasks, partition, vectors=vectors)
    schema = _schema(scan, provenance)
    tables = [_table(segment, scan, schema) for segment in scan.load()]
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()


def _schema(scan: TableScan, provenance: bool) -> pa.Schema:
    fields = {"id": _common_type(scan.id_types())}
    fields |= {key: pa.string() for key in partition_keys(path for path, _ in scan.segments_by_source) if key != "id"}
    for task in scan.tasks:
        if task == VECTOR:
            fields[VECTOR_COLUMN] = scan.vector_type()
        else:
            fields |= {name: LABEL_TYPE if name.endswith("_label") else SCORE_TYPE for name in scan.columns_of(task)}
        if provenance:
            fields |= {f"{task}_bundle": pa.string(), f"{task}_fingerprint": pa.string()}
    return pa.schema({**fields, "error": pa.string()})


def _table(segment: LoadedSegment, scan: TableScan, schema: pa.Schema) -> pa.Table:
    """The rows of a segment, null in the columns that it does not have."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "id": _cast_ids(segment.column(segment.id_file, "id"), schema.field("id").type, scan),
        "error": pc.coalesce(*(segment.column(file, "error") for file in segment.files_used())),
    }
    constants = partition_values(segment.id_file.source.path)
    for task in scan.tasks:
        if (file := segment.file_of(task)) is not None:
            columns |= {name: segment.column(file, name) for name in scan.columns_of(task) if segment.has(file, name)}
            footer = segment.footer(file)
            constants |= {f"{task}_bundle": footer.bundles[task], f"{task}_fingerprint": footer.fingerprints[task]}

    def values(field: pa.Field) -> pa.Array | pa.ChunkedArray:
        if field.name in columns:
            return columns[field.name]
        if field.name in constants:
            return pa.repeat(pa.scalar(constants[field.name], pa.string()), len(segment))
        return pa.nulls(len(segment), field.type)

    return pa.table([values(field) for field in schema], schema=schema)


def _common_type(id_types: set[pa.DataType]) -> pa.DataType:
    """The type that ids of different label files are brought to."""
    if len(id_types) == 1:
        return next(iter(id_types))
    return pa.int64() if id_types and all(map(pa.types.is_integer, id_types)) else pa.string()


def _cast_ids(ids: pa.ChunkedArray, id_type: pa.DataType, scan: TableScan) -> pa.ChunkedArray:
    try:
        return ids if ids.type == id_type else ids.cast(id_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        names = ", ".join(sorted(map(str, scan.id_types())))
        raise LabelTableError(
            f"the ids of the label files have types that do not go together ({names}): {error}; "
            "read one partition or one label set at a time"
        ) from error
