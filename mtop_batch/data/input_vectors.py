"""Vectors that stand beside a text, such as embeddings of an article's images: read from columns, kept ragged.

A row has none, one or several vectors of each input (`mtop_batch.tasks.VectorInput`): a column holds lists of floats,
or lists of such lists. Null, for a row or among a row's vectors, means that there is none, and what a model has no
place for (`VectorInput.tokens`) is left out, as the end of a long text is. A row of the wrong size, or with a value
that is no finite number, has a reason instead.

Shapes: R rows, N vectors of all rows together, S numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.errors import DataError
from mtop_batch.lines import did_you_mean, listed, shown
from mtop_batch.tasks import VectorInput

_NO_REASON = pa.scalar(None, pa.string())


@dataclass(frozen=True)
class InputVectors:
    """The vectors of R rows, of one input.

    Args:
        values: (N, S) float32, row after row.
        offsets: (R + 1,) int64, starting with 0; row i has `values[offsets[i]:offsets[i + 1]]`.
    """

    values: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def none(cls, size: int, num_rows: int) -> InputVectors:
        """Rows without vectors."""
        return cls(np.empty((0, size), np.float32), np.zeros(num_rows + 1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(R,) How many vectors each row has."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.integer]) -> InputVectors:
        """The rows with these indices, in this order."""
        counts = self.counts[rows]
        offsets = np.append(0, counts.cumsum())
        places = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return InputVectors(self.values[places], offsets)

    @classmethod
    def concat(cls, parts: Sequence[InputVectors]) -> InputVectors:
        """All rows of all parts, of which there is one at least, in order."""
        counts = np.concatenate([part.counts for part in parts])
        return cls(np.concatenate([part.values for part in parts]), np.append(0, counts.cumsum()))

    def to_arrow(self) -> pa.Array:
        """(R,) Lists of lists of S float32."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.values.reshape(-1)), self.values.shape[1])
        return pa.LargeListArray.from_arrays(pa.array(self.offsets), vectors)

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> InputVectors:
        """What `to_arrow` wrote."""
        size = column.type.value_type.list_size
        counts = pc.list_value_length(column).to_numpy()
        values = pc.list_flatten(pc.list_flatten(column)).to_numpy().reshape(-1, size)
        return cls(values, np.append(0, counts.cumsum()).astype(np.int64))


def vectors_of_rows(
    inputs: Sequence[VectorInput], columns: Sequence[pa.Array], num_rows: int
) -> tuple[tuple[InputVectors, ...], pa.Array]:
    """What columns hold of the inputs.

    Args:
        inputs: Of a model.
        columns: One for each of the inputs, of R rows.
        num_rows: R

    Returns:
        The vectors of each input, and (R,) why a row has none that can be read; null where all is well. Such a row has
        none at all.
    """
    found, reasons = [], pa.nulls(num_rows, pa.string())
    for spec, column in zip(inputs, columns, strict=True):
        vectors, own = read_vectors(column, spec)
        found.append(vectors)
        reasons = pc.coalesce(reasons, own)
    return tuple(found), reasons


def read_vectors(column: pa.Array, spec: VectorInput) -> tuple[InputVectors, pa.Array]:
    """The vectors of a column's R rows, and (R,) why a row has none that can be read; null where all is well."""
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not is_vector_type(column.type):
        reason = f"input column {spec.column!r} has type {shown(str(column.type))}, not lists of {spec.size} floats"
        has_value = pc.invert(column.is_null(nan_is_null=True))
        return InputVectors.none(spec.size, len(column)), pc.if_else(has_value, reason, _NO_REASON)
    if pa.types.is_null(column.type):
        return InputVectors.none(spec.size, len(column)), pa.nulls(len(column), pa.string())
    rows, vectors = np.arange(len(column)), column
    if _is_list(column.type.value_type):
        rows = np.repeat(rows, pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
        vectors = pc.list_flatten(column)
    is_there = vectors.is_valid().to_numpy(zero_copy_only=False)
    rows, vectors = rows[is_there], vectors.filter(pa.array(is_there))
    lengths = pc.list_value_length(vectors).to_numpy(zero_copy_only=False)
    reasons = np.full(len(column), None, object)
    wrong = lengths != spec.size
    for row, length in zip(rows[wrong], lengths[wrong], strict=True):
        reasons[row] = f"input column {spec.column!r} has a vector of {length:,} floats, not {spec.size:,}"
    rows, vectors = rows[~wrong], vectors.filter(pa.array(~wrong))
    values = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).reshape(-1, spec.size)
    with np.errstate(over="ignore"):  # what float32 has no room for is infinite then
        values = values.astype(np.float32)
    reasons[rows[~np.isfinite(values).all(axis=1)]] = (
        f"input column {spec.column!r} has a value that is no finite number"
    )
    is_good = np.array([reason is None for reason in reasons], bool)
    kept = (np.arange(len(rows)) - np.searchsorted(rows, rows) < spec.tokens) & is_good[rows]
    counts = np.bincount(rows[kept], minlength=len(column))
    return InputVectors(values[kept], np.append(0, counts.cumsum())), pa.array(reasons, pa.string())


def is_vector_type(column_type: pa.DataType) -> bool:
    """Whether a column of this type may hold vectors: lists of floats, or lists of such lists."""
    if pa.types.is_null(column_type):
        return True
    if not _is_list(column_type):
        return False
    inner = column_type.value_type
    inner = inner.value_type if _is_list(inner) else inner
    return bool(pa.types.is_floating(inner))


def check_vector_column(column: pa.ChunkedArray, spec: VectorInput, file: str, whose: str = "") -> None:
    """Refuse a column of labelled data whose type holds no vectors.

    Args:
        column: The column.
        spec: The input.
        file: Whose column it is.
        whose: What a message begins with, such as a task.

    Raises:
        DataError: It has values, of another type.
    """
    plain = column.type.storage_type if isinstance(column.type, pa.BaseExtensionType) else column.type
    if not is_vector_type(plain) and column.null_count < len(column):
        raise DataError(
            f"{whose}input column {spec.column!r} of {file} has type {shown(str(column.type))}, not lists of "
            f"{spec.size} floats; name another column, or write it as such lists"
        )


def given_vectors(
    inputs: Sequence[VectorInput], given: Mapping[str, Iterable[object] | pa.Array | None] | None, num_rows: int
) -> tuple[tuple[InputVectors, ...], pa.Array]:
    """The vectors that somebody gives in Python for R rows, as `vectors_of_rows` has them.

    Args:
        inputs: Of the model; those that are not given have no vectors.
        given: Column -> a vector, several or None for each row: lists, an array (R, S), or an Arrow array.
        num_rows: R

    Raises:
        DataError: A column is none of the model's, or has not R rows, or holds no vectors.
    """
    given = given or {}
    known = [spec.column for spec in inputs]
    for name in given:
        if name not in known:
            raise DataError(f"the model has no input {name!r}; {did_you_mean(name, known)}inputs: {listed(known)}")
    columns = [_as_arrow(spec, given.get(spec.column), num_rows) for spec in inputs]
    return vectors_of_rows(inputs, columns, num_rows)


def _as_arrow(spec: VectorInput, given: object, num_rows: int) -> pa.Array:
    if given is None:
        return pa.nulls(num_rows)
    try:
        if isinstance(given, pa.ChunkedArray):
            given = given.combine_chunks()
        column = given if isinstance(given, pa.Array) else pa.array([_as_list(value) for value in given])  # type: ignore[attr-defined]
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise DataError(f"input {spec.column!r} holds no lists of {spec.size} floats: {error}") from None
    if len(column) != num_rows:
        raise DataError(f"input {spec.column!r} has {len(column):,} rows, and there are {num_rows:,} texts")
    if not is_vector_type(column.type):
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            column = column.cast(pa.list_(pa.float64()))  # whole numbers, as vectors of zeros and ones may have them
    return column


def _as_list(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _is_list(column_type: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(column_type) or types.is_large_list(column_type) or types.is_fixed_size_list(column_type))
