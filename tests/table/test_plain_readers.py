"""Any reader that is pointed at `L/current`, with its defaults, sees each article once with the right labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd  # type: ignore[import-untyped]
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.labelling.support import articles, definition, expected_label, label_corpus, small_slices, write_corpus

AB = definition({"a": "1", "b": "1"})
ABDR = definition({"a": "1", "b": "2", "d": "1", "r": "1"}, bundle_name="news-2")
FILES = {
    "date=2026-11-19/x.parquet": articles(5),
    "date=2026-11-20/x y.PQ": articles(4, start=5),
    "date=2026-11-21/z.parquet": articles(3, start=9),
}
COLUMNS = ["id", "a_label", "a_score", "b_label", "d_label", "r_score", "error"]


@pytest.fixture
def current(tmp_path: Path) -> str:
    """A table that a retrained task and two more entered by a run on one partition, and where a file has changed."""
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    write_corpus(corpus, {**FILES, "date=2026-11-20/x y.PQ": articles(2, start=90)}, row_group_size=2)
    with small_slices(3):
        label_corpus(corpus, labels, AB)
        write_corpus(corpus, FILES, row_group_size=2)
        label_corpus(corpus, labels, AB)
        label_corpus(corpus, labels, ABDR, ["date=2026-11-20"])
    return str(labels / "current")


def by_datasets(root: str) -> list[dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(root, split="train", cache_dir=f"{root}/../_cache")
    return list(loaded.to_list())


READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "pandas": lambda root: pd.read_parquet(root).astype(object).to_dict("records"),
    "polars": lambda root: pl.read_parquet(root).to_dicts(),
    "polars, a pattern": lambda root: pl.scan_parquet(f"{root}/**/*.parquet").collect().to_dicts(),
    "duckdb": lambda root: duckdb.connect().sql(f"from '{root}/**/*.parquet'").to_arrow_table().to_pylist(),
    "pyarrow": lambda root: pq.read_table(root).to_pylist(),
    "pyarrow.dataset": lambda root: ds.dataset(root).to_table().to_pylist(),
    "datasets": by_datasets,
}


def expected(number: int) -> dict[str, Any]:
    """The row that article `number` should have."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"id": f"a{number}"}
    is_new = 5 <= number < 9
    for task in "abdr":
        fingerprint = "2" if task == "b" and is_new else "1"
        if task in "ab" or is_new:
            label, score = expected_label(task, fingerprint, f"title {number}", f"body {number}")
            row |= {f"{task}_label": label, f"{task}_score": score}
    return {name: row[name] for name in COLUMNS}


def same(found: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns that are compared; pandas and `datasets` have other nulls."""
    return {name: None if pd.isna(found[name]) else found[name] for name in COLUMNS}


@pytest.mark.parametrize("reader", READERS)
def test_each_article_is_seen_once_with_the_labels_of_each_task(current: str, reader: str) -> None:
    rows = sorted(map(same, READERS[reader](current)), key=lambda row: int(row["id"][1:]))
    assert rows == [expected(number) for number in range(12)]


def test_readers_that_stumble_over_hives_null_read_the_table_without_partition_columns(tmp_path: Path) -> None:
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    write_corpus(corpus, {"date=__HIVE_DEFAULT_PARTITION__/x.parquet": articles(5), "date=1/y.parquet": articles(2, 5)})
    label_corpus(corpus, labels, AB)
    current = str(labels / "current")
    for found in (pd.read_parquet(current, partitioning=None), pq.read_table(current, partitioning=None).to_pandas()):
        assert sorted(found["id"]) == [f"a{number}" for number in range(7)]
    others = set(READERS) - {"pandas", "pyarrow"}
    assert {reader: len(READERS[reader](current)) for reader in others} == dict.fromkeys(others, 7)


def test_hive_partitions_are_columns_where_they_are_asked_for(current: str) -> None:
    query = f"select date, count(*) from read_parquet('{current}/**/*.parquet', hive_partitioning = true) group by all"
    assert sorted(n for _, n in duckdb.connect().sql(query).fetchall()) == [3, 4, 5]
    found = pl.scan_parquet(current, hive_partitioning=True).group_by("date").len().collect()
    assert sorted(found["len"]) == [3, 4, 5]
