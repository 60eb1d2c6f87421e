"""What the tables of the `mtop` command show."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from mtop_batch.cli.tables import metric_table, print_predictions, print_stats
from mtop_batch.table.stats import LabelSetStats, TableStats, TaskStats
from mtop_batch.tasks import Task


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
