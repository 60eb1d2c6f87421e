"""The label table as one: every article once, with the current labels of each task.

<labels>/<label set>/...      label files, see `mtop_batch.labelling.label_files`
<labels>/_runs/<run>/...      see `mtop_batch.labelling.runs`
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch import storage
from mtop_batch.errors import LabelTableError
from mtop_batch.labelling.definition import LabelSet
from mtop_batch.labelling.footer import Footer
from mtop_batch.labelling.label_files import (
    LABEL_TYPE,
    SCORE_TYPE,
    label_schema,
    list_label_files,
    read_footer,
    read_label_file,
    read_label_sets,
    write_label_file,
)
from mtop_batch.labelling.paths import in_partition, partition_keys, partition_values, source_path
from mtop_batch.labelling.resolve import Chooser, Segment, TableFile, resolve
from mtop_batch.labelling.runs import present_definitions
from mtop_batch.tasks import select_tasks

__all__ = ["label_schema", "list_label_files", "read_footer", "read_labels", "write_label_file"]


def read_labels(
    labels: str,
    tasks: Sequence[str] | None = None,
    *,
    partition: Mapping[str, str] | None = None,
    provenance: bool = False,
) -> pa.Table:
    """Every article once, with the current labels of each task, over all label sets.

    A task's current labels are those of the definition that the newest run wanted; where there are none yet, the
    newest others. Label sets are put together by source file and row, in the order of the corpus' paths.

    Args:
        labels: The label table.
        tasks: Only these; all by default.
        partition: Only articles of this hive partition, such as `{"date": "2026-11-20"}`.
        provenance: Also say what computed each label: per task `<task>_bundle` and `<task>_fingerprint`.

    Returns:
        `id`, the corpus' partition columns (strings), per task `<task>_label` and `<task>_score`, `error`.

    Raises:
        LabelTableError: There are no labels, or they cannot be read.
        TaskError: No label set has one of the tasks.
    """
    labels = storage.absolute(labels)
    listing = list_label_files(labels)
    label_sets = {label_set.name: label_set for label_set in read_label_sets(labels, listing)}
    if not label_sets:
        raise LabelTableError(f"there are no labels in {labels}; check the path, or run `mtop label` first")
    known = list(dict.fromkeys(task for label_set in label_sets.values() for task in label_set.tasks))
    wanted = known if tasks is None else select_tasks(tasks, known)
    files = _files_by_source(labels, {name: listing[name] for name in label_sets}, partition or {})
    chooser = Chooser(wanted, label_sets, present_definitions(labels, wanted))
    reader = _Reader(labels, wanted, label_sets, partition_keys(sorted(files)), provenance)
    resolved = (resolve(files[path], chooser.choose) for path in sorted(files))
    tables = list(storage.in_threads(reader.read, resolved))
    return _concat(tables) if tables else reader.empty()


def _files_by_source(
    labels: str, listing: Mapping[str, Sequence[str]], partition: Mapping[str, str]
) -> dict[str, list[TableFile]]:
    def read(name: tuple[str, str]) -> TableFile:
        label_set, path = name
        footer = read_footer(labels, label_set, path)
        return TableFile(label_set, path, footer.source, footer.rows, footer.run)

    names = ((name, path) for name, paths in listing.items() for path in paths if in_partition(path, partition))
    files: dict[str, list[TableFile]] = defaultdict(list)
    for file in storage.in_threads(read, names):
        files[source_path(file.path)].append(file)
    return files


@dataclass(frozen=True)
class _Reader:
    """Reads the segments of one source file after the other into tables of the same columns (but for the ids' type)."""

    labels: str
    tasks: Sequence[str]
    label_sets: Mapping[str, LabelSet]
    partition_keys: Sequence[str]
    provenance: bool

    def empty(self) -> pa.Table:
        """The result without a row."""
        return self._table(pa.nulls(0, pa.string()), {}, {}, pa.nulls(0, pa.string()))

    def read(self, segments: Sequence[Segment]) -> pa.Table:
        """The rows of one source file."""
        tasks_of: dict[TableFile, set[str]] = defaultdict(set)
        for segment in segments:
            tasks_of[_id_file(segment)].update()
            for task, index in segment.choice.items():
                tasks_of[segment.files[index]].add(task)
        contents = {file: self._read_file(file, tasks) for file, tasks in tasks_of.items()}
        return pa.concat_tables([self._segment(segment, contents) for segment in segments])

    def _read_file(self, file: TableFile, tasks: set[str]) -> tuple[Footer, pa.Table]:
        columns = [f"{task}_{part}" for task in self.tasks if task in tasks for part in ("label", "score")]
        footer, table = read_label_file(self.labels, file.label_set, file.path, ["id", *columns, "error"])
        if footer.run != file.run:
            raise LabelTableError(f"{file.label_set}/{file.path} was replaced while it was read; read the labels again")
        return footer, table

    def _segment(self, segment: Segment, contents: Mapping[TableFile, tuple[Footer, pa.Table]]) -> pa.Table:
        def column(file: TableFile, name: str) -> pa.ChunkedArray:
            start, stop = segment.rows
            return contents[file][1].column(name).slice(start - file.rows[0], stop - start)

        columns: dict[str, pa.ChunkedArray] = {}
        origins: dict[str, str] = {}
        for task, index in segment.choice.items():
            file = segment.files[index]
            footer = contents[file][0]
            for name in self._columns_of(task):
                columns[name] = column(file, name)
            origins |= {f"{task}_bundle": footer.bundles[task], f"{task}_fingerprint": footer.fingerprints[task]}
        used = dict.fromkeys([_id_file(segment), *(segment.files[index] for index in segment.choice.values())])
        partitions = partition_values(segment.files[0].source.path)
        return self._table(
            column(_id_file(segment), "id"),
            columns,
            {**partitions, **origins},
            pc.coalesce(*(column(file, "error") for file in used)),
        )

    def _columns_of(self, task: str) -> list[str]:
        kinds = {label_set.kinds[task] for label_set in self.label_sets.values() if task in label_set.tasks}
        return [f"{task}_label", f"{task}_score"] if "classification" in kinds else [f"{task}_score"]

    def _table(
        self,
        ids: pa.ChunkedArray,
        columns: Mapping[str, pa.ChunkedArray],
        constants: Mapping[str, str | None],
        errors: pa.ChunkedArray,
    ) -> pa.Table:
        arrays: dict[str, pa.Array | pa.ChunkedArray] = {"id": ids}
        for key in self.partition_keys:
            if key != "id":
                arrays[key] = _repeated(constants.get(key), len(ids))
        for task in self.tasks:
            for name in self._columns_of(task):
                column_type = LABEL_TYPE if name.endswith("_label") else SCORE_TYPE
                arrays[name] = columns[name] if name in columns else pa.nulls(len(ids), column_type)
            if self.provenance:
                for name in (f"{task}_bundle", f"{task}_fingerprint"):
                    arrays[name] = _repeated(constants.get(name), len(ids))
        arrays["error"] = errors
        return pa.table(arrays)


def _id_file(segment: Segment) -> TableFile:
    """The file whose ids are shown: one that is read for its labels, if any is."""
    return segment.files[min(segment.choice.values(), default=0)]


def _repeated(value: str | None, num_rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value, pa.string()), num_rows)


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    """The tables one below the other, their ids brought to one type."""
    id_types = {table.schema.field("id").type for table in tables}
    if len(id_types) > 1:
        id_type = pa.int64() if all(pa.types.is_integer(id_type) for id_type in id_types) else pa.string()
        tables = [_with_ids(table, id_type, id_types) for table in tables]
    return pa.concat_tables(tables).unify_dictionaries()


def _with_ids(table: pa.Table, id_type: pa.DataType, found: set[pa.DataType]) -> pa.Table:
    try:
        return table.set_column(0, "id", table.column("id").cast(id_type))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        names = ", ".join(sorted(map(str, found)))
        raise LabelTableError(
            f"the ids of the label files have types that do not go together ({names}): {error}; "
            "read one partition or one label set at a time"
        ) from error
