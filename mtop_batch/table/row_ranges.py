"""Ranges of rows: how a source file is cut into slices. Nothing here knows of files or tasks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

RowRange = tuple[int, int]
"""A range of rows of a source file: the first, and the one after the last."""


SLICE_ROWS = 20_000
"""Most rows of a slice. Part of the store's format: another number gives other names to the same labels."""


def slice_rows(row_groups: Sequence[int], slice_rows: int = SLICE_ROWS) -> list[RowRange]:
    """Cut a file into its canonical slices, of at most `slice_rows` rows: they follow from the file alone.

    Row groups stay whole and neighbours share a slice as long as they fit; a row group that is larger alone is cut
    into equal parts. A file without rows is one empty slice.

    >>> slice_rows([3, 4, 9, 2], slice_rows=8)
    [(0, 7), (7, 11), (11, 16), (16, 18)]
    """
    slices: list[RowRange] = []
    start = stop = 0
    for num_rows in row_groups:
        if stop > start and stop + num_rows - start > slice_rows:
            slices.append((start, stop))
            start = stop
        stop += num_rows
        if num_rows > slice_rows:
            num_parts = -(-num_rows // slice_rows)
            slices += pairwise(start + num_rows * part // num_parts for part in range(num_parts + 1))
            start = stop
    if stop > start or not slices:
        slices.append((start, stop))
    return slices


def row_groups_of(row_groups: Sequence[int], rows: RowRange) -> tuple[int, int]:
    """The row groups that hold a range of rows: the first, and the one after the last.

    >>> row_groups_of([5, 5, 5], (5, 15)), row_groups_of([5, 5, 5], (5, 8))
    ((1, 3), (1, 2))
    """
    start, stop = rows
    if start >= stop:
        return 0, len(row_groups)
    ends = list(accumulate(row_groups))
    return bisect_right(ends, start), bisect_left(ends, stop) + 1


def is_tiling(ranges: Iterable[RowRange], num_rows: int) -> bool:
    """Whether ranges hold each of `num_rows` rows exactly once.

    >>> is_tiling([(3, 5), (0, 3)], 5), is_tiling([(0, 3)], 5), is_tiling([(0, 0)], 0)
    (True, False, True)
    """
    position = 0
    ordered = sorted(ranges)
    for start, stop in ordered:
        if start != position or stop < start:
            return False
        position = stop
    return bool(ordered) and position == num_rows
