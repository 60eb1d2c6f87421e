"""A column of a source file, in steps whose memory is bounded here and not by what the file decodes to.

A few kilobytes can decode to gigabytes: one long value of a dictionary may stand in every row, and with prefix encoding
(DELTA_BYTE_ARRAY) each value may repeat the one before. So values are decoded a few at a time, and a column whose
dictionary has long values comes as a dictionary: whoever reads it cuts the values before they are put into rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtop_batch.corpus.files import OpenSource

# Decoding fewer values than this at a time costs more than it saves.
_FEW_ROWS = 16
# Dictionaries with longer values are not decoded: in every row they would take gigabytes, and minutes.
_LONG_VALUE_BYTES = 64 << 10
# Larger ones take less memory value by value. Texts are never compressed to less than one part in so many.
_MAX_DICTIONARY_BYTES = 128 << 20
_MAX_DICTIONARY_ROWS = 1 << 20
_MAX_COMPRESSION = 50
_FIXED_BYTES = 16


@dataclass(frozen=True)
class RowsToRead:
    """Rows of a source file.

    Args:
        row_groups: The row groups that hold them: first, and the one after the last.
        skip: Rows of these row groups before the first.
        num_rows: How many.
    """

    row_groups: tuple[int, int]
    skip: int
    num_rows: int


@dataclass(frozen=True)
class Limits:
    """What is in memory of a column at a time: at most so many rows, and about so many bytes (at least one row)."""

    rows: int
    num_bytes: int


def read_column(source: OpenSource, name: str, rows: RowsToRead, limits: Limits) -> Iterator[pa.Array]:
    """The values of a column in order, in arrays within the limits.

    An array may be dictionary-encoded whatever the column's type. It then has more rows, but its dictionary and its
    indices are what the file itself has of them; `in_rows` decodes it within the limits.

    Args:
        source: The open file.
        name: One of its columns.
        rows: Which rows; fewer come where the file does not have as many as it says.
        limits: Of each array.
    """
    return _merged(_wanted(_Column(source, name, limits).arrays(rows.row_groups), rows), limits)


def in_rows(values: pa.Array, indices: pa.Array, limits: Limits) -> Iterator[pa.Array]:
    """Parts of `indices` that stay within the limits when `values` are taken by them.

    Raises:
        pa.ArrowInvalid: One is not an index of the values.
    """
    lengths = np.append(_value_bytes(values), 0)  # the last is that of null
    rows = indices.cast(pa.int64()).fill_null(len(values)).to_numpy(zero_copy_only=False)
    if len(rows) and (rows.min() < 0 or rows.max() > len(values)):
        raise pa.ArrowInvalid(f"an index is not one of a dictionary of {len(values):,} values")
    ends = np.cumsum(lengths[rows])
    start = 0
    while start < len(indices):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + limits.num_bytes, side="right"))
        stop = min(max(stop, start + 1), start + limits.rows)
        yield indices[start:stop]
        start = stop


def _value_bytes(values: pa.Array) -> npt.NDArray[np.int64]:
    if _is_bytes(values.type):
        lengths: npt.NDArray[np.int64] = pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False)
        return lengths.astype(np.int64)
    return np.full(len(values), _FIXED_BYTES, np.int64)


def _is_bytes(value_type: pa.DataType) -> bool:
    types = pa.types
    of_any_length = types.is_string(value_type) or types.is_binary(value_type)
    return of_any_length or types.is_large_string(value_type) or types.is_large_binary(value_type)


class _Column:
    """How to read a column: decoded or as a dictionary, and how many rows at a time, for each row group."""

    def __init__(self, source: OpenSource, name: str, limits: Limits) -> None:
        self._source, self._name, self._limits = source, name, limits
        # Of its own: how many rows come at a time belongs to the open file, not to who iterates over it.
        self._decoded = source.reopened()
        self._is_dictionary = pa.types.is_dictionary(source.parquet.schema_arrow.field(name).type)
        schema = source.parquet.schema
        leaf = next((index for index in range(len(schema)) if schema.column(index).path == name), None)
        self._leaf = leaf
        self._fixed_bytes = 0
        if leaf is not None and schema.column(leaf).physical_type != "BYTE_ARRAY":
            self._fixed_bytes = max(schema.column(leaf).length, _FIXED_BYTES)

    @cached_property
    def _as_dictionary(self) -> pq.ParquetFile:
        return self._source.reopened(read_dictionary=[self._name])

    def arrays(self, row_groups: tuple[int, int]) -> Iterator[pa.Array]:
        """All values of these row groups."""
        self._check_not_encrypted(row_groups[0])
        for (as_dictionary, num_rows), alike in groupby(range(*row_groups), self._way):
            file = self._as_dictionary if as_dictionary else self._decoded
            batches = file.iter_batches(
                batch_size=num_rows,
                row_groups=list(alike),
                columns=[self._name],
                use_threads=False,  # units are read side by side
            )
            yield from (batch.column(self._name) for batch in batches)

    def _check_not_encrypted(self, row_group: int) -> None:
        """Reading an encrypted column is an error, but the question for its metadata ends the process (pyarrow 26)."""
        next(self._decoded.iter_batches(batch_size=1, row_groups=[row_group], columns=[self._name]), None)

    def _way(self, row_group: int) -> tuple[bool, int]:
        """Whether to read a row group as a dictionary, and how many rows at a time."""
        metadata = self._source.parquet.metadata.row_group(row_group)
        if self._fixed_bytes:
            return False, self._within(self._fixed_bytes)
        # No value is longer than the row group.
        if self._leaf is None or metadata.total_byte_size <= _LONG_VALUE_BYTES:
            return self._is_dictionary, self._within(metadata.total_byte_size)
        chunk = metadata.column(self._leaf)
        num_bytes = chunk.total_uncompressed_size
        as_dictionary = True, min(_MAX_DICTIONARY_ROWS, self._share(num_bytes / max(metadata.num_rows, 1)))
        if self._is_dictionary:
            return as_dictionary
        safe_rows = self._within(num_bytes)
        few_rows = max(safe_rows, min(_FEW_ROWS, self._within(_LONG_VALUE_BYTES)))
        if num_bytes <= _LONG_VALUE_BYTES or "DELTA_BYTE_ARRAY" in chunk.encodings:
            return False, safe_rows
        if not chunk.has_dictionary_page or "DELTA_LENGTH_BYTE_ARRAY" in chunk.encodings:
            return False, few_rows
        if num_bytes <= _MAX_DICTIONARY_BYTES:
            return as_dictionary if self._has_long_values(row_group) else (False, few_rows)
        is_text = num_bytes <= _MAX_COMPRESSION * chunk.total_compressed_size
        return False, few_rows if is_text else safe_rows

    def _within(self, num_bytes: float) -> int:
        """How many rows of so many bytes each may be in memory."""
        return min(self._limits.rows, self._share(num_bytes))

    def _share(self, num_bytes: float) -> int:
        return max(1, int(self._limits.num_bytes / max(num_bytes, 1)))

    def _has_long_values(self, row_group: int) -> bool:
        batches = self._as_dictionary.iter_batches(batch_size=1, row_groups=[row_group], columns=[self._name])
        dictionary = next(batches).column(self._name).dictionary
        return bool(_value_bytes(dictionary).max(initial=0) > _LONG_VALUE_BYTES)


def _wanted(arrays: Iterator[pa.Array], rows: RowsToRead) -> Iterator[pa.Array]:
    skip, left = rows.skip, rows.num_rows
    for array in arrays:
        if skip >= len(array):
            skip -= len(array)
            continue
        part = array.slice(skip, left)
        skip, left = 0, left - len(part)
        yield part
        if not left:
            return


def _merged(arrays: Iterator[pa.Array], limits: Limits) -> Iterator[pa.Array]:
    """Neighbours put together as far as the limits allow; dictionaries stay as they are."""
    parts: list[pa.Array] = []
    num_rows = num_bytes = 0
    for array in arrays:
        is_dictionary = pa.types.is_dictionary(array.type)
        size = array.nbytes
        too_much = num_rows + len(array) > limits.rows or num_bytes + size > limits.num_bytes
        if parts and (is_dictionary or too_much):
            yield _joined(parts)
            parts, num_rows, num_bytes = [], 0, 0
        if is_dictionary:
            yield array
            continue
        parts.append(array)
        num_rows, num_bytes = num_rows + len(array), num_bytes + size
    if parts:
        yield _joined(parts)


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
