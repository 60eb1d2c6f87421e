"""What the gate sees of a table before anything is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtop_batch import storage
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.table.definition import Definition
from mtop_batch.table.gate.preview import preview
from mtop_batch.table.gate.rules import TableChange
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import new_run_id, run_uri, write_run
from tests.labelling.support import articles, definition, expected_label, label_unit, small_slices, write_corpus

OLD, NEW = definition({"a": "1", "b": "1", "r": "1"}), definition({"a": "2", "b": "1", "r": "1"})


@pytest.fixture(autouse=True)
def _slices() -> Any:
    with small_slices(4):
        yield


def compute(root: Path, wanted: Definition) -> TableChange:
    """Label into the store, and look at what publishing would change."""
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    run = new_run_id()
    write_run(plan.labels, run, wanted, plan.corpus)
    for unit in plan.units:
        label_unit(plan.corpus, plan.labels, wanted, unit, run)
    return preview(plan.labels, wanted.view, wanted.kinds, plan.to_publish)


def show(root: Path, wanted: Definition) -> TableChange:
    """Label and publish as a run does, its report included."""
    change = compute(root, wanted)
    labels, run = f"{root}/labels", new_run_id()
    write_run(labels, run, wanted, f"{root}/corpus")
    plan = plan_labels(f"{root}/corpus", labels, wanted)
    publish(labels, wanted.view, wanted.kinds, plan.to_publish, run)
    report = {"published": {"files": 1}, "gate": change.to_dict()}
    storage.write_bytes(run_uri(labels, run, "report.json"), json.dumps(report).encode())
    return change


def test_a_first_run_has_new_articles_only(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(10), "d/y.parquet": articles(5, 10)})
    change = compute(tmp_path, OLD)
    assert (change.articles, change.new_errors) == (15, 0)
    assert list(change.tasks) == ["a", "b", "r"]
    assert {task: (of.fresh.count, of.num_same) for task, of in change.tasks.items()} == dict.fromkeys("abr", (15, 0))
    assert change.usual == {"a": [], "b": [], "r": []}


def test_a_changed_task_is_compared_article_by_article(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(30)})
    show(tmp_path, OLD)
    write_corpus(tmp_path / "corpus", {"y.parquet": articles(7, 30)})
    change = compute(tmp_path, NEW)
    texts = [(f"title {n}", f"body {n}") for n in range(37)]
    old = [expected_label("a", "1", *text)[0] for text in texts[:30]]
    new = [expected_label("a", "2", *text)[0] for text in texts]
    assert change.articles == 37
    of_a, of_b = change.tasks["a"], change.tasks["b"]
    assert of_a.pairs == {
        pair: list(zip(old, new, strict=False)).count(pair) for pair in set(zip(old, new, strict=False))
    }
    assert of_a.fresh_labels.total() == of_b.fresh_labels.total() == 7
    assert of_a.replaced == {("news", "1"): 30}
    assert of_b.num_same == 0  # unchanged where it is shown
    assert change.usual["a"] == [dict(of_a.old_shares)]
    row = of_a.examples[0]["row"]
    assert (of_a.examples[0]["old"], of_a.examples[0]["new"]) == (old[row], new[row])


def test_articles_of_a_file_that_was_rewritten_are_found_by_their_ids(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(10)})
    show(tmp_path, OLD)
    moved = {name: values[:3] + values[5:] for name, values in articles(12).items()}
    write_corpus(tmp_path / "corpus", {"x.parquet": moved})
    change = compute(tmp_path, OLD)
    assert {task: (of.fresh.count, of.num_same) for task, of in change.tasks.items()} == dict.fromkeys("abr", (2, 8))
    assert all(of.disagreement == 0 for of in change.tasks.values())  # their texts are the same


def test_errors_that_readers_have_seen_are_no_news(tmp_path: Path) -> None:
    columns = articles(10)
    columns["title"][2] = columns["body"][2] = None
    write_corpus(tmp_path / "corpus", {"x.parquet": columns})
    assert show(tmp_path, OLD).new_errors == 1
    assert compute(tmp_path, NEW).new_errors == 0


def test_only_the_last_runs_of_the_same_fingerprint_say_what_is_usual(tmp_path: Path) -> None:
    for number, wanted in enumerate([OLD, OLD, NEW, NEW]):
        write_corpus(tmp_path / "corpus", {f"{number}.parquet": articles(5, 5 * number)})
        show(tmp_path, wanted)
    write_corpus(tmp_path / "corpus", {"z.parquet": articles(5, 50)})
    change = compute(tmp_path, NEW)
    assert [sum(run.values()) for run in change.usual["a"]] == [5, 15]  # the second one relabelled ten
    assert [sum(run.values()) for run in change.usual["b"]] == [5, 5, 5, 5]
    assert {float(key) for key in change.usual["r"][0]} != set()


def test_a_table_without_changes_has_nothing_to_judge(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(10)})
    show(tmp_path, OLD)
    assert compute(tmp_path, OLD) == TableChange()
