"""The store: label files, each with the labels of some rows of a source file by one definition, written once.

    _store/<label set>/<source path>@/<content id>-<rows>.parquet      columns id, <task>_label, <task>_score ..., error
                                                                       or id, vector, error

A label file appears whole or not at all, and is never overwritten: its name says what it holds, so whoever comes second
with the same name has computed the same labels. A write that arrives late, of a run that is long dead, changes nothing.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import AccessDenied, SourceChanged, UnreadableSource, decoding
from mtop_batch.errors import DamagedLabelFile, LabelTableError
from mtop_batch.storage import conditional
from mtop_batch.table.columns import VECTOR_COLUMN, dictionary_columns, label_schema
from mtop_batch.table.definition import VECTOR, LabelSet
from mtop_batch.table.footer import FOOTER_KEY, LabelFooter
from mtop_batch.table.names import STORE, LabelName, content_id, parse_label_path
from mtop_batch.table.row_ranges import RowRange

T = TypeVar("T")
_FORMAT = ds.ParquetFileFormat()


@dataclass(frozen=True, slots=True)
class LabelFile:
    """The reference to a label file: its label set, and its path below that."""

    label_set: str
    path: str

    def uri(self, labels: str) -> str:
        """Where it lies."""
        return storage.join(labels, STORE, self.label_set, self.path)

    def __str__(self) -> str:
        return f"{STORE}/{self.label_set}/{self.path}"


class StoreListing:
    """Which label files there are, by what their names say.

    Args:
        sizes: Bytes of every label file.
        foreign: Files of the store whose names are not those of label files.
    """

    def __init__(self, sizes: Mapping[LabelFile, int], foreign: Sequence[str] = ()) -> None:
        self.sizes = sizes
        self.foreign = tuple(foreign)
        self._files: dict[tuple[str, str], dict[str, dict[RowRange, LabelFile]]] = defaultdict(dict)
        self.names: dict[LabelFile, LabelName] = {}
        self._by_set: dict[str, list[LabelFile]] = defaultdict(list)
        for file in sizes:
            name = parse_label_path(file.path)
            if name is None:
                raise LabelTableError(f"{file} is not a label file's name")
            self.names[file] = name
            self._by_set[file.label_set].append(file)
            of_source = self._files[name.source_path, name.content].setdefault(file.label_set, {})
            of_source[name.rows] = file
        self._sets_of: dict[str, set[str]] = defaultdict(set)
        for file, name in self.names.items():
            self._sets_of[name.source_path].add(file.label_set)

    @property
    def label_sets(self) -> list[str]:
        """Names of the label sets, in order."""
        return sorted(self._by_set)

    def files_of(self, label_set: str) -> Sequence[LabelFile]:
        """The label files of a label set."""
        return self._by_set.get(label_set, ())

    def of(self, source_path: str, content: str) -> Mapping[str, Mapping[RowRange, LabelFile]]:
        """The label files of one content of a source file: label set -> rows -> file."""
        return self._files.get((source_path, content), {})

    def label_sets_of(self, source_path: str) -> set[str]:
        """The label sets that have label files of a source file, of whatever content."""
        return self._sets_of.get(source_path, set())


def list_store(labels: str) -> StoreListing:
    """All label files, by one listing; none if there is no table yet.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    sizes: dict[LabelFile, int] = {}
    foreign: list[str] = []
    for info in storage.list_files(storage.join(labels, STORE)):
        label_set, separator, path = info.path.partition("/")
        if separator and parse_label_path(path) is not None:
            sizes[LabelFile(label_set, path)] = info.size
        else:
            foreign.append(info.path)
    return StoreListing(sizes, foreign)


def write_label_file(
    labels: str,
    file: LabelFile,
    ids: pa.Array | pa.ChunkedArray,
    columns: Mapping[str, pa.Array],
    errors: Sequence[str | None] | pa.Array,
    footer: LabelFooter,
) -> int:
    """Write one label file, whole or not at all, unless it is there already.

    The same input gives the same bytes. If it fails, there is no file of this name, or the whole one.

    Args:
        labels: The label table.
        file: Which.
        ids: The source rows' ids.
        columns: Those of the footer's tasks at least.
        errors: Why a row has no labels; None where it has.
        footer: The file's record of itself.

    Returns:
        Bytes written; 0 if it was there.

    Raises:
        LabelTableError: The columns do not have the source's rows, or the storage cannot be reached or refuses.
    """
    vector_type = columns[VECTOR_COLUMN].type if VECTOR in footer.kinds else None
    schema = label_schema(ids.type, footer.kinds, vector_type)
    given = {**columns, "id": ids, "error": pa.array(errors, pa.string()) if isinstance(errors, Sequence) else errors}
    arrays = [given[field.name].cast(field.type) if field.name != "id" else ids for field in schema]
    num_rows = footer.rows[1] - footer.rows[0]
    if any(len(array) != num_rows for array in arrays):
        lengths = {field.name: len(array) for field, array in zip(schema, arrays, strict=True)}
        raise LabelTableError(f"{footer.source.path}: {num_rows} rows were read, but there are labels for {lengths}")
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=dictionary_columns(schema)) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({FOOTER_KEY: footer.encode().decode()})
    data = sink.getvalue()
    return int(data.size) if conditional.create(file.uri(labels), data, unfinished=unfinished(labels)) else 0


def remove_unfinished(labels: str) -> None:
    """Remove what writers left on a local disk when they were killed. Only for who holds the table alone."""
    if not storage.is_remote(labels):
        shutil.rmtree(unfinished(labels), ignore_errors=True)


def unfinished(labels: str) -> str:
    """Where files of the table are written on a local disk until they are whole."""
    return storage.join(labels, "_unfinished")


def read_footer(labels: str, file: LabelFile, size: int | None = None) -> LabelFooter:
    """The record in a label file.

    Args:
        labels: The label table.
        file: Which.
        size: Its bytes, if they are known from a listing: then this is one request to an object store, not two.

    Raises:
        DamagedLabelFile: It was read, and is not what its name says.
        LabelTableError: The storage does not answer or refuses, or the file is of another format.
    """
    return _checked(file, read_metadata(file.uri(labels), size, _footer_of))


def read_label_file(labels: str, file: LabelFile, columns: Sequence[str]) -> tuple[LabelFooter, pa.Table]:
    """A label file's record, and those of its columns that it has; errors as for `read_footer`."""
    with open_table_file(file.uri(labels)) as parquet:
        names = set(parquet.schema_arrow.names)
        table = parquet.read([name for name in columns if name in names], use_threads=False)
        return _checked(file, _footer_of(parquet.metadata)), table


def read_label_sets(labels: str, listing: StoreListing) -> list[LabelSet]:
    """The definitions of the label sets, each from one of its files; those of which no file can be read are left out.

    Raises:
        LabelTableError: The storage does not answer or refuses, or the table is of another format.
    """

    def read(name: str) -> LabelSet | None:
        for file in listing.files_of(name):
            try:
                return read_footer(labels, file, listing.sizes[file]).label_set(name)
            except DamagedLabelFile:
                continue
        return None

    return [found for found in storage.in_threads(read, listing.label_sets) if found is not None]


@contextmanager
def open_table_file(uri: str) -> Iterator[pq.ParquetFile]:
    """A label file or published file for reading.

    Raises:
        DamagedLabelFile: It was read, and is not such a file.
        LabelTableError: The storage does not answer or refuses.
    """
    try:
        with decoding(uri):
            fs, path = storage.filesystem(uri)
            with fs.open_input_file(path) as file:
                yield pq.ParquetFile(file)
    except AccessDenied as error:
        raise error.as_storage_error(uri) from error
    except SourceChanged as error:
        raise LabelTableError(f"{uri} was removed while it was read; run the same command again") from error
    except UnreadableSource as error:
        raise DamagedLabelFile(f"{uri} is not a label table's file: {error}") from error


def read_metadata(uri: str, size: int | None, interpret: Callable[[pq.FileMetaData], T]) -> T:
    """What `interpret` makes of a Parquet file's metadata; errors as for `open_table_file`."""
    if size:
        fs, path = storage.filesystem(uri)
        try:
            # A fragment, unlike an open file, takes our word for the size.
            return interpret(_FORMAT.make_fragment(path, fs, file_size=size).metadata)
        except (OSError, ValueError, KeyError):
            pass  # Replaced or removed since it was listed, or damaged, or an outage: the long way finds out.
    with open_table_file(uri) as parquet:
        return interpret(parquet.metadata)


def record_of(metadata: pq.FileMetaData) -> bytes:
    """The record in a Parquet footer.

    Raises:
        ValueError: There is none.
    """
    record = (metadata.metadata or {}).get(FOOTER_KEY.encode())
    if record is None:
        raise ValueError(f"its footer has no key {FOOTER_KEY!r}")
    return bytes(record)


def _footer_of(metadata: pq.FileMetaData) -> LabelFooter:
    return LabelFooter.decode(record_of(metadata), metadata.num_rows)


def _checked(file: LabelFile, footer: LabelFooter) -> LabelFooter:
    """The footer, if it is what the file's name says."""
    name = parse_label_path(file.path)
    said = footer.source.path, content_id(footer.source), footer.rows
    if name is None or said != (name.source_path, name.content, name.rows):
        raise DamagedLabelFile(f"{file} says that it has rows {footer.rows} of {footer.source.path}")
    return footer
