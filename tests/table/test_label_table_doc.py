"""The SQL of docs/label-table.md, run as it stands, finds the labels that `read_labels` finds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.read import read_labels, view_sql
from tests.labelling.support import articles, definition, label_corpus, run_plan, small_slices, write_corpus

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "label-table.md"
OLD = definition({"sports": "old", "b": "1"})
NEW = definition({"sports": "new", "b": "1"}, bundle_name="news-2")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`demo/labels` after a retrained task labelled in part, a task for one partition, and a source that changed."""
    corpus, labels = tmp_path / "demo" / "corpus", tmp_path / "demo" / "labels"
    files = {"d=1/x.parquet": articles(9), "d=2/y.parquet": articles(4, start=9), "d=3/z.pq": articles(3, start=13)}
    write_corpus(corpus, files, row_group_size=4)
    with small_slices(4):
        label_corpus(corpus, labels, OLD)
        label_corpus(corpus, labels, definition({"b": "1", VECTOR: "1"}))
        plan = plan_labels(str(corpus), str(labels), NEW)
        run_plan(plan, NEW, plan.units[:3])
        label_corpus(corpus, labels, definition({"other": "1"}), ["d=2"])
        write_corpus(corpus, {"d=3/z.pq": {"id": ["a13", None, None], "body": ["x", None, "y"]}})
        label_corpus(corpus, labels, definition({"other": "1"}), ["d=3"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(query: str) -> list[dict[str, Any]]:
    return list(duckdb.connect().sql(query).to_arrow_table().to_pylist())


def test_the_query_of_the_page_counts_what_read_labels_reads(project: Path) -> None:
    (query,) = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    counted = {row["sports_label"]: row["count_star()"] for row in rows_of(query)}
    assert counted == Counter(read_labels("demo/labels")["sports_label"].to_pylist())
    assert sum(counted.values()) == 16


def test_the_view_shows_the_rows_and_columns_of_read_labels(project: Path) -> None:
    database = duckdb.connect()
    database.execute(view_sql("demo/labels"))
    found = database.sql("select * from labels").to_arrow_table()
    expected = read_labels("demo/labels")
    assert found.column_names == expected.column_names

    def in_order(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(repr({name: str(value) for name, value in row.items()}) for row in rows)

    assert in_order(found.to_pylist()) == in_order(expected.to_pylist())


def test_labels_of_a_bundle_that_is_half_done_are_shown_file_by_file(project: Path) -> None:
    bundles = read_labels("demo/labels", ["sports"], provenance=True)["sports_bundle"].to_pylist()
    assert bundles == ["news-2"] * 9 + ["news"] * 4 + [None] * 3
