"""What the tables of the `mtop` command show."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from mtop_batch.cli.tables import metric_table, print_label_reports, print_predictions, print_stats
from mtop_batch.table.stats import LabelSetStats, TableStats, TaskStats
from mtop_batch.tasks import Task
from mtop_batch.training.label_report import LabelReport, LabelScores


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
    print_label_reports({"tags": LabelReport(scores, [], "")})
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["tags", "a", "0.500", "1.000", "0.667", "4"] in rows
    assert ["b", "1.000", "0.500", "0.667", "2"] in rows


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
