"""What the tables of the `mtop` command show."""

from __future__ import annotations

import io

from rich.console import Console

from mtop_batch.cli.tables import metric_table
from mtop_batch.tasks import Task


def test_the_table_has_each_tasks_own_metric_and_the_mean() -> None:
    tasks = [Task("topic"), Task("stars", kind="regression", labels=())]
    metrics = {
        "topic": {"accuracy": 0.75, "loss": 0.5, "num_examples": 1200},
        "stars": {"pearson_spearman": 0.25, "loss": 1.0, "num_examples": 10},
    }
    output = io.StringIO()
    Console(file=output, width=80).print(metric_table(metrics, tasks))
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    assert ["topic", "accuracy", "0.7500", "1,200"] in rows
    assert ["stars", "pearson_spearman", "0.2500", "10"] in rows
    assert ["mean", "0.5000"] in rows
