"""Ranges of rows: slices cover a file, gaps are what is left, pieces put both together."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.table.row_ranges import RowRange, gaps, pieces, row_groups_of, slice_rows

row_group_sizes = st.lists(st.integers(0, 30), max_size=12)
unit_sizes = st.integers(1, 40)


def rows_of(ranges: list[RowRange]) -> list[int]:
    return [row for start, stop in ranges for row in range(start, stop)]


@given(row_group_sizes, unit_sizes)
def test_slices_cover_every_row_once_in_order_and_are_small(row_groups: list[int], unit_rows: int) -> None:
    slices = slice_rows(row_groups, unit_rows)
    assert rows_of(slices) == list(range(sum(row_groups)))
    assert all(stop - start <= unit_rows for start, stop in slices)
    assert all(stop > start for start, stop in slices) or slices == [(0, 0)]


@given(row_group_sizes, unit_sizes)
def test_row_groups_that_fit_are_never_cut(row_groups: list[int], unit_rows: int) -> None:
    slices = slice_rows(row_groups, unit_rows)
    start = 0
    for num_rows in row_groups:
        if 0 < num_rows <= unit_rows:
            assert any(first <= start and start + num_rows <= stop for first, stop in slices)
        start += num_rows


def test_a_large_row_group_is_cut_into_equal_parts() -> None:
    assert slice_rows([100], 40) == [(0, 33), (33, 66), (66, 100)]
    assert slice_rows([3, 100, 3], 50) == [(0, 3), (3, 53), (53, 103), (103, 106)]


@given(row_group_sizes, unit_sizes)
def test_row_groups_of_a_slice_hold_it_and_are_no_more_than_needed(row_groups: list[int], unit_rows: int) -> None:
    starts = [sum(row_groups[:index]) for index in range(len(row_groups) + 1)]
    for start, stop in slice_rows(row_groups, unit_rows):
        (first, last), aligned = row_groups_of(row_groups, (start, stop))
        assert starts[first] <= start
        assert stop <= starts[last]
        assert aligned == ((starts[first], starts[last]) == (start, stop))
        if stop > start:
            assert starts[first + 1] > start
            assert starts[last - 1] < stop


@given(st.integers(0, 40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda t: (min(t), max(t)))))
def test_gaps_are_the_rows_that_nothing_covers(num_rows: int, covered: list[RowRange]) -> None:
    done = set(rows_of(covered))
    missing = gaps((0, num_rows), covered)
    assert rows_of(missing) == [row for row in range(num_rows) if row not in done]
    if num_rows == 0:
        assert missing == ([] if (0, 0) in covered else [(0, 0)])


@given(row_group_sizes, unit_sizes, st.lists(st.sets(st.integers(0, 359)), max_size=3))
def test_pieces_hold_exactly_the_missing_rows_of_each_thing(
    row_groups: list[int], unit_rows: int, missing_rows: list[set[int]]
) -> None:
    num_rows = sum(row_groups)
    slices = slice_rows(row_groups, unit_rows)
    missing_rows = [{row for row in rows if row < num_rows} for rows in missing_rows]
    missing = [[(row, row + 1) for row in sorted(rows)] for rows in missing_rows]
    found = list(pieces(slices, missing))
    for index, rows in enumerate(missing_rows):
        assert rows_of([piece for piece, things in found if index in things]) == sorted(rows)
    assert all(things for _, things in found)
    assert all(any(start <= a and b <= stop for start, stop in slices) for (a, b), _ in found)
    edges = {start for start, _ in slices}
    for (one, things), (two, other_things) in pairwise(found):
        assert one[1] < two[0] or things != other_things or two[0] in edges, "neighbours that are alike are merged"


def test_a_file_without_rows_is_a_piece_where_something_is_missing() -> None:
    assert list(pieces([(0, 0)], [[(0, 0)], []])) == [((0, 0), frozenset({0}))]
    assert list(pieces([(0, 0)], [[], []])) == []
