"""Names of label files and published files lead back to their source files, and never to another's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.corpus.files import SourceFile
from mtop_batch.table.names import content_id, label_path, parse_label_path, published_path, source_path_of

parts = st.sampled_from(["a", "b c", "ü", "line\nbreak", "a.parquet@", "v1.2", "date=2026-11-20"]) | st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cs"]), min_size=1, max_size=8
)
suffixes = st.lists(st.sampled_from([".parquet", ".PARQUET", ".pq", ".Parq"]), min_size=1, max_size=3).map("".join)
paths = st.builds(
    lambda above, name, suffix: "/".join([*above, name + suffix]), st.lists(parts, max_size=2), parts, suffixes
)
sources = st.builds(SourceFile, paths, st.integers(0, 2**50), st.sampled_from(["1", "etag-2", ""]))
ranges = st.tuples(st.integers(0, 10**12), st.integers(0, 10**12))


@given(sources, ranges)
def test_a_label_files_name_says_of_which_source_content_and_rows_it_is(
    source: SourceFile, rows: tuple[int, int]
) -> None:
    assert parse_label_path(label_path(source, rows)) == (source.path, content_id(source), rows)


@given(st.tuples(sources, ranges), st.tuples(sources, ranges))
def test_other_sources_contents_or_rows_have_other_names(
    one: tuple[SourceFile, tuple[int, int]], two: tuple[SourceFile, tuple[int, int]]
) -> None:
    assert (one == two) == (label_path(*one) == label_path(*two))


@given(paths)
def test_a_published_files_name_ends_in_parquet_and_leads_back(path: str) -> None:
    assert published_path(path).endswith(".parquet")
    assert source_path_of(published_path(path)) == path


@given(paths, paths)
def test_no_two_sources_share_a_published_file(one: str, two: str) -> None:
    assert (one == two) == (published_path(one) == published_path(two))


def test_a_source_that_ends_in_parquet_keeps_its_name() -> None:
    assert published_path("d=1/a.parquet") == "d=1/a.parquet"
    assert published_path("d=1/a.PARQUET") == "d=1/a.PARQUET.parquet"
    assert published_path("a.pq.parquet") == "a.pq.parquet.parquet"


@pytest.mark.parametrize(
    "name",
    ["a.parquet", "@/0123456789abcdef-000000000-000000005.parquet", "a@/0123456789ABCDEF-000000000-000000005.parquet"],
)
def test_other_names_are_not_label_files(name: str) -> None:
    assert parse_label_path(name) is None
