"""Label files: row for row the labels of a slice of a source file, with a footer that says what they are.

    <labels>/<label set>/<path of the source file>     columns id, <task>_label, <task>_score ..., error
                                                       or id, vector, error

Each label set is a plain Parquet data set. A label file appears whole or not at all.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import UnreadableSource, decoding
from mtop_batch.corpus.paths import is_source
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.table.columns import VECTOR_COLUMN, label_schema
from mtop_batch.table.definition import VECTOR, LabelSet
from mtop_batch.table.footer import FOOTER_KEY, Footer
from mtop_batch.tasks import Task

T = TypeVar("T")
_FORMAT = ds.ParquetFileFormat()
# Files of a data set of which only some are damaged: one of so many should give the label set's definition.
_DEFINITION_TRIES = 8


@dataclass(frozen=True)
class Target:
    """A label file to write, and the tasks whose columns it gets."""

    label_set: str
    path: str
    tasks: tuple[str, ...]


def write_label_file(
    labels: str,
    target: Target,
    ids: pa.Array | pa.ChunkedArray,
    columns: Mapping[str, pa.Array],
    errors: Sequence[str | None] | pa.Array,
    footer: Footer,
    tasks: Iterable[Task],
) -> int:
    """Write one label file, whole or not at all; a file of that name is replaced.

    The same input gives the same bytes. If it fails, what was there before is still there.

    Args:
        labels: The label table.
        target: Which label file, and its tasks.
        ids: The source rows' ids.
        columns: `<task>_label` and `<task>_score` of the target's tasks, `vector` for `VECTOR`, at least.
        errors: Why a row has no labels; None where it has.
        footer: What the file says about itself.
        tasks: The tasks, at least the target's.

    Returns:
        Bytes written.

    Raises:
        LabelTableError: The columns do not have the source's rows.
        StorageError: The storage cannot be reached or refuses.
    """
    by_name = {task.name: task for task in tasks}
    schema = label_schema(
        ids.type,
        [by_name[name] for name in target.tasks if name != VECTOR],
        columns[VECTOR_COLUMN].type if VECTOR in target.tasks else None,
    )
    given = {**columns, "id": ids, "error": pa.array(errors, pa.string()) if isinstance(errors, Sequence) else errors}
    arrays = [given[field.name].cast(field.type) if field.name != "id" else ids for field in schema]
    num_rows = footer.rows[1] - footer.rows[0]
    if any(len(array) != num_rows for array in arrays):
        lengths = {field.name: len(array) for field, array in zip(schema, arrays, strict=True)}
        raise LabelTableError(f"{footer.source.path}: {num_rows} rows were read, but there are labels for {lengths}")
    sink = pa.BufferOutputStream()
    dictionary_columns = [field.name for field in schema if field.name.endswith("_label") or field.name == "error"]
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=dictionary_columns) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({FOOTER_KEY: footer.encode().decode()})
    data = sink.getvalue()
    uri = storage.join(labels, target.label_set, target.path)
    storage.write_bytes(uri, data, unfinished=_unfinished(labels))
    return int(data.size)


def remove_unfinished(labels: str) -> None:
    """Remove what writers left on a local disk when they were killed. Only while this run holds the lease."""
    if not storage.is_remote(labels):
        shutil.rmtree(_unfinished(labels), ignore_errors=True)


def _unfinished(labels: str) -> str:
    # Not beside the label files: some readers (Polars) refuse a directory with files that are not Parquet.
    return storage.join(labels, "_unfinished").removeprefix("file://")


def read_footer(labels: str, label_set: str, path: str, size: int | None = None) -> Footer:
    """The footer of a label file.

    Args:
        labels: The label table.
        label_set: One of its label sets.
        path: The label file, below the label set.
        size: Its bytes, if they are known from a listing: then this is one request to an object store, not two.

    Raises:
        DamagedLabelFile: It is not readable as a label file.
        StorageError: The storage does not answer.
        LabelTableError: A later version of this package wrote the file.
    """
    return _read_metadata(labels, label_set, path, size, _footer_of)


def read_footer_and_schema(labels: str, label_set: str, path: str, size: int | None = None) -> tuple[Footer, pa.Schema]:
    """The footer of a label file, and its columns; otherwise as `read_footer`."""
    return _read_metadata(
        labels, label_set, path, size, lambda metadata: (_footer_of(metadata), metadata.schema.to_arrow_schema())
    )


def read_label_file(labels: str, label_set: str, path: str, columns: Sequence[str]) -> tuple[Footer, pa.Table]:
    """A label file's footer, and those of its columns that it has.

    Raises:
        DamagedLabelFile: It is not readable as a label file.
        StorageError: The storage does not answer.
        LabelTableError: A later version of this package wrote the file.
    """
    with _open(labels, label_set, path) as parquet:
        names = set(parquet.schema_arrow.names)
        table = parquet.read([name for name in columns if name in names], use_threads=False)
        return _footer_of(parquet.metadata), table


def list_label_files(labels: str) -> dict[str, dict[str, int]]:
    """Bytes of all label files by label set and path below it; none if there is no table yet.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for info in storage.list_files(labels):
        label_set, separator, path = info.path.partition("/")
        if separator and is_source(path):
            found[label_set][path] = info.size
    return dict(found)


def read_label_sets(labels: str, listing: Mapping[str, Mapping[str, int]]) -> list[LabelSet]:
    """The definitions of the label sets, each from one of its files; directories that hold something else are left out.

    Raises:
        StorageError: The storage does not answer.
        LabelTableError: A later version of this package wrote the table.
    """

    def read(label_set: str) -> LabelSet | None:
        for path, size in islice(listing[label_set].items(), _DEFINITION_TRIES):
            try:
                return read_footer(labels, label_set, path, size).label_set(label_set)
            except DamagedLabelFile:
                continue
        return None

    return [label_set for label_set in storage.in_threads(read, sorted(listing)) if label_set is not None]


@contextmanager
def _open(labels: str, label_set: str, path: str) -> Iterator[pq.ParquetFile]:
    uri = storage.join(labels, label_set, path)
    try:
        with decoding(uri):
            fs, fs_path = storage.filesystem(uri)
            with fs.open_input_file(fs_path) as file:
                yield pq.ParquetFile(file)
    except UnreadableSource as error:
        raise DamagedLabelFile(f"{uri} is no label file: {error}; remove it and run `mtop label`") from error


def _read_metadata(
    labels: str, label_set: str, path: str, size: int | None, interpret: Callable[[pq.FileMetaData], T]
) -> T:
    if size:
        fs, fs_path = storage.filesystem(storage.join(labels, label_set, path))
        try:
            # A fragment, unlike an open file, accepts a known size.
            return interpret(_FORMAT.make_fragment(fs_path, fs, file_size=size).metadata)
        except (OSError, ValueError, KeyError):
            pass  # Replaced or removed since it was listed, or damaged, or an outage: opening the file finds out which.
    with _open(labels, label_set, path) as parquet:
        return interpret(parquet.metadata)


def _footer_of(metadata: pq.FileMetaData) -> Footer:
    data = (metadata.metadata or {}).get(FOOTER_KEY.encode())
    if data is None:
        raise ValueError(f"its footer has no key {FOOTER_KEY!r}")
    return Footer.decode(data)
