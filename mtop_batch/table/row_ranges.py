"""Ranges of rows: how a source file is cut into units, and what is left where some rows are done.

A range is (first row, row after the last). Nothing here knows of files or tasks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

RowRange = tuple[int, int]
"""A range of rows of a source file: the first, and the one after the last."""


def slice_rows(row_groups: Sequence[int], unit_rows: int) -> list[RowRange]:
    """Cut a file into slices of at most `unit_rows` rows.

    Row groups stay whole and neighbours share a slice as long as they fit; a row group that is larger alone is cut
    into equal parts. A file without rows is one empty slice.

    >>> slice_rows([3, 4, 9, 2], unit_rows=8)
    [(0, 7), (7, 11), (11, 16), (16, 18)]
    """
    slices: list[RowRange] = []
    start = stop = 0
    for num_rows in row_groups:
        if stop > start and stop + num_rows - start > unit_rows:
            slices.append((start, stop))
            start = stop
        stop += num_rows
        if num_rows > unit_rows:
            num_parts = -(-num_rows // unit_rows)
            slices += pairwise(start + num_rows * part // num_parts for part in range(num_parts + 1))
            start = stop
    if stop > start or not slices:
        slices.append((start, stop))
    return slices


def row_groups_of(row_groups: Sequence[int], rows: RowRange) -> tuple[tuple[int, int], bool]:
    """The row groups that hold a range of rows, and whether the range begins and ends with them.

    >>> row_groups_of([5, 5, 5], (5, 15)), row_groups_of([5, 5, 5], (5, 8))
    (((1, 3), True), ((1, 2), False))
    """
    start, stop = rows
    if start >= stop:
        return (0, len(row_groups)), True
    ends = list(accumulate(row_groups))
    first, last = bisect_right(ends, start), bisect_left(ends, stop)
    aligned = start == ends[first] - row_groups[first] and stop == ends[last]
    return (first, last + 1), aligned


def gaps(rows: RowRange, covered: Iterable[RowRange]) -> list[RowRange]:
    """The parts of a range that no covered range holds; a range without rows is its own gap unless one equals it.

    >>> gaps((0, 10), [(2, 4), (3, 6)])
    [(0, 2), (6, 10)]
    """
    covered = sorted(covered)
    if rows[0] == rows[1]:
        return [] if rows in covered else [rows]
    missing = []
    position = rows[0]
    for start, stop in covered:
        if start > position:
            missing.append((position, min(start, rows[1])))
        position = max(position, stop)
        if position >= rows[1]:
            break
    if position < rows[1]:
        missing.append((position, rows[1]))
    return missing


def cover(rows: RowRange, covering: Collection[RowRange]) -> list[tuple[RowRange, RowRange]]:
    """Ranges that hold a range together, each with the part to take from it; every row is taken once.

    >>> cover((0, 10), [(5, 12), (0, 6)])
    [((0, 6), (0, 6)), ((5, 12), (6, 10))]
    """
    if rows[0] == rows[1]:
        return [(rows, rows)] if rows in covering else []
    parts: list[tuple[RowRange, RowRange]] = []
    position = rows[0]
    for start, stop in sorted(covering):
        end = min(stop, rows[1])
        if start <= position < end:
            parts.append(((start, stop), (position, end)))
            position = end
    return parts


def pieces(
    slices: Iterable[RowRange], missing: Sequence[Sequence[RowRange]]
) -> Iterator[tuple[RowRange, frozenset[int]]]:
    """Cut slices where the set of missing things changes, and keep the parts that miss something.

    Args:
        slices: Ranges in order, without overlap.
        missing: For each thing, the ranges where it is missing, in order and without overlap.

    Yields:
        Ranges in order, each with the indices of the things that are missing on all of it.

    >>> list(pieces([(0, 6), (6, 9)], [[(4, 9)], [(0, 6)]]))
    [((0, 4), frozenset({1})), ((4, 6), frozenset({0, 1})), ((6, 9), frozenset({0}))]
    """
    edges = sorted({edge for ranges in missing for rows in ranges for edge in rows})
    for start, stop in slices:
        if start == stop:
            absent = frozenset(index for index, ranges in enumerate(missing) if (start, stop) in ranges)
            if absent:
                yield (start, stop), absent
            continue
        inner = edges[bisect_right(edges, start) : bisect_left(edges, stop)]
        parts = ((part, _missing_at(part[0], missing)) for part in pairwise([start, *inner, stop]))
        for absent, same in groupby(parts, key=lambda part: part[1]):
            ranges = [rows for rows, _ in same]
            if absent:
                yield (ranges[0][0], ranges[-1][1]), absent


def _missing_at(row: int, missing: Sequence[Sequence[RowRange]]) -> frozenset[int]:
    return frozenset(index for index, ranges in enumerate(missing) if _holds(ranges, row))


def _holds(ranges: Sequence[RowRange], row: int) -> bool:
    index = bisect_right(ranges, row, key=lambda rows: rows[0]) - 1
    return index >= 0 and ranges[index][0] <= row < ranges[index][1]
