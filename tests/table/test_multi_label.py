"""Multi-label tasks and scores of all labels in the label table: from the store to readers, and through the gate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.engine.compare import _flips
from mtop_batch.errors import TaskError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.columns import OutputKind, kinds_of, label_schema, scored_labels
from mtop_batch.table.definition import Definition
from mtop_batch.table.gate.distributions import LabelCounts
from mtop_batch.table.gate.preview import preview, usual_shares
from mtop_batch.table.gate.rules import Rules, TableChange, judge
from mtop_batch.table.gate.statistics import TaskChange
from mtop_batch.table.outputs import TaskOutputs, label_columns
from mtop_batch.table.published import TableSchema, read_table_schema
from mtop_batch.table.publisher import publish
from mtop_batch.table.read import iter_labels, read_labels
from mtop_batch.table.runs import check_same_tasks, new_run_id, run_uri, write_run
from mtop_batch.table.stats import table_stats
from mtop_batch.table.store import list_store, read_footer, read_label_sets
from mtop_batch.tasks import Task
from tests.labelling.support import (
    articles,
    definition,
    expected_label,
    expected_probabilities,
    label_corpus,
    label_unit,
    run_plan,
    small_slices,
    write_corpus,
)

TOPICS = Task("m", "multi-label", labels=("film", "sport", "money"))
TEXTS = [(f"title {n}", f"body {n}") for n in range(40)]


@pytest.fixture(autouse=True)
def _slices() -> Iterator[None]:
    with small_slices(4):
        yield


def wanted(*tasks: Task, fingerprint: str = "1", **others: str) -> Definition:
    """A definition of a yes-or-no task `a`, a regression `r`, and these tasks."""
    fingerprints = {"a": "1", "r": "1", **{task.name: fingerprint for task in tasks}, **others}
    return definition(fingerprints, tasks=tasks)


PLAIN, ALL = wanted(TOPICS), wanted(replace(TOPICS, scores="all"), Task("a", scores="all"))


def topics_of(text: tuple[str, str], task: Task = TOPICS, fingerprint: str = "1") -> tuple[list[str], list[float]]:
    found = zip(task.labels, expected_probabilities(task, fingerprint, *text), strict=True)
    given = [(label, score) for label, score in found if score >= 0.5]
    return [label for label, _ in given], [score for _, score in given]


def published_schema(root: Path, name: str = "x.parquet") -> pa.Schema:
    return pq.read_schema(root / "labels" / "current" / name)


def test_a_row_has_the_labels_that_are_likely_in_the_order_of_the_task() -> None:
    probabilities = np.array([[0.5, 0.1, np.nan, 0.9], [0.2, 0.4, np.nan, 0.7], [0.8, 0.3, np.nan, 0.1]], np.float32)
    outputs = TaskOutputs(
        np.full((1, 4), -1, np.int32), probabilities.max(axis=0)[None], probabilities={"m": probabilities}
    )
    columns = dict(label_columns([replace(TOPICS, scores="all")], outputs, np.array([True, True, True, False])))
    assert columns["m_label"].to_pylist() == [["film", "money"], [], None, None]
    assert columns["m_score"].to_pylist() == [pytest.approx([0.5, 0.8]), [], None, None]
    assert columns["m_scores"].to_pylist() == [
        pytest.approx([0.5, 0.2, 0.8]),
        pytest.approx([0.1, 0.4, 0.3]),
        None,
        None,
    ]
    tail = dict(label_columns([TOPICS], outputs[1:], np.array([True, True, True])))
    assert tail["m_label"].to_pylist() == [[], None, ["film", "sport"]]


def test_the_kinds_of_a_file_are_read_off_its_columns(tmp_path: Path) -> None:
    kinds = {
        "a": OutputKind("classification", ("no", "yes")),
        "b": OutputKind("classification"),
        "m": OutputKind("multi-label"),
        "n": OutputKind("multi-label", ("é", '"')),
        "r": OutputKind("regression"),
    }
    schema = label_schema(pa.int64(), kinds)
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    assert kinds_of(pq.read_schema(tmp_path / "x.parquet")) == kinds
    table = TableSchema(kinds, pa.int64())
    assert TableSchema.decode(table.encode(), "x") == table
    assert b"scores" not in TableSchema({"a": OutputKind("classification")}).encode()


def test_rows_come_back_from_the_store_and_the_published_table(tmp_path: Path) -> None:
    columns = articles(10)
    columns["title"][3] = columns["body"][3] = None
    write_corpus(tmp_path / "corpus", {"x.parquet": columns, "d=1/y.parquet": articles(2, 10)}, row_group_size=4)
    label_corpus(tmp_path / "corpus", tmp_path / "labels", ALL)
    table = read_labels(str(tmp_path / "labels"), partition=None)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == 12
    for number in range(12):
        row = rows[f"a{number}"]
        if number == 3:
            assert (row["m_label"], row["m_score"], row["m_scores"], row["a_scores"]) == (None,) * 4
            assert row["error"] is not None
            continue
        assert (row["m_label"], row["m_score"]) == topics_of(TEXTS[number])
        assert row["m_scores"] == expected_probabilities(TOPICS, "1", *TEXTS[number])
        assert row["a_scores"] == pytest.approx(expected_probabilities(Task("a"), "1", *TEXTS[number]))
        assert row["a_label"] == expected_label("a", "1", *TEXTS[number])[0]
    assert scored_labels(table.schema.field("m_scores")) == TOPICS.labels
    assert json.loads(published_schema(tmp_path).field("m_scores").metadata[b"labels"]) == list(TOPICS.labels)
    assert table.schema.field("m_scores").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("m_label").type == pa.list_(pa.string())
    assert pa.concat_tables(iter_labels(str(tmp_path / "labels"))).num_rows == 12
    assert label_corpus(tmp_path / "corpus", tmp_path / "labels", ALL).units == ()


def test_labels_of_lists_are_written_with_dictionaries(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(9)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", ALL)
    group = pq.read_metadata(tmp_path / "labels" / "current" / "x.parquet").row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    with_dictionary = {column.path_in_schema for column in columns if "RLE_DICTIONARY" in column.encodings}
    assert with_dictionary == {"a_label", "m_label.list.element", "error"}


def test_wanting_all_scores_makes_labels_stale_and_no_longer_wanting_them_does_not(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(6)})
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    assert label_corpus(corpus, labels, PLAIN).cells_planned == 18
    assert "m_scores" not in published_schema(tmp_path).names
    plan = label_corpus(corpus, labels, ALL)
    assert (plan.cells_planned, plan.cells_current) == (12, 6)  # those of the regression stay
    assert set(published_schema(tmp_path).names) >= {"a_scores", "m_scores"}
    assert label_corpus(corpus, labels, PLAIN).units == ()
    before = read_labels(str(labels))
    write_corpus(corpus, {"y.parquet": articles(2, 6)})
    label_corpus(corpus, labels, PLAIN)
    table = read_labels(str(labels))
    assert table.slice(0, 6) == before
    assert table["m_scores"].null_count == table["a_scores"].null_count == 2
    assert table["m_label"].null_count == 0
    assert {name.rpartition("-")[2] for name in table_stats(str(labels)).label_sets} == {
        PLAIN.label_set_name(PLAIN.fingerprints).rpartition("-")[2],
        # Of two labels the stored score says all: so these are not computed together with the others.
        ALL.label_set_name(["a"]).rpartition("-")[2],
        ALL.label_set_name(["m"]).rpartition("-")[2],
    }


def test_a_label_set_with_all_scores_is_not_filled_up_without_them(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(9)})
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    plan = plan_labels(str(corpus), str(labels), ALL)
    run_plan(plan, ALL, plan.units[:1])
    label_corpus(corpus, labels, PLAIN)
    table = read_labels(str(labels))
    assert (len(table), table["m_label"].null_count) == (9, 0)
    listing = list_store(str(labels))
    for label_set in read_label_sets(str(labels), listing):
        kinds = [read_footer(str(labels), file).kinds for file in listing.files_of(label_set.name)]
        assert kinds == [label_set.kinds] * len(kinds)


def test_scores_of_articles_that_wait_for_a_retrained_task_keep_their_labels(tmp_path: Path) -> None:
    files = {"d=1/x.parquet": articles(3), "d=2/y.parquet": articles(2, 3)}
    write_corpus(tmp_path / "corpus", files)
    corpus, labels = tmp_path / "corpus", tmp_path / "labels"
    old = replace(TOPICS, scores="all")
    new = Task("m", "multi-label", labels=("art", "sport", "film"), scores="all")
    label_corpus(corpus, labels, wanted(old))
    label_corpus(corpus, labels, wanted(new, fingerprint="2"), ["d=1"])
    rows = read_labels(str(labels)).to_pylist()
    assert [row["m_scores"] for row in rows[:3]] == [expected_probabilities(new, "2", *text) for text in TEXTS[:3]]
    for row, text in zip(rows[3:], TEXTS[3:], strict=False):
        film, sport, _ = expected_probabilities(old, "1", *text)
        assert (row["m_label"], row["m_scores"]) == (topics_of(text)[0], [None, sport, film])
    schema = read_table_schema(str(labels))
    assert schema is not None
    assert schema.kinds["m"].scored == new.labels
    # Back to the first bundle, also where a file has only waited.
    label_corpus(corpus, labels, wanted(old))
    rows = read_labels(str(labels)).to_pylist()
    assert [row["m_scores"] for row in rows] == [expected_probabilities(old, "1", *text) for text in TEXTS[:5]]


def test_a_task_of_another_kind_is_another_task(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(2)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", PLAIN)
    single = wanted(Task("m", labels=TOPICS.labels), fingerprint="2")
    with pytest.raises(TaskError, match=r"task 'm' has the labels film, .*, but any number of the labels film"):
        check_same_tasks(str(tmp_path / "labels"), single)
    check_same_tasks(str(tmp_path / "labels"), wanted(replace(TOPICS, labels=("sport",)), fingerprint="2"))


def test_tables_without_such_tasks_say_nothing_of_them(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(2)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", wanted())
    metadata = pq.read_metadata(tmp_path / "labels" / "current" / "x.parquet").metadata
    assert b"scores" not in metadata[b"mtop_batch"]


def test_label_counts_are_articles_and_some_have_none_of_the_labels(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(40)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", PLAIN)
    task = table_stats(str(tmp_path / "labels")).tasks["m"]
    given = [topics_of(text) for text in TEXTS]
    assert task.label_counts == Counter(label for labels, _ in given for label in labels)
    assert task.without_label == sum(not labels for labels, _ in given) > 0
    assert (task.kind, task.labelled, task.errors) == ("multi-label", 40, 0)
    assert task.shares["film"] == task.label_counts["film"] / 40
    scores = [score for _, scores in given for score in scores]
    assert task.mean_score == pytest.approx(sum(scores) / len(scores))
    assert task.to_dict()["without_label"] == task.without_label


def lists(rows: Sequence[list[str] | None], score: float = 0.9) -> pa.Table:
    scores = [None if row is None else [score] * len(row) for row in rows]
    return pa.table(
        {
            "id": range(len(rows)),
            "t_label": pa.array(rows, pa.list_(pa.string())),
            "t_score": pa.array(scores, pa.list_(pa.float32())),
        }
    )


def change_of(new: Sequence[list[str] | None], old: Sequence[list[str] | None] | None, **options: Any) -> TableChange:
    change = TaskChange("multi-label", "new")
    change.add("t", lists(new), None if old is None else lists(old), source="x", replaced=("news", "old"))
    return TableChange(len(new), tasks={"t": change}, **options)


def test_each_label_is_compared_by_itself_and_articles_by_their_sets() -> None:
    old: list[list[str] | None] = [["a"], ["a", "b"], [], ["b"], None, None]
    new: list[list[str] | None] = [["a"], ["a"], ["c"], ["b"], ["a", "c"], []]
    found = change_of(new, old).tasks["t"]
    assert (found.num_same, found.num_flipped, found.num_fresh) == (4, 2, 2)
    assert found.pairs == {("a", "a"): 2, ("b", "b"): 1, ("b", ""): 1, ("", "c"): 1}
    assert (found.disagreement, found.replaced) == (0.5, {("news", "old"): 4})
    values = found.to_dict()
    assert (values["old_counts"], values["new_counts"]) == ({"a": 2, "b": 2}, {"a": 2, "b": 1, "c": 1})
    assert (values["fresh_counts"], values["fresh_articles"]) == ({"a": 1, "c": 1}, 2)
    assert values["flips"] == [{"old": "b", "new": "", "articles": 1}, {"old": "", "new": "c", "articles": 1}]
    assert {(example["old"], example["new"]) for example in found.examples} == {("a, b", "a"), ("", "c")}
    assert (found.old.count, found.new.count, found.fresh.count) == (4, 4, 2)


def test_parts_add_up_whatever_their_labels() -> None:
    rows: list[list[str] | None] = [["a"], ["b", "a"], [], ["c"], None, ["b"]]
    whole, parts = TaskChange("multi-label"), TaskChange("multi-label")
    whole.add("t", lists(rows), lists(rows[::-1]))
    for start in range(0, 6, 2):
        one = TaskChange("multi-label")
        one.add("t", lists(rows)[start : start + 2], lists(rows[::-1])[start : start + 2])
        parts.merge(one)
    assert parts.pairs == whole.pairs
    left_out = {"examples": None, "flips": None}  # which of those that are equally frequent come first
    assert {**parts.to_dict(), **left_out} == {**whole.to_dict(), **left_out}


def test_the_gate_closes_where_a_label_is_given_to_many_more_articles_or_to_none() -> None:
    before = [["a", "b"]] * 200 + [["b"]] * 800
    verdict = judge(change_of([["a", "b"]] * 1000, before), Rules())
    assert [reason.rule for reason in verdict.reasons] == ["max_label_share_change", "max_flips"]
    assert "'a' goes from 20.0% to 100.0% of 1,000 articles" in str(verdict)
    assert judge(change_of(before, before), Rules()).is_open
    assert not judge(change_of([[]] * 1000, before), Rules()).is_open
    stability = change_of([["b"]] * 1000, before).tasks["t"].to_dict()["stability"]
    assert stability > 0.25  # that of "a"; "b" stays as it is


def test_new_articles_are_compared_label_by_label_with_the_last_runs() -> None:
    usual = {"t": [LabelCounts({"a": 100, "b": 450}, 500)]}
    assert judge(change_of([["b"]] * 150 + [["a", "b"]] * 50, None, usual=usual), Rules()).is_open
    all_or_none: list[list[list[str]]] = [[["a", "b"]] * 200, [[]] * 200]
    for new in all_or_none:
        verdict = judge(change_of(new, None, usual=usual), Rules())
        assert [reason.rule for reason in verdict.reasons] == ["max_new_share_change"]
    values = verdict.to_dict()["tasks"]["t"]
    assert (values["usual_counts"], values["usual_articles"]) == ({"a": 100, "b": 450}, 500)
    assert "'b' is 0.0% of 200 new articles, and was 90.0%" in str(verdict)


def test_the_gate_sees_what_publishing_would_change(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(30)})
    labels = str(tmp_path / "labels")
    report = {"published": {"files": 1}, "gate": compute(tmp_path, ALL).to_dict()}
    plan = plan_labels(f"{tmp_path}/corpus", labels, ALL)
    run = new_run_id()
    write_run(labels, run, ALL, f"{tmp_path}/corpus")
    publish(labels, ALL.view, ALL.kinds, plan.to_publish, run)
    storage.write_bytes(run_uri(labels, run, "report.json"), json.dumps(report).encode())
    change = compute(tmp_path, wanted(replace(TOPICS, scores="all"), fingerprint="2"))
    old, new = ([topics_of(text, fingerprint=of)[0] for text in TEXTS[:30]] for of in "12")
    assert change.tasks["m"].num_flipped == sum(was != now for was, now in zip(old, new, strict=True))
    assert change.tasks["m"].old_shares == Counter(label for row in old for label in row)
    (usual,) = usual_shares(labels, {"m": "1"})["m"]
    assert (usual, usual.articles) == (change.tasks["m"].old_shares, 30)


def compute(root: Path, of: Definition) -> TableChange:
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", of)
    for unit in plan.units:
        label_unit(plan.corpus, plan.labels, of, unit, new_run_id())
    return preview(plan.labels, of.view, of.kinds, plan.to_publish)


def test_flips_of_lists_are_one_for_each_label_that_comes_or_goes() -> None:
    assert _flips(["a", "b"], [0.9, 0.6], ["b", "c"], [0.7, 0.8]) == [("a", 0.9, None, None), (None, None, "c", 0.8)]
    assert _flips(["a"], [0.9], ["a"], [0.5]) == _flips(None, None, ["a"], [0.5]) == []
    assert _flips("yes", 0.9, "no", 0.5) == [("yes", 0.9, "no", 0.5)]
