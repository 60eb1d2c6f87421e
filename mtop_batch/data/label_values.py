"""Label columns to indices of a task's labels, to which of them a text has, or to the values of a regression.

Strings are labels, and so are the names that come with whole numbers: the `ClassLabel` columns of data sets, also of
those written to Parquet. Other numbers are labels written as numbers (`labels = ["1", "2", "3"]`) or indices into the
task's labels; true and false are the labels that mean these ("yes", "no", ...). Which of the two it is, is decided once
for all values of all files of a task; `label_by` says it where both can be.

A multi-label task has lists of such values; a value that stands alone is a list of one. A list without values is a text
without labels; a label that a list has twice counts once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.sources import Part
from mtop_batch.errors import DataError
from mtop_batch.tasks import LabelBy, Task

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.bool_]

_TRUE, _FALSE = ("true", "yes", "1", "t", "y", "on"), ("false", "no", "0", "f", "n", "off")
_CHOOSE = 'set label_by = "name" or label_by = "index" of the task, or write the labels as strings'
# The share of the labels' spread that rounding to float32 may cost.
_MAX_ROUNDING = 1e-3
_MAX_NAMED = 10
_NUMBERS = (pa.int64(), pa.float64())


@dataclass(frozen=True)
class LabelValues:
    """The labels of R rows.

    Args:
        labels: (R,) int64 indices of labels, or float32 values of a regression; (R, C) bool, which of its C labels a
            text of a multi-label task has. What stands at missing ones means nothing.
        missing: (R,) Those that are null, NaN, or -1 beside names.
        label_by: How they were read, strings and names that come with the data by name; None for true and false, and
            for a regression.
    """

    labels: Labels
    missing: npt.NDArray[np.bool_]
    label_by: LabelBy | None = None

    def __getitem__(self, rows: slice) -> LabelValues:
        """Those of some rows."""
        return LabelValues(self.labels[rows], self.missing[rows], self.label_by)


def read_labels(task: Task, parts: Sequence[Part], column: str, label_by: LabelBy | None = None) -> LabelValues:
    """The labels of all rows of all parts.

    Args:
        task: Decides what is allowed.
        parts: All that the task has, in order; each has the column.
        column: The label column.
        label_by: What numbers, true and false are; None decides by the values. Names that come with the data, and are
            the task's, count before it.

    Raises:
        DataError: A label is not allowed, two readings are possible, or the column's type is not allowed, or differs
            between files; a list has null among its labels.
    """
    if task.is_multi_label:
        return _read_lists(task, parts, column, label_by)
    values = _same_kind(task, parts, [_plain(task, part, column, label_by) for part in parts])
    missing = values.is_null(nan_is_null=True)
    found: LabelBy | None = None
    if task.kind == "regression":
        labels, allowed = _regression_values(task, values), "finite numbers, no larger than float32 has"
    else:
        labels, found, allowed = _label_indices(task, values, column, label_by)
    bad = pc.and_(pc.invert(missing), labels.is_null())
    if pc.any(bad).as_py():
        raise _refusal(task, parts, values, bad, allowed)
    labels = labels.fill_null(0).to_numpy(zero_copy_only=False)
    dtype = np.float32 if task.kind == "regression" else np.int64
    return LabelValues(labels.astype(dtype), missing.to_numpy(zero_copy_only=False), found)


@dataclass(frozen=True)
class _Lists:
    """Label lists of a part, one after the other; a column without lists is one of lists with one value each.

    Args:
        part: The part with the lists' values as its rows.
        rows: The row of each value.
        are_lists: Whether the column has lists.
        missing: For each row, whether its list is null.
    """

    part: Part
    rows: npt.NDArray[np.int64]
    are_lists: bool
    missing: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, part: Part, column: str) -> _Lists:
        lists = part.table[column].combine_chunks()
        if not _is_list(lists.type):
            nothing = np.zeros(len(lists), bool)
            return cls(
                Part(part.name, part.table.select([column]), part.label_names), np.arange(len(lists)), False, nothing
            )
        lengths = pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
        values = pa.table({column: pc.list_flatten(lists)})
        rows = np.repeat(np.arange(len(lists)), lengths)
        return cls(
            Part(part.name, values, part.label_names), rows, True, lists.is_null().to_numpy(zero_copy_only=False)
        )


def _read_lists(task: Task, parts: Sequence[Part], column: str, label_by: LabelBy | None) -> LabelValues:
    """The labels of a multi-label task, as `read_labels` has them."""
    lists = [_Lists.of(part, column) for part in parts]
    values = _same_kind(task, parts, [_plain(task, of.part, column, label_by) for of in lists])
    starts = np.cumsum([0, *(len(of.missing) for of in lists)])
    rows = np.concatenate([of.rows + start for of, start in zip(lists, starts[:-1], strict=True)])
    in_list = np.concatenate([np.full(len(of.rows), of.are_lists) for of in lists])
    missing = np.concatenate([of.missing for of in lists])
    is_null = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if (is_null & in_list).any():
        where, more = _where(parts, rows[is_null & in_list])
        raise DataError(
            f"task {task.name!r}: {where}: null stands among the labels{more}; leave nulls out of the lists in "
            f"{column!r}; a list without labels is a text that has none"
        )
    missing[rows[is_null]] = True
    indices, found, allowed = _label_indices(task, values, column, label_by)
    bad = pc.and_(pa.array(~is_null), indices.is_null())
    if pc.any(bad).as_py():
        raise _refusal(task, parts, values, bad, allowed, rows)
    labels = np.zeros((len(missing), len(task.labels)), bool)
    labels[rows[~is_null], indices.drop_null().to_numpy(zero_copy_only=False)] = True
    return LabelValues(labels, missing, found)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


@dataclass(frozen=True)
class _Plain:
    """A part's label column as strings, booleans, int64, float64, or nulls; whether the names of numbers were taken."""

    values: pa.Array
    are_names: bool = False

    def __str__(self) -> str:
        return "whole numbers with names" if self.are_names else str(self.values.type)


def _plain(task: Task, part: Part, column: str, label_by: LabelBy | None) -> _Plain:
    values = part.table[column].combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pc.all(values.is_null(nan_is_null=True)).as_py() is not False:
        return _Plain(pa.nulls(len(values)))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _Plain(_valid_strings(task, part, column, values))
    if pa.types.is_boolean(kind):
        return _Plain(values)
    names = part.label_names.get(column)
    if pa.types.is_integer(kind) or (pa.types.is_floating(kind) and names is not None):
        numbers = _whole_numbers(task, part, column, values)
        return _Plain(numbers) if names is None else _named(task, part, column, numbers, names, label_by)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _Plain(values.cast(pa.float64()))
    way_out = '; a task with lists of labels has kind = "multi-label"' if _is_list(kind) and task.labels else ""
    raise DataError(
        f"task {task.name!r}: label column {column!r} of {part.name} has type {kind}; allowed are strings, integers, "
        f"booleans and floats{', and lists of these' if task.is_multi_label else way_out}"
    )


def _valid_strings(task: Task, part: Part, column: str, values: pa.Array) -> pa.Array:
    strings = values.cast(pa.string())
    try:
        strings.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"task {task.name!r}: label column {column!r} of {part.name} has strings that are not UTF-8; write it again"
        ) from error
    return strings


def _whole_numbers(task: Task, part: Part, column: str, values: pa.Array) -> pa.Array:
    """Numbers as int64; NaN is how pandas writes that there is none."""
    try:
        return pc.if_else(values.is_null(nan_is_null=True), pa.scalar(None, values.type), values).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"task {task.name!r}: label column {column!r} of {part.name}: {error}") from error


def _named(
    task: Task, part: Part, column: str, values: pa.Array, names: Sequence[str], label_by: LabelBy | None
) -> _Plain:
    """The integers of a `ClassLabel` column as its names, those of a regression as the numbers that these are.

    -1 is how such data sets mark a missing label. Names "0", "1", "2" ... are none: who gives no names gets these.
    """
    values = pc.if_else(pc.equal(values, -1), pa.scalar(None, pa.int64()), values)
    if list(names) == list(map(str, range(len(names)))):
        return _Plain(values)
    used = pc.unique(values.drop_null()).to_pylist()
    occurring = [names[value] for value in used if 0 <= value < len(names)]
    fits = len(occurring) == len(used)
    if fits and task.kind == "regression" and all(_number(name) is not None for name in occurring):
        return _Plain(pa.array([_number(name) for name in names], pa.float64()).take(values), are_names=True)
    if fits and task.kind != "regression" and set(occurring) <= set(task.labels):
        return _Plain(pa.array(names, pa.string()).take(values), are_names=True)
    if label_by == "index":
        return _Plain(values)
    wanted = f"labels = {list(task.labels)}" if task.labels else "a regression, which needs numbers"
    raise DataError(
        f"task {task.name!r}: label column {column!r} of {part.name} comes with the names {_listed(names)} for its "
        f"whole numbers {_listed(sorted(used))}, and the task has {wanted}; give the labels the same names, or set "
        'label_by = "index" of the task to take the numbers as they are'
    )


def _same_kind(task: Task, parts: Sequence[Part], columns: Sequence[_Plain]) -> pa.Array:
    """All columns as one; integers and floats together are floats, a column of nulls is what the others are.

    Numbers beside those of which the names were taken would be of another scale, or of other labels.
    """
    given = [(plain, part.name) for part, plain in zip(parts, columns, strict=True) if plain.values.type != pa.null()]
    scales = {(plain.values.type in _NUMBERS, plain.values.type in _NUMBERS and plain.are_names) for plain, _ in given}
    types = {pa.float64() if plain.values.type in _NUMBERS else plain.values.type for plain, _ in given}
    if len(types) > 1 or len(scales) > 1:
        found = "; ".join(f"{kind} in {name}" for kind, name in {str(plain): name for plain, name in given}.items())
        raise DataError(f"task {task.name!r}: its labels are of different types: {found}; write them all in one type")
    kinds = {plain.values.type for plain, _ in given} or {pa.float64() if task.kind == "regression" else pa.string()}
    kind = kinds.pop() if len(kinds) == 1 else pa.float64()
    return pa.concat_arrays([plain.values.cast(kind) for plain in columns])


def _regression_values(task: Task, values: pa.Array) -> pa.Array:
    """The values of a regression, null where they are missing or more than float32 can hold."""
    if pa.types.is_string(values.type) or pa.types.is_boolean(values.type):
        raise DataError(
            f"task {task.name!r}: its labels have type {values.type}, and a regression needs numbers; "
            'write numbers, or set kind = "classification"'
        )
    exact = values.cast(pa.float64())
    with np.errstate(over="ignore"):
        rounded = exact.to_numpy(zero_copy_only=False).astype(np.float32).astype(np.float64)
    finite = np.isfinite(rounded)
    given = exact.to_numpy(zero_copy_only=False)[finite]
    rounding = np.abs(given - rounded[finite]).max(initial=0.0)
    if rounding > _MAX_ROUNDING * given.std() and np.ptp(given):
        raise DataError(
            f"task {task.name!r}: its labels, from {float(given.min())!r} to {float(given.max())!r}, differ by less "
            "than float32, which models compute in, can tell apart; subtract their mean, or use another unit"
        )
    return pa.array(rounded, mask=~finite)


def _label_indices(
    task: Task, values: pa.Array, column: str, label_by: LabelBy | None
) -> tuple[pa.Array, LabelBy | None, str]:
    """The index of each label, null where it is missing or not allowed; how it was read, and what is allowed."""
    allowed = _listed(task.labels, len(task.labels))
    if pa.types.is_string(values.type):
        return pc.index_in(values, pa.array(task.labels, pa.string())).cast(pa.int64()), "name", allowed
    if pa.types.is_boolean(values.type):
        places = _places_of_booleans(task, column, label_by)
        return pc.if_else(values, pa.scalar(places[True]), pa.scalar(places[False])), label_by, allowed
    different = pc.unique(values.drop_null()).to_pylist()
    different = [value for value in different if value == value]  # without NaN
    label_by = label_by or _reading(task, column, different)
    if label_by == "name":
        indices: Mapping[Any, int] = _numbers_among(task.labels)
        allowed += ', for numbers are read by name here; label_by = "index" of the task takes them as indices'
    else:
        indices = {index: index for index in range(len(task.labels))}
        allowed += f", or their indices 0 to {len(task.labels) - 1}"
    known = [value for value in different if value in indices]
    found = pc.index_in(values, pa.array(known, values.type))
    return pa.array([indices[value] for value in known], pa.int64()).take(found), label_by, allowed


def _reading(task: Task, column: str, different: Sequence[float]) -> LabelBy:
    """Whether numbers are labels or indices of labels.

    Raises:
        DataError: Both can be, and would mean different labels.
    """
    names = _numbers_among(task.labels)
    by_name = {value: names.get(value) for value in different}
    by_index = {value: int(value) if value in range(len(task.labels)) else None for value in different}
    if None in by_name.values():
        truth = _truth(task.labels)
        if not names and truth is not None and set(different) <= {0, 1} and (truth[False], truth[True]) != (0, 1):
            raise DataError(
                f"task {task.name!r}: 1 in label column {column!r} may mean {task.labels[truth[True]]!r}, or the label "
                f"at index 1 of labels = {list(task.labels)}, which is {task.labels[1]!r}; write the labels as "
                'strings, or set label_by = "index" of the task for the latter'
            )
        return "name" if names and None in by_index.values() else "index"
    if None not in by_index.values() and by_name != by_index:
        raise DataError(
            f"task {task.name!r}: the numbers {_listed(sorted(different))} in label column {column!r} may be labels, "
            f"or indices into labels = {list(task.labels)}; {_CHOOSE}"
        )
    return "name"


def _places_of_booleans(task: Task, column: str, label_by: LabelBy | None) -> Mapping[bool, int]:
    """The indices of the labels that false and true are."""
    truth = _truth(task.labels)
    if label_by == "index" and len(task.labels) == 2:
        return {False: 0, True: 1}
    if truth is not None and label_by != "index":
        return truth
    way_out = f'label_by = "index" of the task for false = {task.labels[0]!r} and true = {task.labels[1]!r}'
    raise DataError(
        f"task {task.name!r}: label column {column!r} has true and false, and labels = {list(task.labels)} do not say "
        f"which is which; write the labels as strings{f', or set {way_out}' if len(task.labels) == 2 else ''}"
    )


def _truth(labels: Sequence[str]) -> Mapping[bool, int] | None:
    """The indices of the one label that means false and of the one that means true."""
    folded = [label.strip().casefold() for label in labels]
    places = [[index for index, label in enumerate(folded) if label in words] for words in (_FALSE, _TRUE)]
    return {False: places[0][0], True: places[1][0]} if [len(found) for found in places] == [1, 1] else None


def _numbers_among(labels: Sequence[str]) -> dict[float, int]:
    """The labels that are numbers, with their indices; of "1" and "1.0" the one that stands first."""
    numbers: dict[float, int] = {}
    for index, label in enumerate(labels):
        number = _number(label)
        if number is not None:
            numbers.setdefault(number, index)
    return numbers


def _number(text: str) -> float | None:
    """What a text is as a finite number; a whole one exactly."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text) if np.isfinite(float(text)) else None
    return None


def _refusal(
    task: Task,
    parts: Sequence[Part],
    values: pa.Array,
    bad: pa.Array,
    allowed: str,
    rows: npt.NDArray[np.int64] | None = None,
) -> DataError:
    """An error about values that are not allowed; `rows` has the row of each, where that is not its place."""
    places = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    where, more = _where(parts, places if rows is None else rows[places])
    first = values[int(places[0])].as_py()
    others = [value for value in pc.unique(values.filter(bad)).to_pylist() if value != first]
    return DataError(
        f"task {task.name!r}: {where}: label {first!r}{more} cannot be used; allowed: {allowed}; "
        f"{f'not allowed either: {_listed(others)}; ' if others else ''}correct the data or the labels of the task"
    )


def _where(parts: Sequence[Part], rows: npt.NDArray[np.int64]) -> tuple[str, str]:
    """The first of some rows, by the name of its part; and how many others there are, in brackets."""
    row = int(rows[0])
    for part in parts:
        if row < len(part.table):
            break
        row -= len(part.table)
    more = len(np.unique(rows)) - 1
    return f"{part.name}, row {row}", f" (and those of {more} more rows)" if more else ""


def _listed(values: Sequence[Any], most: int = _MAX_NAMED) -> str:
    """Values as a message names them, not too many."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(repr, values[:most])) + more
