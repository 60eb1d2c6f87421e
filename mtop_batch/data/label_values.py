"""Label columns to indices of a task's labels, or to the values of a regression.

Strings are labels. Integers, and floats without a fraction (what pandas makes of integers with gaps), are indices into
the task's labels, unless the labels themselves are those numbers. Booleans are the labels "true" and "false" where the
task has them, otherwise the indices 1 and 0. The integers of a hub data set's `ClassLabel` column stand for its names
where these are the task's labels; -1 is how such data sets mark a missing label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.sources import Part
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


def read_labels(task: Task, parts: Sequence[Part], column: str) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """The labels of all rows of all parts, and which are missing (null or NaN).

    Args:
        task: Decides what is allowed.
        parts: In order; each has the column.
        column: The label column.

    Returns:
        (R,) int64 indices of labels, or float32 values of a regression; what stands at missing ones means nothing.
        (R,) bool.

    Raises:
        DataError: A label is not allowed, or the column's type is not, or differs between files.
    """
    values = _same_kind(task, parts, [_plain(task, part, column) for part in parts])
    missing = values.is_null(nan_is_null=True)
    if task.kind == "regression":
        labels, bad, allowed = values, pc.is_inf(_numbers(task, values)), "finite numbers"
    else:
        labels, allowed = _label_indices(task, values), ", ".join(map(repr, task.labels))
        bad = pc.and_(pc.invert(missing), labels.is_null())
        if not pa.types.is_string(values.type):
            allowed += f", or their indices 0 to {len(task.labels) - 1}"
    if pc.any(bad).as_py():
        raise _refusal(task, parts, values, bad, allowed)
    labels = labels.fill_null(0).to_numpy(zero_copy_only=False)
    dtype = np.float32 if task.kind == "regression" else np.int64
    return labels.astype(dtype), missing.to_numpy(zero_copy_only=False)


def _plain(task: Task, part: Part, column: str) -> pa.Array:
    """A part's label column as strings, booleans, int64, float64, or nulls."""
    values = part.table[column].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if values.null_count == len(values):
        return pa.nulls(len(values))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.string())
    if pa.types.is_boolean(kind):
        return values
    if pa.types.is_integer(kind):
        return _named(task, values.cast(pa.int64(), safe=False), part.label_names.get(column))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return values.cast(pa.float64())
    raise DataError(
        f"task {task.name!r}: label column {column!r} of {part.name} has type {kind}; allowed are strings, integers, "
        "booleans and floats"
    )


def _named(task: Task, values: pa.Array, names: list[str] | None) -> pa.Array:
    """The integers of a `ClassLabel` column as its names, where these are the task's labels; -1 as null."""
    if names is None:
        return values
    values = pc.if_else(pc.less(values, 0), pa.scalar(None, pa.int64()), values)
    return pa.array(names).take(values) if set(names) <= set(task.labels) else values


def _same_kind(task: Task, parts: Sequence[Part], columns: Sequence[pa.Array]) -> pa.Array:
    """All columns as one; integers and floats together are floats, a column of nulls is what the others are."""
    kinds = {column.type: part.name for part, column in zip(parts, columns, strict=True)}
    kinds.pop(pa.null(), None)
    if set(kinds) == {pa.int64(), pa.float64()}:
        kinds.pop(pa.int64())
    if len(kinds) > 1:
        found = "; ".join(f"{kind} in {name}" for kind, name in kinds.items())
        raise DataError(f"task {task.name!r}: its labels are of different types: {found}; write them all in one type")
    kind = next(iter(kinds), pa.float64() if task.kind == "regression" else pa.string())
    return pa.concat_arrays([column.cast(kind) for column in columns])


def _numbers(task: Task, values: pa.Array) -> pa.Array:
    if pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
        raise DataError(
            f"task {task.name!r}: its labels have type {values.type}, and a regression needs numbers; "
            'write numbers, or set kind = "classification"'
        )
    return values.cast(pa.float64())


def _label_indices(task: Task, values: pa.Array) -> pa.Array:
    """The index of each label, null where it is missing or not allowed."""
    if pa.types.is_string(values.type):
        return pc.index_in(values, pa.array(task.labels)).cast(pa.int64())
    if pa.types.is_boolean(values.type):
        folded = [label.casefold() for label in task.labels]
        if {"true", "false"} <= set(folded):
            return pc.index_in(values.cast(pa.string()), pa.array(folded)).cast(pa.int64())
        return values.cast(pa.int64())
    if pa.types.is_floating(values.type):
        is_whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))
        values = pc.if_else(is_whole, values, None).cast(pa.int64())
    numbers_as_labels = pc.index_in(values.cast(pa.string()), pa.array(task.labels)).cast(pa.int64())
    if numbers_as_labels.null_count == values.null_count:
        return numbers_as_labels
    is_index = pc.and_(pc.greater_equal(values, 0), pc.less(values, len(task.labels)))
    return pc.if_else(is_index, values, pa.scalar(None, pa.int64()))


def _refusal(task: Task, parts: Sequence[Part], values: pa.Array, bad: pa.Array, allowed: str) -> DataError:
    row = first = pc.index(bad, True).as_py()
    for part in parts:
        if row < len(part.table):
            break
        row -= len(part.table)
    more = pc.sum(bad).as_py() - 1
    return DataError(
        f"task {task.name!r}: {part.name}, row {row}: label {values[first].as_py()!r}"
        f"{f' (and those of {more} more rows)' if more else ''} cannot be used; allowed: {allowed}; "
        "correct the data or the labels of the task"
    )
