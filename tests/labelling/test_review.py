"""Articles to label next: least sure, disputed, drawn, or spread out; with a column to fill in, and read back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import review
from mtop_batch.data.examples import load_examples
from mtop_batch.errors import ConfigError, MtopError, NotInTable, TaskError
from mtop_batch.labelling import review_choice
from mtop_batch.table.definition import VECTOR
from mtop_batch.table.read import read_labels
from mtop_batch.tasks import Task
from tests.labelling.support import articles, definition, expected_label, label_corpus, small_slices, write_corpus

TAGS = Task("tags", "multi-label", labels=("x", "y", "z"))
DEFINITION = definition({"a": "1", "b": "1", "r": "1", "tags": "1", VECTOR: "1"}, tasks=[TAGS])
NUM_ARTICLES = 90


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three files with a blank article, labelled by two bundles; texts differ in length."""
    root = tmp_path_factory.mktemp("review")
    files = {}
    for number in range(3):
        columns = articles(NUM_ARTICLES // 3, start=number * NUM_ARTICLES // 3)
        columns["body"] = [text + "!" * (index % 7) for index, text in enumerate(columns["body"])]
        columns["title"][4] = columns["body"][4] = ""
        files[f"d={number}/x.parquet"] = columns
    write_corpus(root / "corpus", files, row_group_size=7)
    with small_slices(10):
        label_corpus(root / "corpus", root / "labels", definition({"a": "0"}))
        label_corpus(root / "corpus", root / "labels", DEFINITION)
    return root


def reviewed(table: Path, output: Path, task: str = "a", **options: Any) -> list[dict[str, Any]]:
    review(f"{table}/labels", task, str(output), **options)
    rows: list[dict[str, Any]] = pq.read_table(output).to_pylist()
    return rows


@pytest.mark.parametrize("slack", [0, 4])
def test_the_least_sure_come_first_with_their_texts(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slack: int
) -> None:
    monkeypatch.setattr(review_choice, "_SLACK", slack)
    rows = reviewed(table, tmp_path / "out.parquet", num_articles=17)
    assert list(rows[0]) == ["id", "title", "body", "a_label", "a_score", "label"]
    published = read_labels(f"{table}/labels").to_pylist()
    expected = sorted(row["a_score"] for row in published if row["error"] is None)[:17]
    assert [row["a_score"] for row in rows] == expected
    for row in rows:
        assert row["body"].startswith(f"body {row['id'][1:]}")
        assert row["title"] == f"title {row['id'][1:]}"
        assert row["a_label"] == expected_label("a", "1", row["title"], row["body"])[0]
        assert row["label"] is None


@pytest.mark.parametrize("task", ["tags", "a"])
@pytest.mark.parametrize("strategy", ["uncertain", "disagree", "random", "diverse"])
def test_the_same_arguments_choose_the_same_articles(table: Path, tmp_path: Path, strategy: str, task: str) -> None:
    if strategy == "disagree" and task == "tags":
        pytest.skip("one bundle has labelled these")
    rows = reviewed(table, tmp_path / "a.parquet", task, strategy=strategy, num_articles=12, seed=3)
    again = reviewed(table, tmp_path / "b.parquet", task, strategy=strategy, num_articles=12, seed=3)
    assert rows == again
    assert len({row["id"] for row in rows}) == 12
    assert all(row["label"] is None and row["body"] for row in rows)
    if strategy in ("random", "diverse"):
        other = reviewed(table, tmp_path / "c.parquet", task, strategy=strategy, num_articles=12, seed=4)
        assert {row["id"] for row in other} != {row["id"] for row in rows}


def test_lists_of_labels_are_as_sure_as_their_least_sure_label(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", "tags", num_articles=500)
    sure = [min(max(score, 1 - score) for score in row["tags_score"]) for row in rows]
    assert sure == sorted(sure)
    assert pq.read_schema(tmp_path / "out.parquet").field("label").type == pa.list_(pa.string())
    with_labels = [row for row in read_labels(f"{table}/labels").to_pylist() if row["tags_label"]]
    assert {row["id"] for row in rows} == {row["id"] for row in with_labels}


def test_bundles_that_disagree(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", strategy="disagree", num_articles=500)
    keys = []
    for row in rows:
        (new, score), (old, old_score) = (expected_label("a", f, row["title"], row["body"]) for f in "10")
        assert (new, row["a_label"]) == (row["a_label"], "no" if old == "yes" else "yes")
        keys.append(min(score, old_score))
    assert keys == sorted(keys, reverse=True)
    differ = 0
    for row in read_labels(f"{table}/labels").to_pylist():
        if row["error"] is None:
            number = int(row["id"][1:])
            text = f"body {number}" + "!" * (number % (NUM_ARTICLES // 3) % 7)
            differ += row["a_label"] != expected_label("a", "0", f"title {number}", text)[0]
    assert len(rows) == differ > 10


def test_tasks_that_disagree(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", strategy="disagree", against="b", num_articles=500)
    published = {row["id"]: row for row in read_labels(f"{table}/labels").to_pylist()}
    assert {row["id"] for row in rows} == {
        name for name, row in published.items() if row["a_label"] != row["b_label"] and row["error"] is None
    }
    sure = [min(published[row["id"]]["a_score"], published[row["id"]]["b_score"]) for row in rows]
    assert sure == sorted(sure, reverse=True)


def test_the_diverse_are_spread_over_the_vectors(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", strategy="diverse", num_articles=9)
    lengths = {len(row["title"]) for row in rows}
    vectors = read_labels(f"{table}/labels", vectors=True)["vector"].drop_null().to_pylist()
    assert len(lengths) == len({tuple(map(float, vector)) for vector in vectors})


def test_a_regression_has_values_to_label(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", "r", strategy="random", num_articles=3)
    assert list(rows[0]) == ["id", "title", "body", "r_score", "label"]
    assert pq.read_schema(tmp_path / "out.parquet").field("label").type == pa.float32()


def test_only_a_partition(table: Path, tmp_path: Path) -> None:
    rows = reviewed(table, tmp_path / "out.parquet", num_articles=500, partition={"d": "1"})
    assert {int(row["id"][1:]) // 30 for row in rows} == {1}


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_what_is_filled_in_is_training_data(table: Path, tmp_path: Path, name: str) -> None:
    review(f"{table}/labels", "a", str(tmp_path / name), num_articles=6)
    if name == "out.csv":
        with (tmp_path / name).open() as file:
            rows = list(csv.DictReader(file))
        for row, label in zip(rows, ["yes", "", "no", "", "yes", ""], strict=True):
            row["label"] = label
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        found = pq.read_table(tmp_path / name)
        labels = pa.array(["yes", None, "no", None, "yes", None])
        pq.write_table(found.set_column(found.schema.get_field_index("label"), "label", labels), tmp_path / name)
    known = pa.table({"title": ["old"], "body": ["text, with\nlines"], "label": ["no"]})
    pq.write_table(known, tmp_path / "known.parquet")
    task = Task("a", text=("title", "body"))
    examples = load_examples(task, [str(tmp_path / "known.parquet"), str(tmp_path / name)], "label")
    assert examples.labels.tolist() == [0, 1, 0, 1]
    assert examples.skipped == [(2, "label is null"), (4, "label is null"), (6, "label is null")]
    assert examples.texts[0] == "old"
    assert examples.seconds is not None
    assert all(str(second).startswith("body") for second in examples.seconds[1:])


def test_articles_whose_file_has_changed_are_left_out_and_told(tmp_path: Path) -> None:
    wanted = definition({"a": "1"})
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(20), "y.parquet": articles(20, start=20)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", wanted)
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(21)})
    found = review(f"{tmp_path}/labels", "a", f"{tmp_path}/out.parquet")
    assert (found["articles"], found["articles_read"]) == (20, 40)
    assert [file["path"] for file in found["unreadable_files"]] == ["x.parquet"]
    assert np.all([row["id"] >= "a20" for row in pq.read_table(tmp_path / "out.parquet").to_pylist()])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "aa"}, TaskError, "has no task 'aa'"),
        ({"strategy": "best"}, ConfigError, "'best' is not one of uncertain, disagree"),
        ({"num_articles": 0}, ConfigError, "at least one"),
        ({"task": "r"}, ConfigError, "regression"),
        ({"task": "tags", "output": "o.csv"}, ConfigError, "a CSV file cannot hold"),
        ({"against": "b"}, ConfigError, "--against goes with"),
        ({"strategy": "disagree", "against": "r"}, ConfigError, "another task of the same kind"),
        ({"strategy": "disagree", "task": "b"}, NotInTable, "no labels of task 'b' by another bundle"),
        ({"label_column": "a_label"}, ConfigError, "the name of another column"),
        ({"label_column": "body"}, ConfigError, "the name of another column"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_written(
    table: Path, tmp_path: Path, options: dict[str, Any], error: type[MtopError], message: str
) -> None:
    values: dict[str, Any] = {"task": "a", "output": "o.parquet", **options}
    output = tmp_path / values.pop("output")
    with pytest.raises(error, match=message):
        review(f"{table}/labels", values.pop("task"), str(output), **values)
    assert not output.exists()


def test_a_file_that_somebody_may_have_filled_in_stays(table: Path, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ConfigError, match="somebody may have filled it in"):
        review(f"{table}/labels", "a", f"{tmp_path}/out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
