"""The SQL of docs/label-table.md, run as it stands, finds the labels that `read_labels` finds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.read import read_labels
from mtop_batch.table.runs import new_run_id, write_run
from tests.labelling.support import articles, definition, label_corpus, run_plan, write_corpus

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "label-table.md"
OLD = definition({"sports": "old", "b": "1"})
NEW = definition({"sports": "new", "b": "1"}, bundle_name="news-2")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`demo/labels` after a retrained task labelled in part, in other slices, and a source file that changed."""
    corpus, labels = tmp_path / "demo" / "corpus", tmp_path / "demo" / "labels"
    files = {"d=1/x.parquet": articles(9), "d=2/y.parquet": articles(4, start=9), "z.parquet": articles(3, start=13)}
    write_corpus(corpus, files, row_group_size=4)
    label_corpus(corpus, labels, OLD)
    label_corpus(corpus, labels, definition({"b": "1", VECTOR: "1"}))
    plan = plan_labels(str(corpus), str(labels), NEW, unit_rows=4)
    run_plan(plan, NEW, plan.units[:2])
    label_corpus(corpus, labels, definition({"other": "1"}))
    write_corpus(corpus, {"z.parquet": {"id": ["a13", None, None], "body": ["x", None, "y"]}})
    label_corpus(corpus, labels, definition({"other": "1"}))
    label_corpus(corpus, labels, definition({"sports": "old"}), ["d=2"], unit_rows=2)
    write_run(str(labels), new_run_id(), NEW, str(corpus))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_by_sql() -> list[dict[str, Any]]:
    (query,) = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    return duckdb.connect().sql(query).to_arrow_table().to_pylist()


def rows_by_python() -> list[dict[str, Any]]:
    return read_labels("demo/labels", ["sports"], provenance=True).to_pylist()


def test_the_sql_and_read_labels_choose_the_same_labels(project: Path) -> None:
    expected = [row for row in rows_by_python() if row["sports_bundle"]]
    columns = {"id": "id", "sports_label": "sports_label", "sports_score": "sports_score", "error": "error"}
    columns["bundle"] = "sports_bundle"
    found = [{theirs: row[ours] for ours, theirs in columns.items()} for row in rows_by_sql()]
    assert found == [{key: row[key] for key in columns.values()} for row in expected]
    assert [row["sports_bundle"] for row in expected] == ["news-2"] * 8 + ["news"] * 5
    assert len(rows_by_python()) == 16


def test_when_the_changed_file_is_labelled_the_sql_shows_its_new_rows(project: Path) -> None:
    label_corpus(project / "demo" / "corpus", project / "demo" / "labels", NEW)
    assert [row["error"] for row in rows_by_sql()[-3:]] == [None, "text is null", None]
    assert [row["id"] for row in rows_by_sql()] == [row["id"] for row in rows_by_python()]
