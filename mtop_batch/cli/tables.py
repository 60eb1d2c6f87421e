"""The tables that the `mtop` command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mtop_batch.table.stats import TableStats
from mtop_batch.tasks import Task


def print_metrics(metrics: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> None:
    """A table of each task's metrics."""
    Console().print(metric_table(metrics, tasks))


def print_predictions(rows: list[dict[str, Any]]) -> None:
    """A table of all tasks' labels for each text."""
    console = Console()
    for row in rows:
        table = Table("task", "label", "score", title=row["text"][:100], title_justify="left", title_style="bold")
        if row["error"]:
            table.add_row("-", f"[red]{row['error']}[/red]", "")
        else:
            for name in (key.removesuffix("_score") for key in row if key.endswith("_score")):
                table.add_row(name, row.get(f"{name}_label") or "", f"{row[f'{name}_score']:.3f}")
        console.print(table)


def print_stats(stats: TableStats) -> None:
    """What a label table holds: one table by task, one by label set."""
    console = Console(highlight=False)
    console.print(f"{stats.articles:,} articles of {stats.source_files:,} source files in {stats.labels}")
    table = Table()
    for column in ("task", "labels", "bundle: fingerprint"):
        table.add_column(column, overflow="fold")  # names are there whole, however narrow the terminal
    for column in ("current", "older", "errors", "missing"):
        table.add_column(column, justify="right")
    for name, task in stats.tasks.items():
        shares = [f"{label} {share:.1%}" for label, share in task.shares.items()]
        if not shares and task.labelled:
            shares = [f"mean {task.score_sum / task.labelled:.3f}"]
        made_by = "\n".join(f"{bundle}: {fingerprint[:8]}" for bundle, fingerprint in task.made_by)
        counts = [f"{count:,}" for count in (task.older, task.errors, task.missing)]
        table.add_row(name, ", ".join(shares), made_by, f"{task.current:,} ({task.coverage:.1%})", *counts)
    console.print(table)
    table = Table()
    for column in ("label set", "tasks"):
        table.add_column(column, overflow="fold")
    for column in ("files", "rows", "MB"):
        table.add_column(column, justify="right")
    for name, label_set in stats.label_sets.items():
        size = f"{label_set.num_bytes / 1e6:,.1f}"
        table.add_row(name, ", ".join(label_set.tasks), f"{label_set.files:,}", f"{label_set.rows:,}", size)
    console.print(table)


def metric_table(metrics: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> Table:
    """A table of each task's own metric on its evaluation data, and their mean.

    Args:
        metrics: Task name -> metric -> value, with "num_examples".
        tasks: The rows, in order.
    """
    table = Table("task", "metric")
    table.add_column("value", justify="right")
    table.add_column("examples", justify="right")
    values = [metrics[task.name][str(task.metric)] for task in tasks]
    for task, value in zip(tasks, values, strict=True):
        examples = metrics[task.name].get("num_examples", 0)
        table.add_row(task.name, str(task.metric), f"{value:.4f}", f"{examples:,.0f}")
    table.add_section()
    table.add_row("mean", "", f"{sum(values) / len(values):.4f}", "", style="bold")
    return table
