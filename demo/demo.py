"""`make demo`: real news from labelled examples to a queryable label table, in one go.

Builds five yes/no tasks and an unlabelled corpus (`news.py`), trains one model on all tasks, labels the corpus with
it, and compares the labels with the known categories. What is already there is not done again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import news
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Column, Table

from mtop_batch import read_labels

DEMO = Path("demo")
CONFIG, MODEL, CORPUS, LABELS = DEMO / "demo.toml", DEMO / "model", DEMO / "corpus", DEMO / "labels"
QUERY = (
    "SELECT c.title, l.tech_score FROM 'demo/labels/*/*.parquet' l JOIN 'demo/corpus/*.parquet' c USING (id) "
    "WHERE l.tech_label = 'yes' AND l.business_label = 'yes' ORDER BY l.tech_score DESC LIMIT 5"
)
NUM_SHOWN = 5

console = Console(highlight=False)


def main() -> None:
    """Run all steps from the project's directory."""
    if not CONFIG.exists():
        raise SystemExit("run this from the project's directory: make demo")
    started = time.monotonic()
    if not (DEMO / "train" / "tasks.toml").exists():
        news.build(DEMO)
    if (MODEL / "config.json").exists():
        console.print(f"[bold]1. Train[/bold]: {MODEL} is there already; remove it to train again")
    else:
        console.print("[bold]1. Train[/bold] five tasks as one model")
        _mtop("train", "--config", str(CONFIG))
    console.print("\n[bold]2. Label[/bold] the corpus: every article, all tasks, one forward pass")
    _mtop("label", "--model", str(MODEL), "--corpus", str(CORPUS), "--labels", str(LABELS))
    _show_results()
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")


def _mtop(*arguments: str) -> None:
    console.print(f"$ mtop {' '.join(arguments)}", style="cyan")
    completed = subprocess.run([sys.executable, "-m", "mtop_batch.cli", *arguments], check=False)
    if completed.returncode:
        raise SystemExit(completed.returncode)


def _show_results() -> None:
    corpus = ds.dataset(CORPUS).to_table()
    labels = read_labels(str(LABELS))
    articles = {row["id"]: row for row in corpus.to_pylist()}
    rows = [{**articles[row["id"]], **row} for row in labels.to_pylist()]
    topics = sorted({row["category"] for row in rows})

    console.print("\n[bold]3. Accuracy[/bold] of each task on the corpus, against the known categories")
    console.print(_accuracy_table(rows, topics))
    console.print(f"\n[bold]4. A few articles[/bold] with all their labels (of {len(rows):,})")
    console.print(_article_table(rows[:NUM_SHOWN], topics))
    console.print("\n[bold]5. Yours to query[/bold]")
    for what, where in {"corpus": CORPUS, "model": MODEL, "labels": LABELS}.items():
        console.print(f"   {what:7} {where}")
    console.print(f'\nTry: duckdb -c "{QUERY}"\n', soft_wrap=True)
    _print_rows(duckdb.connect().execute(QUERY))


def _accuracy_table(rows: list[dict[str, Any]], topics: list[str]) -> Table:
    table = Table("task", "accuracy", "articles labelled yes", "articles of the category")
    accuracies = []
    for topic in topics:
        truth = [row["category"] == topic for row in rows]
        predicted = [row[f"{topic}_label"] == "yes" for row in rows]
        accuracies.append(sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(rows))
        table.add_row(topic, f"{accuracies[-1]:.3f}", f"{sum(predicted):,}", f"{sum(truth):,}")
    table.add_section()
    table.add_row("mean", f"{sum(accuracies) / len(accuracies):.3f}", "", "", style="bold")
    return table


def _article_table(rows: list[dict[str, Any]], topics: list[str]) -> Table:
    """One line per article: a task's label and its probability."""
    table = Table(Column("title", max_width=28, no_wrap=True), "category", *(topic[:8] for topic in topics))
    for row in rows:
        scores = [(row[f"{topic}_label"], row[f"{topic}_score"]) for topic in topics]
        cells = [f"[green]yes[/green] {score:.0%}" if label == "yes" else f"no {score:.0%}" for label, score in scores]
        table.add_row(row["title"], row["category"], *cells)
    return table


def _print_rows(result: duckdb.DuckDBPyConnection) -> None:
    table = Table(*(column[0] for column in result.description or ()))
    for row in result.fetchall():
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)


if __name__ == "__main__":
    main()
