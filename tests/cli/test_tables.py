"""What the tables of the `mtop` command show."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from mtop_batch.cli.tables import (
    metric_table,
    print_doubts,
    print_label_reports,
    print_metrics,
    print_predictions,
    print_stats,
)
from mtop_batch.data.repeats import RepeatedText, Repeats
from mtop_batch.table.stats import LabelSetStats, TableStats, TaskStats
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.evaluated import EvaluatedTask
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS, LabelReport, LabelScores


def test_many_labels_are_shown_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"{section} {kind}" for section in ("business", "entertainment", "[politics]") for kind in "abcdefg"]
    task = TaskStats("classification", current=21, label_counts=Counter(names))
    task.made_by["models/news-2026-11", "0123456789abcdef"] = 21
    print_stats(TableStats("labels", 1, 1, {"section": task}, {}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 article of 1 source file in labels"
    assert max(map(len, lines)) <= 80
    for name in names:
        assert any(f"{name} 4.8%" in line for line in lines), name


def test_the_table_has_each_tasks_own_metric_and_the_mean() -> None:
    tasks = [Task("topic"), Task("stars", kind="regression", labels=())]
    metrics = {
        "topic": {"accuracy": 0.75, "loss": 0.5, "num_examples": 1200},
        "stars": {"pearson_spearman": 0.25, "loss": 1.0, "num_examples": 10, "rmse": 1234.5, "mae": 0.25},
    }
    output = io.StringIO()
    Console(file=output, width=80).print(metric_table(metrics, tasks))
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    assert ["topic", "accuracy", "0.7500", "1,200"] in rows
    assert ["stars", "pearson_spearman", "0.2500", "10", "1,234", "0.25"] in rows
    assert ["mean", "0.5000"] in rows


def test_several_labels_are_shown_with_their_scores(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "tags_label": ["film", "sport"], "tags_score": [0.9, 0.5], "error": None},
        {"text": "b", "tags_label": [], "tags_score": [], "error": None},
        {"text": "c", "t_label": "yes", "t_score": 0.75, "t_scores": {"no": 0.25, "yes": 0.75}, "error": None},
        {"text": "d", "t_label": ["x"], "t_score": [0.6], "t_scores": {"y": 0.1, "x": 0.6}, "error": None},
    ]
    print_predictions(rows)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    for expected in (["tags", "film", "0.900"], ["tags", "sport", "0.500"], ["tags", "-"]):
        assert expected in lines
    assert lines.index(["t", "yes", "*", "0.750"]) < lines.index(["t", "no", "0.250"])
    assert lines.index(["t", "x", "*", "0.600"]) < lines.index(["t", "y", "0.100"])


def test_articles_without_any_of_the_labels_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    task = TaskStats("multi-label", current=10, label_counts=Counter(a=8, b=5), without_label=1, num_scores=13)
    print_stats(TableStats("labels", 10, 1, {"tags": task}, {}))
    output = capsys.readouterr().out
    assert "a 80.0%, b 50.0%, none of them 10.0%" in output


def test_a_label_report_of_several_labels_has_no_confusions(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [LabelScores("a", 0.5, 1.0, 2 / 3, 4), LabelScores("b", 1.0, 0.5, 2 / 3, 2)]
    print_label_reports({"tags": LabelReport(scores, [], [], None, "")}, {"tags": 0.5})
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["tags", "a", "0.500", "1.000", "0.667", "4"] in rows
    assert ["b", "1.000", "0.500", "0.667", "2"] in rows


def test_an_undefined_metric_says_why_and_is_no_part_of_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task("topic", metric="f1"), Task("mood"), Task("stars", kind="regression", labels=())]
    undefined = {"topic": "only one label in the evaluation data", "stars": "only one value in the evaluation data"}
    metrics = {
        "topic": {"f1": math.nan, "num_examples": 9},
        "mood": {"accuracy": 0.75, "num_examples": 9},
        "stars": {"pearson_spearman": math.nan, "num_examples": 9, "rmse": 1.0, "mae": 1.0},
    }
    print_metrics(metrics, tasks, {**undefined, "mood": ""}, "elsewhere")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.replace("│", " ").split() for line in lines]
    assert ["topic", "f1", "undefined", "9"] in rows
    assert ["mean", "of", "1", "task", "0.7500"] in rows
    assert lines[-2:] == [
        "topic: f1 is undefined: only one label in the evaluation data",
        "stars: pearson_spearman is undefined: only one value in the evaluation data",
    ]
    assert not any("nan" in line for line in lines)


def test_scores_of_labels_that_nobody_has_are_a_dash_and_labels_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    scores = [LabelScores("[/red]", 0.5, math.nan, math.nan, 0, "no evaluation example has it")]
    print_label_reports(
        {"topic": LabelReport(scores, [[0]], [], 0.0, "", "the same is predicted of all examples")}, {"topic": 0.5}
    )
    output = capsys.readouterr().out
    assert ["topic", "[/red]", "0.500", "-", "-", "0"] in [
        line.replace("│", " ").split() for line in output.splitlines()
    ]
    assert "topic: the same is predicted of all examples" in output


def test_doubts_of_the_data_are_a_line_each_with_texts_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = RepeatedText("[red]a\ngoal", None, {"no": 1, "yes": 1}, {"yes": 2})
    report = LabelReport([], [], [], None, "")
    found = EvaluatedTask(Task("topic"), {"num_examples": 12}, report, ERROR_COLUMNS.empty_table())
    print_doubts(
        {
            "topic": replace(found, repeats=Repeats(9, 2, [text], [text])),
            "mood": replace(
                found, not_compared="s3://x/train does not exist", no_suspects="s3://x/train does not exist"
            ),
            "score": replace(found, no_suspects="a regression has no labels"),
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "topic: 2 of 12 evaluation examples have texts that it was trained on: [red]a goal",
        "topic: 1 text with labels that contradict each other: [red]a goal",
        "mood: not compared with its training data: s3://x/train does not exist",
        "score: no search for wrong labels: a regression has no labels",
    ]


def test_names_from_files_are_no_markup_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[red]x[/red]\x1b[2J" + "y" * 99_000
    task = TaskStats(
        "classification", current=1, label_counts=Counter({hostile: 1}), made_by=Counter({(hostile, "f"): 1})
    )
    print_stats(TableStats(hostile, 1, 1, {hostile: task}, {hostile: LabelSetStats((hostile,), 1, 1, 1)}))
    print_predictions([{"text": hostile, f"{hostile}_label": hostile, f"{hostile}_score": 0.5, "error": None}])
    output = capsys.readouterr().out
    assert "[red]x" in output
    assert "\x1b[2J" not in output
    assert len(output) < 30_000


def test_of_a_thousand_tasks_tables_have_the_best_and_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [Task(f"task_{number:03}") for number in range(1000)]
    names = [task.name for task in tasks]
    metrics = {name: {"accuracy": number / 1000, "num_examples": 1} for number, name in enumerate(names)}
    metrics["task_500"]["accuracy"] = math.nan
    undefined = dict.fromkeys(names[100:300], "only one label")
    print_metrics(metrics, tasks, undefined, "metrics.json in models/many")
    output = capsys.readouterr().out
    assert [line.split()[1] for line in output.splitlines() if "│ task_" in line] == [
        *(f"task_{number}" for number in range(999, 989, -1)),
        *(f"task_00{number}" for number in range(8, -1, -1)),
        "task_500",
    ]
    assert "... 980 more" in output
    assert "all 1,000 tasks: metrics.json in models/many" in output
    assert "... and 160 more lines like these" in output
    assert output.count("is undefined") == 40


def test_of_a_thousand_tasks_a_text_and_a_table_show_those_at_the_ends(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"task_{number:03}" for number in range(1000)]
    row: dict[str, Any] = {"text": "a", "error": None}
    for number, name in enumerate(names):
        row |= {f"{name}_label": "yes", f"{name}_score": number / 1000, f"{name}_scores": {"yes": 0.5, "no": 0.5}}
    print_predictions([row])
    output = capsys.readouterr().out
    assert "task_999" in output
    assert "task_000" in output
    assert "task_500" not in output
    assert len(output.splitlines()) < 40
    stats = {name: TaskStats("classification", current=number, missing=9) for number, name in enumerate(names)}
    print_stats(TableStats("labels", 1, 1, stats, {}))
    output = capsys.readouterr().out
    assert "task_999" in output
    assert "task_000" in output
    assert "task_500" not in output
    assert output.count("... 980 more") == 2
    scores = [LabelScores("yes", 0.5, 0.5, 0.5, 3, "")]
    reports = {name: LabelReport(scores, [], [], None, "") for name in names}
    print_label_reports(reports, {name: float(number) for number, name in enumerate(names)})
    assert len([line for line in capsys.readouterr().out.splitlines() if "task_00" in line]) == 10


@pytest.mark.parametrize(("count", "lines"), [(1000, 10 * 6), (2, 2 * 150)])
def test_of_many_tasks_the_labels_that_are_most_missed_are_shown(
    count: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [LabelScores(f"label_{number:03}", 0.5, (number % 10) / 10, 0.5, 7, "") for number in range(150)]
    report = LabelReport(scores, [], [], None, "")
    names = [f"task_{number:03}" for number in range(count)]
    print_label_reports(dict.fromkeys(names, report), {name: float(number) for number, name in enumerate(names)})
    output = capsys.readouterr().out
    assert len(output.splitlines()) == lines + 4
    assert ("... 145 more" in output) == (count == 1000)
    assert "label_010" in output  # of recall 0
    assert ("label_011" in output) == (count == 2)
