"""Names of label files lead back to their source files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.table.names import label_path, source_path

names = st.sampled_from(["a", "b c", "ü", "x.rg00000-00004", "y.rg00000-00001.rows000000000-000000009", "v1.2"])
sources = st.builds(
    lambda directories, name, suffix: "/".join([*directories, name + suffix]),
    st.lists(st.sampled_from(["date=2026-11-20", "d.e"]), max_size=2),
    names,
    st.sampled_from([".parquet", ".PARQUET", ".pq"]),
)
ranges = st.tuples(st.integers(0, 10**6), st.integers(0, 10**10))


@given(sources, ranges, st.none() | ranges, st.booleans())
def test_a_label_file_name_leads_back_to_its_source(
    source: str, row_groups: tuple[int, int], rows: tuple[int, int] | None, whole: bool
) -> None:
    assert source_path(label_path(source, row_groups, rows, whole=whole)) == source


@given(st.tuples(sources, ranges, st.none() | ranges), st.tuples(sources, ranges, st.none() | ranges))
def test_different_units_have_different_names(
    one: tuple[str, tuple[int, int], tuple[int, int] | None], two: tuple[str, tuple[int, int], tuple[int, int] | None]
) -> None:
    assert (one == two) == (label_path(*one) == label_path(*two))
    assert label_path(one[0], (0, 4), whole=True) != label_path(*two) or one[0] == two[0]


def test_a_whole_file_keeps_its_name_unless_it_looks_like_a_unit() -> None:
    assert label_path("d=1/a.parquet", (0, 3), whole=True) == "d=1/a.parquet"
    assert label_path("a.parquet", (0, 3)) == "a.rg00000-00003.parquet"
    assert label_path("a.rg00000-00003.parquet", (0, 1), whole=True) == "a.rg00000-00003.rg00000-00001.parquet"
