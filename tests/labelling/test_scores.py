"""A changed decision is computed from stored scores: no text, no model, and the same labels to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch import storage
from mtop_batch.decisions.rules import with_rules
from mtop_batch.errors import DamagedLabelFile, TaskError
from mtop_batch.labelling.plan.explain import explain_plan, plan_dict
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.staleness import DECISION_CHANGED, SCORES_LACKING, SCORES_WANTED
from mtop_batch.labelling.plan.work import Plan, Unit, decode_units, encode_units
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.labelling.run.stages import LabelJob, UnitResult, _labelled, _stream, label_from_scores, write
from mtop_batch.table.definition import Definition
from mtop_batch.table.lease.lease import LeaseToken
from mtop_batch.table.outputs import TaskOutputs
from mtop_batch.table.publisher import publish
from mtop_batch.table.read import read_labels
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.tasks import Decision, Task
from tests.labelling.support import articles, definition, small_slices, write_corpus


class _NoLease:
    def check(self) -> None:
        """Nobody else writes."""


NO_LEASE = cast(LeaseToken, _NoLease())
NEWS, SPORT = Task("news"), Task("sport", scores="all")
TOPIC = Task("topic", labels=("film", "food", "money"), scores="all")
TAGS = Task("tags", "multi-label", ("a", "b", "c"), scores="all")
PRICE = Task("price", "regression", ())
TASKS = (NEWS, SPORT, TOPIC, TAGS, PRICE)


@pytest.fixture(autouse=True)
def _slices() -> Iterator[None]:
    with small_slices(4):
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files: dict[str, Any] = {"x.parquet": articles(10), "y.parquet": articles(3, 10)}
    files["x.parquet"]["title"][2] = files["x.parquet"]["body"][2] = ""
    write_corpus(tmp_path / "corpus", files)
    return tmp_path


def decided(tasks: Sequence[Task] = TASKS, rules: Sequence[str] = (), **decisions: Mapping[str, Any]) -> Definition:
    """A definition in which some tasks have a decision."""
    tasks = [replace(task, decision=Decision(**decisions.get(task.name, {}))) for task in tasks]
    return definition({task.name: "1" for task in tasks}, tasks=with_rules(tasks, rules))


def outputs_of(tasks: Sequence[Task], texts: Sequence[str | None]) -> TaskOutputs:
    """What a model would put out: as arbitrary, and in float32."""
    label_ids = np.full((len(tasks), len(texts)), -1, np.int32)
    scores = np.full(label_ids.shape, np.nan, np.float32)
    found = {task.name: np.full((task.num_outputs, len(texts)), np.nan, np.float32) for task in tasks}
    for place, task in enumerate(tasks):
        for row, text in enumerate(texts):
            if text is None:
                continue
            generator = np.random.default_rng(list(f"{task.name} {text}".encode()))
            logits = (generator.normal(size=task.num_outputs) * 2).astype(np.float32)
            if task.kind == "regression":
                scores[place, row] = logits[0]
                continue
            odds = np.exp(logits)
            probabilities = odds / (1 + odds) if task.is_multi_label else odds / odds.sum()
            found[task.name][:, row] = probabilities
            scores[place, row] = probabilities.max()
            label_ids[place, row] = -1 if task.is_multi_label else probabilities.argmax()
    kept = {task.name: found[task.name] for task in tasks if task.keeps_probabilities}
    return TaskOutputs(label_ids, scores, probabilities=kept)


def from_texts(plan: Plan, unit: Unit, wanted: Definition) -> bytes:
    """What the reading and labelling stages make of a unit."""
    batches = list(read_unit(plan.corpus, unit, wanted.id_column))
    texts = [text for batch in batches for text in batch.texts]
    errors = [error for batch in batches for error in batch.errors]
    table = pa.table({"id": pa.chunked_array([batch.ids for batch in batches]), "error": pa.array(errors, pa.string())})
    tasks = [task for task in wanted.tasks if task.name in unit.tasks]
    result = UnitResult(unit.source.path, str(unit))
    return _stream(_labelled(table, tasks, outputs_of(tasks, texts), result), unit, result)


def run(root: Path, wanted: Definition, labels: str = "labels", units: int = 99) -> tuple[Plan, list[UnitResult]]:
    """Plan and label, or some units of it; then publish."""
    plan = plan_labels(f"{root}/corpus", f"{root}/{labels}", wanted)
    run_id = new_run_id()
    write_run(plan.labels, run_id, wanted, plan.corpus)
    job = LabelJob(plan.corpus, plan.labels, run_id, wanted, NO_LEASE)
    results = []
    for unit in decode_units(encode_units(plan.units[:units])):
        streams = label_from_scores(job, [unit]) if unit.scores else [from_texts(plan, unit, wanted)]
        results += write(job, streams)
    publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run_id)
    return plan, results


def table_of(root: Path, labels: str = "labels") -> pa.Table:
    return read_labels(f"{root}/{labels}")


STRICT: dict[str, Any] = {
    "news": {"thresholds": (0.8,)},
    "sport": {"temperature": 1.7},
    "topic": {"abstain_below": 0.6},
}
TRUSTED: dict[str, Any] = {task.name: {"temperature": 2.3, "abstain_below": 0.55} for task in TASKS[:4]}
THRESHOLDS: dict[str, Any] = {
    **TRUSTED,
    "news": {"thresholds": (0.3,)},
    "tags": {"temperature": 1.2, "thresholds": (0.2, 0.5, 0.9)},
}
RULES = ('implies("sport:yes", "news:yes")', 'excludes("topic:film", "tags:a")', 'implies("tags:b", "tags:c")')
CHANGES = (
    decided(**STRICT),
    decided(**TRUSTED),
    decided(**THRESHOLDS),
    decided(rules=RULES),
    decided(rules=RULES, **THRESHOLDS),
)


@pytest.mark.parametrize("after", CHANGES)
@pytest.mark.parametrize("before", [decided(), *CHANGES])
def test_labels_from_scores_are_those_from_texts_to_the_last_bit(
    root: Path, before: Definition, after: Definition
) -> None:
    run(root, before)
    plan, results = run(root, after)
    run(root, after, "fresh")
    assert table_of(root).equals(table_of(root, "fresh"))
    assert {unit.source_of_labels for unit in plan.units} <= {"scores"}
    assert {result.computed_from for result in results} <= {"scores"}
    assert set(plan.reasons) <= {DECISION_CHANGED}
    assert plan.cells_from("scores") == plan.cells_planned
    # The published table has no other columns than before.
    assert table_of(root).column_names == table_of(root, "fresh").column_names
    assert not [name for name in table_of(root).column_names if name.endswith("uncalibrated")]


def test_what_is_decided_is_in_the_table(root: Path) -> None:
    run(root, decided())
    plain = table_of(root)
    _, results = run(root, decided(news={"thresholds": (0.8,)}, topic={"abstain_below": 0.6}))
    found = table_of(root)
    last = [(score or 0) if label == "yes" else 1 - (score or 0) for label, score in _pairs(plain, "news")]
    is_given = [
        None if text is None else p >= 0.8 for text, p in zip(plain["news_label"].to_pylist(), last, strict=True)
    ]
    assert found["news_label"].to_pylist() == [None if given is None else ("no", "yes")[given] for given in is_given]
    abstained = [label is None and score is not None for label, score in _pairs(found, "topic")]
    assert abstained == [score is not None and score < 0.6 for _, score in _pairs(plain, "topic")]
    assert found["topic_score"].equals(plain["topic_score"])
    assert found["error"].equals(plain["error"])
    assert sum(result.abstained.get("topic", 0) for result in results) == sum(abstained) > 0


def _pairs(table: pa.Table, task: str) -> list[tuple[str | None, float | None]]:
    return list(zip(table[f"{task}_label"].to_pylist(), table[f"{task}_score"].to_pylist(), strict=True))


def test_corrections_are_counted(root: Path) -> None:
    run(root, decided(), "plain")
    run(root, decided())
    _, results = run(root, decided(rules=RULES))
    plain, corrected = (table_of(root, labels).to_pydict() for labels in ("plain", "labels"))
    for task in ("news", "sport", "topic", "tags"):
        pairs = zip(plain[f"{task}_label"], corrected[f"{task}_label"], strict=True)
        assert sum(result.corrected.get(task, 0) for result in results) == sum(was != now for was, now in pairs)
    assert any(result.corrected for result in results)


def test_a_return_to_the_former_decision_finds_its_label_set(root: Path) -> None:
    run(root, decided())
    before = table_of(root)
    run(root, decided(**TRUSTED))
    plan, _ = run(root, decided())
    assert plan.units == ()
    assert table_of(root).equals(before)


def test_an_interrupted_change_is_finished_with_the_same_files(root: Path) -> None:
    wanted = decided(rules=RULES, **THRESHOLDS)
    run(root, decided())
    run(root, decided(), "other")
    cut, _ = run(root, wanted, units=2)
    rest, _ = run(root, wanted)
    assert len(rest.units) == len(cut.units) - 2
    assert all(unit.scores for unit in rest.units)
    run(root, wanted, "other")
    names = [{info.path for info in storage.list_files(f"{root}/{labels}/_store")} for labels in ("labels", "other")]
    assert names[0] == names[1]
    assert table_of(root).equals(table_of(root, "other"))


def test_where_scores_were_not_stored_the_plan_says_so_and_texts_are_read(root: Path) -> None:
    tasks = (NEWS, replace(TOPIC, scores="label"), replace(TAGS, scores="label"), PRICE)
    run(root, decided(tasks))
    wanted = decided(tasks, news={"temperature": 2.0}, topic={"temperature": 2.0}, tags={"thresholds": (0.4, 0.4, 0.4)})
    plan, _ = run(root, wanted)
    assert plan.reasons == {DECISION_CHANGED: 13, SCORES_LACKING: 26}
    assert (plan.cells_from("scores"), plan.cells_from("texts")) == (13, 26)
    described = explain_plan(plan, None)
    assert "from stored scores, without texts: 4 units, 13 cells" in described
    assert 'decision changed, scores not stored (scores = "all" keeps them): 26 cells' in described
    assert plan_dict(plan)["cells_from_scores"] == 13
    run(root, wanted, "fresh")
    assert table_of(root).equals(table_of(root, "fresh"))


@pytest.mark.parametrize("before", [{}, {"temperature": 2.0}, {"abstain_below": 0.7}])
@pytest.mark.parametrize("after", [{}, {"temperature": 0.6, "thresholds": (0.3,)}])
def test_scores_of_all_labels_come_from_stored_ones_where_one_says_all(
    root: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    run(root, decided((NEWS, replace(TOPIC, scores="label")), news=before))
    wanted = decided((replace(NEWS, scores="all"), TOPIC), news=after)
    plan, _ = run(root, wanted)
    assert plan.reasons == {SCORES_WANTED: 26}
    assert {unit.tasks: unit.source_of_labels for unit in plan.units} == {("news",): "scores", ("topic",): "texts"}
    run(root, wanted, "fresh")
    assert table_of(root).equals(table_of(root, "fresh"))
    assert "news_scores" in table_of(root).column_names


def test_scores_of_other_weights_or_texts_are_not_used(root: Path) -> None:
    run(root, decided((NEWS,)))
    hot = replace(NEWS, decision=Decision(temperature=2.0))
    for other in (
        definition({"news": "2"}, tasks=[hot]),
        definition({"news": "1"}, tasks=[hot], text_columns=("title",)),
    ):
        assert {unit.source_of_labels for unit in run(root, other)[0].units} == {"texts"}


def test_new_articles_beside_a_changed_decision_are_read(root: Path) -> None:
    run(root, decided())
    write_corpus(root / "corpus", {"z.parquet": articles(6, 20)})
    plan, _ = run(root, decided(**TRUSTED))
    assert {unit.source.path: unit.source_of_labels for unit in plan.units} == {
        "x.parquet": "scores",
        "y.parquet": "scores",
        "z.parquet": "texts",
    }
    run(root, decided(**TRUSTED), "fresh")
    assert table_of(root).equals(table_of(root, "fresh"))


def test_a_rule_makes_tasks_stale_together(root: Path) -> None:
    run(root, decided(rules=RULES))
    hotter = decided(rules=RULES, sport={"temperature": 3.0})
    plan, _ = run(root, hotter)
    assert plan.planned_per_task == {"news": 13, "sport": 13, "topic": 0, "tags": 0, "price": 0}
    assert plan.cells_from("scores") == 26
    with pytest.raises(TaskError, match="which is left out; name both"):
        definition({"news": "1"}, tasks=[hotter.tasks[0]]).view  # noqa: B018


def test_a_damaged_file_of_scores_is_not_decided_from(root: Path) -> None:
    run(root, decided((NEWS,)))
    wanted = decided((NEWS,), news={"temperature": 2.0})
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    unit = plan.units[0]
    path = root / "labels" / "_store" / unit.scores[0].file.label_set / unit.scores[0].file.path
    path.write_bytes(path.read_bytes()[:-30])
    job = LabelJob(plan.corpus, plan.labels, "run", wanted, NO_LEASE)
    with pytest.raises(DamagedLabelFile):
        label_from_scores(job, [unit])
    again = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    assert [each.source_of_labels for each in again.units] == ["texts", "scores", "scores", "scores"]


def test_a_label_file_says_its_decision(root: Path) -> None:
    wanted = decided(**TRUSTED)
    run(root, wanted)
    record = json.loads(table_footer(root))
    assert record["tasks"]["news"]["decision"] == wanted.view.decisions["news"]
    assert (record["tasks"]["news"]["uncalibrated"], record["tasks"]["tags"]["uncalibrated"]) == (1, 3)
    assert "decision" not in record["tasks"]["price"]


def table_footer(root: Path) -> bytes:
    path = next((root / "labels" / "_store").rglob("*.parquet"))
    return bytes(pq.read_metadata(path).metadata[b"mtop_batch"])
