"""The page of an evaluation: whole, readable without scripts, whatever names and texts are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from mtop_batch.data.repeats import RepeatedText, Repeats
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluate import TaskPredictions
from mtop_batch.training.evaluation.evaluated import EvaluatedTask
from mtop_batch.training.evaluation.label_report import label_report, worst_errors
from mtop_batch.training.evaluation.page import evaluation_page
from tests.labelling.test_page import HOSTILE, check


def evaluated(
    task: Task, count: int = 60, seed: int = 0, text: str = "A headline of a day", same: bool = False
) -> EvaluatedTask:
    """A task that is right three times of four."""
    rng = np.random.default_rng(seed)
    if task.kind == "regression":
        labels = np.full(count, 2.5) if same else rng.normal(size=count)
        said = TaskPredictions(labels + rng.normal(size=count) / 3, np.full(count, np.nan), 1.0)
    else:
        labels = np.zeros(count, np.int64) if same else rng.integers(len(task.labels), size=count)
        wrong = rng.random(count) < 0.25
        values = np.where(wrong, (labels + 1) % len(task.labels), labels).astype(float)
        said = TaskPredictions(values, np.clip(rng.normal(0.85, 0.1, size=count), 0.5, 1), 1.0)
    metrics = {"loss": 0.5, "num_examples": count, str(task.metric): math.nan if same else 0.75}
    texts = [f"{text} {row}" for row in range(count)]
    seconds = [text] * count if len(task.text) == 2 else None
    report = label_report(task, said, labels)
    repeated = [RepeatedText(text, None, dict.fromkeys(task.labels[:3], 2), {"no": 1})] * 3
    errors = worst_errors(task, said, labels, texts, seconds)
    return EvaluatedTask(task, metrics, report, errors, Repeats(400, 3, repeated, repeated), "", errors, "")


def page_of(*tasks: EvaluatedTask) -> str:
    return evaluation_page("s3://models/news", {item.task.name: item for item in tasks})


def test_a_page_tells_all_that_is_known_of_a_task() -> None:
    labels = Task("topic", labels=("sport", "film", "money"), metric="f1")
    found = check(page_of(evaluated(labels), evaluated(Task("stars", kind="regression", labels=()))))
    for part in (
        "s3://models/news: 2 tasks, 120 evaluation examples, mean 0.7500",
        "topic: f1 0.7500",
        "Labels",
        "Given label (rows) and predicted label (columns)",
        "Can scores be trusted?",
        "Worst errors",
        "Evaluated on texts that were learned from: 3 of 60",
        "Texts with labels that contradict each other: 3",
        "sport 2, film 2, money 2",
        "Training examples that are likely to be labelled wrongly",
        "stars: pearson_spearman 0.7500",
        "Values",
    ):
        assert part in found.text, part
    assert found.tags["svg"] > 15
    assert found.tags["circle"] > 60


def test_what_is_not_known_is_said_and_nothing_is_nan() -> None:
    one = evaluated(Task("topic", metric="matthews"), same=True)
    other = evaluated(Task("stars", kind="regression", labels=()), same=True)
    unread = replace(evaluated(Task("unread")), repeats=None, not_compared="train.parquet is gone")
    blind = replace(unread, task=Task("blind"), suspects=None, no_suspects="train.parquet is gone")
    text = check(page_of(one, other, unread, blind)).text
    assert "topic: matthews undefined: only one label in the evaluation data" in text
    assert "stars: pearson_spearman undefined: only one value in the evaluation data" in text
    assert "no evaluation example has it" in text
    assert "Not compared with training data: train.parquet is gone" in text
    assert "No search for wrong labels: train.parquet is gone" in text
    assert "mean 0.7500" in text  # of the two that have one
    assert "nan" not in text


@pytest.mark.parametrize("count", [100, 1000])
def test_many_tasks_make_a_page_that_a_browser_can_show(count: int) -> None:
    item = evaluated(Task("topic"), text="A headline of a day " * 20)
    items = {f"topic{number}": replace(item, task=Task(f"topic{number}")) for number in range(count)}
    page = evaluation_page("models/news", items)
    found = check(page)
    assert found.tags["details"] == 100
    assert "open" not in found.attributes
    assert ("Not shown in full: the 900 best tasks" in found.text) == (count == 1000)
    assert len(page) < 4_000_000


def test_of_very_many_tasks_the_worst_come_first() -> None:
    item, items = evaluated(Task("topic")), {}
    for number in range(150):
        metrics = {**item.metrics, "accuracy": number / 150}
        items[f"topic{number}"] = replace(item, task=Task(f"topic{number}"), metrics=metrics)
    few, many = (evaluation_page("models/news", dict([*reversed(items.items())][:count])) for count in (90, 150))
    assert many.index(">topic0<") < many.index(">topic149<")
    assert many.index("topic0: accuracy") < many.index("topic99: accuracy")
    assert "All tasks, the worst first" in many
    assert few.index(">topic149<") < few.index(">topic60<")


def test_forty_labels_are_a_table_by_number_and_more_are_those_most_confused() -> None:
    many = Task("section", labels=tuple(f"section {number}" for number in range(40)))
    text = check(page_of(evaluated(many, count=400))).text
    assert "40 section 39" in text
    assert "that are most confused" not in text
    more = Task("section", labels=tuple(f"section {number}" for number in range(200)))
    assert "the 40 of 200 labels that are most confused" in check(page_of(evaluated(more, count=400))).text


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_what_files_say_is_shown_and_never_taken_for_html(hostile: str) -> None:
    label = hostile.replace("\ud800", "")
    task = Task("pair", labels=(label, "no"), text=("a", "b"))
    item = evaluated(task, text=label)
    repeats = Repeats(1, 1, [RepeatedText(hostile, hostile, {hostile: 1}, {hostile: 2})] * 2, [])
    item = replace(item, repeats=repeats, no_suspects=hostile)
    check(
        evaluation_page(
            hostile, {"pair": item, "other": replace(item, suspects=None, repeats=None, not_compared=hostile)}
        )
    )


def test_a_task_without_any_error_has_a_page() -> None:
    item = evaluated(Task("topic"))
    assert "Worst errors: none" in check(page_of(replace(item, errors=item.errors.slice(0, 0)))).text
    assert isinstance(item.errors, pa.Table)
