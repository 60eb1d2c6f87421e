"""Entities in the label table: from a corpus through all stages to what readers see, for texts of all sorts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.labelling.run.stages import LabelJob, label, read_and_tokenise, write
from mtop_batch.table.columns import ENTITIES_TYPE, OutputKind, given_labels, kinds_of, label_counts
from mtop_batch.table.definition import Definition
from mtop_batch.table.gate.statistics import TaskChange
from mtop_batch.table.lake.rows import lake_type
from mtop_batch.table.lease.lease import hold_lease
from mtop_batch.table.publisher import publish
from mtop_batch.table.read import read_labels
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.stats import table_stats
from tests.conftest import make_tokenizer
from tests.labelling.support import definition, small_slices, write_corpus
from tests.labelling.test_predict_entities import TASKS, make_model

TEXTS = [
    "a bank wins the cup in a market of music",
    None,
    "",
    "e\u0301 bank \u00e9 wins, 🙂 market 👩‍👩‍👧 of \u6771\u4eac music",
    "music market bank wins goal team player cup film music star album show vote party minister law budget",
    "x",
]
OTHERS = ["team of a star", "the bank", "party 🙂 law", None, "a goal", ""]


@pytest.fixture(autouse=True)
def _slices() -> Iterator[None]:
    with small_slices(4):
        yield


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    ids = [f"a{n}" for n in range(len(TEXTS))]
    whole = {"id": ids, "title": TEXTS, "body": OTHERS}
    lacking = {"id": ["b0"], "body": ["the bank of music"]}
    write_corpus(tmp_path / "corpus", {"x.parquet": whole, "day=1/y.parquet": lacking})
    return tmp_path / "corpus"


def label_all(corpus: Path, labels: Path, wanted: Definition, max_windows: int) -> list[Any]:
    """A whole run, without Ray; returns what the writing stage says of each unit."""
    plan, run = plan_labels(str(corpus), str(labels), wanted), new_run_id()
    names = [task.name for task in wanted.tasks]
    predictor = Predictor(make_model(max_windows), make_tokenizer(), precision="fp32", tasks=names)
    limits = {"max_windows": max_windows, "window_overlap": 3 if max_windows > 1 else 0}
    tokenizer = TextTokenizer(make_tokenizer(), 14, **limits)
    write_run(str(labels), run, wanted, str(corpus))
    with hold_lease(str(labels), run) as lease:
        job = LabelJob(str(corpus), str(labels), run, wanted, lease.token)
        results = write(job, label(read_and_tokenise(job, plan.units, tokenizer), predictor)) if plan.units else []
        publish(str(labels), wanted.view, wanted.kinds, plan.to_publish, run)
    return results


def wanted_tasks(*names: str, columns: Any = ("title", "body")) -> Definition:
    tasks = [task for task in TASKS if task.name in names]
    return definition({task.name: "1" for task in tasks}, tasks=tasks, text_columns=columns)


@pytest.mark.parametrize("max_windows", [1, 5])
@pytest.mark.parametrize("columns", [("title", "body"), ("body",)])
def test_offsets_in_the_table_give_back_the_entities(
    tmp_path: Path, corpus: Path, columns: tuple[str, ...], max_windows: int
) -> None:
    wanted = wanted_tasks("names", "politics", "things", columns=columns)
    results = label_all(corpus, tmp_path / "labels", wanted, max_windows)
    table = read_labels(str(tmp_path / "labels"))
    assert len(table) == len(TEXTS) + 1
    rows = {row["id"]: row for row in table.to_pylist()}
    texts = {f"a{n}": {"title": title, "body": body} for n, (title, body) in enumerate(zip(TEXTS, OTHERS, strict=True))}
    texts["b0"] = {"title": None, "body": "the bank of music"}
    predictor = Predictor(make_model(max_windows), make_tokenizer(), precision="fp32")
    num_entities = 0
    for name, row in rows.items():
        given = [texts[name][column] for column in columns]
        found = predictor.predict(given[:1], given[1:] or None).to_pylist()[0]
        assert (row["error"] is None) == (found["error"] is None)
        for task in ("names", "things"):
            ours, theirs = row[f"{task}_label"], found[f"{task}_label"]
            assert (ours is None) == (theirs is None) == (row[f"{task}_score"] is None)
            for entity, expected in zip(ours or [], theirs or [], strict=True):
                assert {**expected, "column": entity["column"]} == pytest.approx(entity, abs=1e-5) or all(
                    entity[key] == expected[key] for key in ("start", "end", "label")
                )
                text = texts[name][entity["column"]]
                assert text is not None
                assert text[entity["start"] : entity["end"]].strip() != ""
                num_entities += 1
    assert num_entities > 5
    entities = [entity for row in rows.values() for entity in row["names_label"] or []]
    counts: dict[str, int] = {}
    for result in results:
        for label_, count in result.label_counts["names"].items():
            counts[label_] = counts.get(label_, 0) + count
    types = [{entity["label"] for entity in row["names_label"] or []} for row in rows.values()]
    assert counts == {name: sum(name in of for of in types) for name in {entity["label"] for entity in entities}}
    assert sum(result.list_counts["names"] for result in results) == sum(row["error"] is None for row in rows.values())


def test_an_sql_query_gives_the_entities(tmp_path: Path, corpus: Path) -> None:
    label_all(corpus, tmp_path / "labels", wanted_tasks("names"), 1)
    query = f"""
        SELECT id, e.label, e."column", substr(CASE e."column" WHEN 'title' THEN title ELSE body END,
                                               e.start + 1, e."end" - e.start) AS entity
        FROM (SELECT id, unnest(names_label) AS e FROM '{tmp_path}/labels/current/x.parquet')
        JOIN '{corpus}/x.parquet' USING (id) ORDER BY id, e."column" DESC, e.start
    """
    found = duckdb.connect().execute(query).fetchall()
    texts = {f"a{n}": {"title": title, "body": body} for n, (title, body) in enumerate(zip(TEXTS, OTHERS, strict=True))}
    rows = {row["id"]: row["names_label"] for row in read_labels(str(tmp_path / "labels")).to_pylist()}
    expected = [
        (name, e["label"], e["column"], str(texts[name][e["column"]])[e["start"] : e["end"]])
        for name in sorted(texts)
        for e in sorted(rows[name] or [], key=lambda e: (e["column"] != "title", e["start"]))
    ]
    assert found == expected
    assert len(found) > 3
    frame = polars.read_parquet(tmp_path / "labels" / "current" / "x.parquet")
    exploded = frame.explode("names_label").drop_nulls("names_label").unnest("names_label")
    assert len(exploded) == len(found)


def test_a_second_run_has_nothing_to_do_and_an_added_task_is_filled_in(tmp_path: Path, corpus: Path) -> None:
    labels = tmp_path / "labels"
    label_all(corpus, labels, wanted_tasks("politics"), 1)
    before = read_labels(str(labels))
    both = wanted_tasks("names", "politics")
    plan = plan_labels(str(corpus), str(labels), both)
    assert {task for unit in plan.units for task in unit.tasks} == {"names"}
    label_all(corpus, labels, both, 1)
    assert not plan_labels(str(corpus), str(labels), both).units
    after = read_labels(str(labels))
    assert after["politics_label"].equals(before["politics_label"])
    assert after.schema.field("names_label").type == ENTITIES_TYPE
    stats = table_stats(str(labels)).tasks["names"]
    assert stats.current == stats.labelled > 0
    assert stats.without_label == sum(row == [] for row in after["names_label"].to_pylist())


def entities(*rows: list[tuple[int, int, str]] | None) -> pa.Table:
    lists = [
        None if row is None else [{"column": "body", "start": s, "end": e, "label": t, "score": 0.5} for s, e, t in row]
        for row in rows
    ]
    scores = pa.array([None if row is None else 0.5 for row in rows], pa.float32())
    return pa.table({"id": range(len(rows)), "n_label": pa.array(lists, ENTITIES_TYPE), "n_score": scores})


def test_the_types_of_an_article_are_its_labels() -> None:
    table = entities([(0, 1, "PER"), (2, 3, "PER"), (4, 5, "LOC")], [], None, [(0, 2, "LOC")])
    found = given_labels(table["n_label"])
    assert [row and sorted(row) for row in found.to_pylist()] == [["LOC", "PER"], [], None, ["LOC"]]
    assert label_counts(found) == {"PER": 1, "LOC": 2}
    assert label_counts(given_labels(table["n_label"].slice(1, 1))) == {}


def test_the_gate_counts_changes_of_types() -> None:
    change = TaskChange("token")
    old = entities([(0, 1, "PER")], [(0, 1, "PER")], [], None)
    new = entities([(3, 4, "PER")], [(0, 1, "LOC")], [(0, 1, "LOC")], [(0, 1, "PER")])
    change.add("n", new, old)
    assert (change.num_same, change.num_flipped, change.num_fresh) == (3, 2, 1)
    assert change.old_shares == {"PER": 2}
    assert change.new_shares == {"PER": 1, "LOC": 2}
    assert change.fresh_shares == {"PER": 1}


def test_files_and_lakes_keep_the_type(tmp_path: Path) -> None:
    table = entities([(0, 1, "PER")], None)
    pq.write_table(table, tmp_path / "x.parquet")
    assert kinds_of(pq.read_schema(tmp_path / "x.parquet")) == {"n": OutputKind("token")}
    assert lake_type(pq.read_schema(tmp_path / "x.parquet").field("n_label").type) == ENTITIES_TYPE
