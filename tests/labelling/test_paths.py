"""Names of label files lead back to their source files, and partitions are read off paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.errors import ConfigError
from mtop_batch.labelling.paths import (
    in_partition,
    label_path,
    parse_partitions,
    partition_values,
    path_problem,
    source_path,
)

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


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("a.parquet", {}),
        ("date=2026-11-20/lang=de/a=b.parquet", {"date": "2026-11-20", "lang": "de"}),
        ("q=a%3Db%20c/x=1=2/y=/f", {"q": "a=b c", "x": "1=2", "y": ""}),
        ("lang=__HIVE_DEFAULT_PARTITION__/a", {"lang": None}),
    ],
)
def test_partition_values_are_decoded(path: str, values: dict[str, str | None]) -> None:
    assert partition_values(path) == values


def test_a_partition_filter_wants_all_of_its_values() -> None:
    wanted = parse_partitions(["date=2026-11-20", "lang=a=b"])
    assert in_partition("date=2026-11-20/lang=a%3Db/x", wanted)
    assert not in_partition("date=2026-11-20/lang=a/x", wanted)
    assert not in_partition("date=2026-11-20/x", wanted)
    assert in_partition("lang=__HIVE_DEFAULT_PARTITION__/x", {"lang": "__HIVE_DEFAULT_PARTITION__"})


@pytest.mark.parametrize(("options", "message"), [(["date"], "not of the form"), (["a=1", "a=2"], "one value")])
def test_partition_filters_that_cannot_work_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_partitions(options)


@pytest.mark.parametrize("path", ["a//b.parquet", "\udcff.parquet", "x" * 200 + ".parquet"])
def test_paths_that_no_label_file_can_have_are_told(path: str) -> None:
    assert "rename it" in (path_problem(path) or "")
    assert path_problem("date=2026-11-20/ü b.parquet") is None
