"""Opening Parquet files in which a column that nobody wants has a type that cannot be.

Arrow makes types of all columns when it opens a file, and refuses the whole file if one does not work out, such as a
map whose keys may be null, which some writers produce. Such a file is opened with a footer that has the wanted columns
only. A footer is one struct in Thrift's compact protocol (https://github.com/apache/thrift, doc/specs): it is read
without knowing what its fields mean, shortened, and written again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SUFFIXES = (".parquet", ".parq", ".pq")
_MAGIC = b"PAR1"
# Types of the compact protocol; a boolean in a struct is its type.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_VARINTS = (4, 5, 6)
# Fields of FileMetaData, SchemaElement, RowGroup and KeyValue, see parquet.thrift.
_SCHEMA, _ROW_GROUPS, _KEY_VALUES, _COLUMN_ORDERS = 2, 4, 5, 7
_NAME, _NUM_CHILDREN = 4, 5
_CHUNKS, _SORTING = 1, 4
_KEY = 1

Struct = dict[int, tuple[int, Any]]
"""Field -> type and value. Lists are (type of the elements, elements)."""


def is_parquet_name(path: str) -> bool:
    """Whether a file is taken for Parquet by its name."""
    return path.lower().endswith(_SUFFIXES)


def open_parquet(file: pa.NativeFile, choose: Callable[[list[str]], Collection[str]], **options: Any) -> pq.ParquetFile:
    """A Parquet file; with some of its columns only if Arrow refuses the type of another one.

    Args:
        file: Open for reading.
        choose: Given the names of all columns, returns those that must be there; called only where it matters.
        options: Of `pyarrow.parquet.ParquetFile`.

    Raises:
        pa.ArrowException, OSError: It is not Parquet, or a column that must be there is the one that does not work.
    """
    try:
        return pq.ParquetFile(file, **options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        footer = _read_footer(file)
        if footer is None:
            raise
        names = [name for name, _, _ in _columns(footer)]
        metadata = _metadata(_with_columns(footer, choose(names)))
        try:
            return pq.ParquetFile(file, metadata=metadata, **options)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise error from None


def _read_footer(file: pa.NativeFile) -> Struct | None:
    """The footer; None if there is none to be read."""
    size = file.size()
    if size < 12:
        return None
    tail = file.read_at(8, size - 8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - 12:
        return None
    try:
        return _Reader(file.read_at(length, size - 8 - length)).struct()
    except (IndexError, ValueError, RecursionError):
        return None


def _metadata(footer: Struct) -> pq.FileMetaData:
    data = _struct_bytes(footer)
    return pq.read_metadata(pa.BufferReader(_MAGIC + data + len(data).to_bytes(4, "little") + _MAGIC))


def _columns(footer: Struct) -> list[tuple[str, list[Struct], int]]:
    """Name, schema elements and number of leaves of each column."""
    elements = footer[_SCHEMA][1][1]
    columns, start = [], 1
    while start < len(elements):
        stop, open_nodes, leaves = start, 1, 0
        while open_nodes:
            children = elements[stop].get(_NUM_CHILDREN, (0, 0))[1]
            open_nodes += children - 1
            leaves += not children
            stop += 1
        columns.append((elements[start][_NAME][1].decode(), elements[start:stop], leaves))
        start = stop
    return columns


def _with_columns(footer: Struct, wanted: Collection[str]) -> Struct:
    """The footer with these columns only, and without what refers to others."""
    columns = _columns(footer)
    root = footer[_SCHEMA][1][1][0]
    kept = [elements for name, elements, _ in columns if name in wanted]
    schema = [{**root, _NUM_CHILDREN: (root[_NUM_CHILDREN][0], len(kept))}, *(item for part in kept for item in part)]
    keeps = [name in wanted for name, _, leaves in columns for _ in range(leaves)]

    def shortened(row_group: Struct) -> Struct:
        kind, (of, chunks) = row_group[_CHUNKS]
        few = [chunk for chunk, keep in zip(chunks, keeps, strict=True) if keep]
        return {**{key: value for key, value in row_group.items() if key != _SORTING}, _CHUNKS: (kind, (of, few))}

    groups = [shortened(row_group) for row_group in footer[_ROW_GROUPS][1][1]]
    lists = {_SCHEMA: schema, _ROW_GROUPS: groups}
    if _KEY_VALUES in footer:
        # Arrow's own schema has all columns.
        lists[_KEY_VALUES] = [pair for pair in footer[_KEY_VALUES][1][1] if pair[_KEY][1] != b"ARROW:schema"]
    fields = {key: value for key, value in footer.items() if key != _COLUMN_ORDERS}
    return {**fields, **{key: (_LIST, (_STRUCT, items)) for key, items in lists.items()}}


class _Reader:
    """Reads values of the compact protocol from bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> Struct:
        fields: Struct = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._varint() >> 1
            fields[number] = header & 15, self._value(header & 15)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE):
            return None
        if kind in _VARINTS:
            return _unzigzag(self._varint())
        if kind == _BYTE:
            return self._byte()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return self._list()
        if kind == _STRUCT:
            return self.struct()
        raise ValueError(f"type {kind} does not occur in Parquet footers")

    def _list(self) -> tuple[int, list[Any]]:
        header = self._byte()
        size = header >> 4 if header >> 4 < 15 else self._varint()
        kind = header & 15
        # A boolean in a list is a byte of its own.
        return kind, [self._byte() if kind in (_TRUE, _FALSE) else self._value(kind) for _ in range(size)]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._data):
            raise IndexError
        return self._data[self._at - size : self._at]


def _struct_bytes(fields: Struct) -> bytes:
    parts, last = [], 0
    for number, (kind, value) in sorted(fields.items()):
        delta = number - last
        parts.append(bytes([delta << 4 | kind]) if delta < 16 else bytes([kind]) + _varint_bytes(number << 1))
        parts.append(_value_bytes(kind, value))
        last = number
    return b"".join(parts) + b"\0"


def _value_bytes(kind: int, value: Any) -> bytes:
    if kind in (_TRUE, _FALSE):
        return b""
    if kind in _VARINTS:
        return _varint_bytes(_zigzag(value))
    if kind == _BYTE:
        return bytes([value])
    if kind == _BINARY:
        return _varint_bytes(len(value)) + bytes(value)
    if kind in (_LIST, _SET):
        of, elements = value
        size = len(elements)
        head = bytes([size << 4 | of]) if size < 15 else bytes([0xF0 | of]) + _varint_bytes(size)
        return head + b"".join(bytes([each]) if of in (_TRUE, _FALSE) else _value_bytes(of, each) for each in elements)
    return _struct_bytes(value) if kind == _STRUCT else bytes(value)


def _varint_bytes(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _zigzag(value: int) -> int:
    return (value << 1) ^ (value >> 63)


def _unzigzag(value: int) -> int:
    return (value >> 1) ^ -(value & 1)
