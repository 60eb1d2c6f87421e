"""Partitions are read off paths, and paths that no label file can have are told."""

from __future__ import annotations

import pytest

from mtop_batch.corpus.paths import in_partition, parse_partitions, partition_values, path_problem
from mtop_batch.errors import ConfigError


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


@pytest.mark.parametrize(
    "path", ["a//b.parquet", "\udcff.parquet", "x" * 200 + ".parquet", "a\\b.parquet", "a\\b/c.parquet"]
)
def test_paths_that_no_label_file_can_have_are_told(path: str) -> None:
    assert "rename it" in (path_problem(path) or "")
    assert path_problem("date=2026-11-20/ü b.parquet") is None
