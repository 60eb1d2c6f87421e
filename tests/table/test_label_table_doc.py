"""The SQL of README, documentation and demo, run as it stands on a table that a task was added to."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.read import read_labels, view_sql
from mtop_batch.tasks import Task
from tests.documents import blocks, commands
from tests.labelling.support import articles, definition, label_corpus, run_plan, small_slices, write_corpus

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "label-table.md"
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
    query = blocks(DOCUMENT.read_text(), "sql")[0][1]
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


def queries() -> Iterator[tuple[str, str]]:
    """Every query that people are shown, and where."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]:
        text = page.read_text()
        yield from ((page.name, query) for _, query in blocks(text, "sql"))
        yield from ((page.name, words[words.index("-c") + 1]) for words in commands(text, "duckdb"))
    for statement in ast.parse((ROOT / "demo" / "demo.py").read_text()).body:
        if isinstance(statement, ast.Assign) and "QUERY" in ast.unparse(statement.targets[0]):
            yield "demo.py", eval(compile(ast.Expression(statement.value), "demo.py", "eval"))


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A label table like the demo's, which got a fifth task later; and one with tags."""
    topics = ["business", "entertainment", "politics", "sports"]
    label_tags(tmp_path)
    write_corpus(tmp_path / "demo" / "corpus", {"part-0.parquet": articles(40), "part-1.parquet": articles(30, 40)})
    for tasks in (topics, [*topics, "tech"]):
        wanted = definition(dict.fromkeys(tasks, "1"))
        label_corpus(tmp_path / "demo" / "corpus", tmp_path / "demo" / "labels", wanted)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TAGS = Task("tags", "multi-label", labels=("election", "climate", "economy"), scores="all")


def label_tags(root: Path) -> None:
    """`data/labels`, with tags; an article cannot be labelled."""
    columns = articles(40)
    columns["title"][7] = columns["body"][7] = None
    write_corpus(root / "data" / "corpus", {"part-0.parquet": columns})
    label_corpus(root / "data" / "corpus", root / "data" / "labels", definition({"tags": "1"}, tasks=[TAGS]))


def test_every_reader_counts_and_finds_the_same_tags(demo: Path) -> None:
    page = DOCUMENT.read_text()
    of_tags = [query for _, query in blocks(page, "sql") if "tags" in query]
    found: dict[str, Any] = {}
    for _, code in blocks(page, "python"):
        if "data/labels" in code:
            exec(code, found)
    rows = read_labels("data/labels").to_pylist()
    counts = Counter(tag for row in rows for tag in row["tags_label"] or ())
    climate = [row["id"] for row in rows if "climate" in (row["tags_label"] or ())]
    assert len(counts) == 3
    assert [] in [row["tags_label"] for row in rows]
    assert {row["label"]: row["count_star()"] for row in rows_of(of_tags[0])} == counts
    assert [row["id"] for row in rows_of(of_tags[1])] == climate
    assert dict(found["polars_counts"].iter_rows()) == counts
    assert found["polars_climate"]["id"].to_list() == climate
    assert found["pandas_counts"].to_dict() == counts
    assert found["pandas_climate"]["id"].tolist() == climate
    assert {row["values"]: row["counts"] for row in found["arrow_counts"].to_pylist()} == counts
    assert found["arrow_climate"]["id"].to_pylist() == climate
    assert tuple(found["names"]) == TAGS.labels
    scores = [row["tags_scores"] for row in rows]
    assert found["polars_table"]["tags_scores"].to_list() == scores
    assert [None if value is None else list(value) for value in found["pandas_table"]["tags_scores"]] == scores
    assert found["arrow_table"]["tags_scores"].to_pylist() == scores
    in_duckdb = [row["tags_scores"] for row in rows_of("select * from 'data/labels/current/*.parquet'")]
    assert [None if value is None else list(value) for value in in_duckdb] == scores


def test_every_page_with_queries_is_found() -> None:
    assert {"README.md", "label-table.md", "demo.py"} <= {place for place, _ in queries()}


# That of entities runs in tests/labelling/test_label_entities.py, on a table that has some.
@pytest.mark.parametrize(("place", "query"), [found for found in queries() if "names_label" not in found[1]])
def test_every_query_that_people_are_shown_runs(demo: Path, place: str, query: str) -> None:
    assert rows_of(query)


def test_labels_of_a_bundle_that_is_half_done_are_shown_file_by_file(project: Path) -> None:
    bundles = read_labels("demo/labels", ["sports"], provenance=True)["sports_bundle"].to_pylist()
    assert bundles == ["news-2"] * 9 + ["news"] * 4 + [None] * 3
