"""Ranges of rows: slices follow from a file's row groups alone, and cover it."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.table.row_ranges import RowRange, is_tiling, row_groups_of, slice_rows

row_group_sizes = st.lists(st.integers(0, 30), max_size=12)
slice_sizes = st.integers(1, 40)


def rows_of(ranges: list[RowRange]) -> list[int]:
    return [row for start, stop in ranges for row in range(start, stop)]


@given(row_group_sizes, slice_sizes)
def test_slices_cover_every_row_once_in_order_and_are_small(row_groups: list[int], most: int) -> None:
    slices = slice_rows(row_groups, most)
    assert rows_of(slices) == list(range(sum(row_groups)))
    assert all(stop - start <= most for start, stop in slices)
    assert all(stop > start for start, stop in slices) or slices == [(0, 0)]


@given(row_group_sizes, slice_sizes)
def test_row_groups_that_fit_are_never_cut(row_groups: list[int], most: int) -> None:
    slices = slice_rows(row_groups, most)
    start = 0
    for num_rows in row_groups:
        if 0 < num_rows <= most:
            assert any(first <= start and start + num_rows <= stop for first, stop in slices)
        start += num_rows


def test_a_large_row_group_is_cut_into_equal_parts() -> None:
    assert slice_rows([100], 40) == [(0, 33), (33, 66), (66, 100)]
    assert slice_rows([3, 100, 3], 50) == [(0, 3), (3, 53), (53, 103), (103, 106)]


@given(row_group_sizes, slice_sizes)
def test_row_groups_of_a_slice_hold_it_and_are_no_more_than_needed(row_groups: list[int], most: int) -> None:
    starts = [sum(row_groups[:index]) for index in range(len(row_groups) + 1)]
    for start, stop in slice_rows(row_groups, most):
        first, last = row_groups_of(row_groups, (start, stop))
        assert starts[first] <= start
        assert stop <= starts[last]
        if stop > start:
            assert starts[first + 1] > start
            assert starts[last - 1] < stop


@given(row_group_sizes, slice_sizes, st.randoms())
def test_slices_tile_their_file_in_any_order_and_no_other(row_groups: list[int], most: int, random: Random) -> None:
    slices, num_rows = slice_rows(row_groups, most), sum(row_groups)
    random.shuffle(slices)
    assert is_tiling(slices, num_rows)
    assert not is_tiling(slices, num_rows + 1)
    assert not is_tiling(slices[1:], num_rows)
    assert not is_tiling([*slices, (0, num_rows + 1)], num_rows)


@pytest.mark.parametrize("ranges", [[], [(0, 4)], [(0, 3), (4, 6)], [(0, 4), (3, 6)], [(0, 6), (6, 5)], [(1, 6)]])
def test_gaps_overlaps_and_nothing_are_no_tiling(ranges: list[RowRange]) -> None:
    assert not is_tiling(ranges, 6)


def test_the_slices_of_a_source_are_part_of_the_stores_format() -> None:
    assert slice_rows([15_000, 5_000, 1, 50_000]) == [
        (0, 20_000),
        (20_000, 20_001),
        (20_001, 36_667),
        (36_667, 53_334),
        (53_334, 70_001),
    ]
