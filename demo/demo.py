"""`make demo`: real news from labelled examples to a queryable label table, in one go.

Builds five yes/no tasks, a multi-label one and an unlabelled corpus (`news.py`). Trains one model on four of the tasks,
labels the corpus with it, then adds the other two and labels the corpus again, which computes the new labels only.
Changes a threshold of the fifth, which takes no forward pass, and goes back. Compares all labels with what is known of
the articles. What is already there is not done again.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import news
import pyarrow.dataset as ds
from rich import box
from rich.console import Console
from rich.table import Column, Table

from mtop_batch import read_labels

DEMO = Path("demo")
CONFIG, LATER_CONFIG = DEMO / "demo.toml", DEMO / "train" / "later.toml"
FIRST_MODEL, MODEL, CORPUS, LABELS = DEMO / "four-topics", DEMO / "model", DEMO / "corpus", DEMO / "labels"
STRICT_CONFIG, STRICT_MODEL, STRICT = DEMO / "train" / "strict.toml", DEMO / "model-strict", 0.9
QUERY = " ".join(
    (
        "SELECT title, tech_score FROM 'demo/labels/current/**/*.parquet'",
        "JOIN 'demo/corpus/*.parquet' USING (id)",
        "WHERE tech_label = 'yes' AND business_label = 'yes' ORDER BY tech_score DESC LIMIT 5",
    )
)
NUM_SHOWN = 5

console = Console(highlight=False)


def main() -> None:
    """Run all steps from the project's directory."""
    if not CONFIG.exists():
        raise SystemExit("run this from the project's directory: make demo")
    started = time.monotonic()
    if not LATER_CONFIG.exists():
        news.build(DEMO)
    _train_and_label()
    _add_task_and_label()
    _change_a_threshold()
    _show_results()
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")


def _train_and_label() -> None:
    if _is_bundle(MODEL):
        console.print(f"[bold]1.-3.[/bold] {MODEL} is there already; remove {MODEL} and {FIRST_MODEL} to train again")
        return
    if _is_bundle(FIRST_MODEL):
        console.print(f"[bold]1. Train[/bold]: {FIRST_MODEL} is there already; remove it to train again")
    else:
        console.print("[bold]1. Train[/bold] four tasks as one model")
        _mtop("train", "--config", str(CONFIG))
    console.print("\n[bold]2. Label[/bold] the corpus: every article, all tasks, one forward pass")
    _label(FIRST_MODEL)


def _add_task_and_label() -> None:
    if not _is_bundle(MODEL):
        names = f"{news.LATER_TOPIC} and {news.PLACES_TASK}"
        console.print(f"\n[bold]3. Add two tasks[/bold], {names}: the other four stay what they are")
        model, config, output = str(FIRST_MODEL), str(LATER_CONFIG), str(MODEL)
        _mtop("add-tasks", "--model", model, "--config", config, "--output", output)
    console.print("\n[bold]4. Label[/bold] again: only what is missing is computed")
    before = _label_files()
    _label(MODEL)
    after = _label_files()
    unchanged = sum(after.get(path) == digest for path, digest in before.items())
    console.print(f"{unchanged} of the {len(before)} label files from before are there, byte for byte")


def _change_a_threshold() -> None:
    """And go back, so that the table is that of the bundle before."""
    console.print(f"\n[bold]5. Change a threshold[/bold]: {news.LATER_TOPIC} from {STRICT} on, from stored scores")
    STRICT_CONFIG.write_text(f"{news.topic_table(DEMO, news.LATER_TOPIC)}decide = {{ threshold = {STRICT} }}\n")
    started = time.monotonic()
    model, config, output = str(MODEL), str(STRICT_CONFIG), str(STRICT_MODEL)
    _mtop("calibrate", "--model", model, "--config", config, "--output", output, "--overwrite")
    before = _num_labelled(news.LATER_TOPIC)
    _label(STRICT_MODEL)
    seconds, after = time.monotonic() - started, _num_labelled(news.LATER_TOPIC)
    console.print(f"{before:,} articles were {news.LATER_TOPIC}, {after:,} are now; both commands took {seconds:.0f} s")
    console.print("and back, without computing anything:")
    _mtop("publish", "--labels", str(LABELS), "--model", str(MODEL))


def _num_labelled(topic: str) -> int:
    return sum(label == "yes" for label in read_labels(str(LABELS))[f"{topic}_label"].to_pylist())


def _is_bundle(directory: Path) -> bool:
    return (directory / "config.json").exists()


def _label(model: Path) -> None:
    _mtop("label", "--model", str(model), "--corpus", str(CORPUS), "--labels", str(LABELS))


def _label_files() -> dict[Path, str]:
    """A hash of every label file."""
    paths = list(LABELS.glob("_store/**/*.parquet"))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def query_command() -> str:
    """The query as a command for a shell; DuckDB's own program need not be there."""
    return f"{_program('python')} -c \"import duckdb; duckdb.sql('''{QUERY}''').show()\""


def _program(name: str) -> str:
    """A program of this environment as it is called from here, whether the environment is activated or not."""
    path = Path(sys.executable).parent / name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _mtop(*arguments: str) -> None:
    console.print(f"$ {shlex.join([_program('mtop'), *arguments])}", style="cyan", soft_wrap=True)
    completed = subprocess.run([sys.executable, "-m", "mtop_batch.cli", *arguments], check=False)
    if completed.returncode:
        raise SystemExit(completed.returncode)


def _show_results() -> None:
    corpus = ds.dataset(CORPUS).to_table()
    labels = read_labels(str(LABELS))
    articles = {row["id"]: row for row in corpus.to_pylist()}
    rows = [{**articles[row["id"]], **row} for row in labels.to_pylist()]
    topics = sorted({row["category"] for row in rows})

    console.print("\n[bold]6. Accuracy[/bold] of each task on the corpus, against the known categories")
    console.print(_accuracy_table(rows, topics))
    console.print(f"\n[bold]7. A few articles[/bold] with all their labels (of {len(rows):,})")
    console.print(_article_table(rows[:NUM_SHOWN], topics))
    console.print(_places_table(rows[:NUM_SHOWN]))
    console.print("\n[bold]8. Yours to query[/bold]")
    for what, where in {"corpus": CORPUS, "model": MODEL, "labels": LABELS}.items():
        console.print(f"   {what:7} {where}")
    console.print(f"\nTry:\n\n{query_command()}\n", soft_wrap=True, markup=False)
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
    table.caption = f"{news.PLACES_TASK}: a micro F1 of {_micro_f1(rows):.3f}"
    return table


def _micro_f1(rows: list[dict[str, Any]]) -> float:
    """Of the places that are said, against those that the articles name."""
    said = {(row["id"], place) for row in rows for place in row[f"{news.PLACES_TASK}_label"]}
    named = {(row["id"], place) for row in rows for place in news.places_of(row)}
    return 2 * len(said & named) / max(1, len(said) + len(named))


def _places_table(rows: list[dict[str, Any]]) -> Table:
    """One line per article: any number of labels, each with its probability."""
    columns = Column("title", max_width=20, no_wrap=True), Column("places"), Column("named in the first words")
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        pairs = zip(row[f"{news.PLACES_TASK}_label"], row[f"{news.PLACES_TASK}_score"], strict=True)
        said = ", ".join(f"{place} {score:.0%}" for place, score in pairs)
        table.add_row(row["title"], said, ", ".join(news.places_of(row)))
    return table


def _article_table(rows: list[dict[str, Any]], topics: list[str]) -> Table:
    """One line per article: the label of each task and how sure it is."""
    columns = [
        Column("title", max_width=20, no_wrap=True),
        *(Column(topic, min_width=9, no_wrap=True) for topic in topics),
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption = "! the known category says otherwise"
    for row in rows:
        cells = []
        for topic in topics:
            label = row[f"{topic}_label"]
            style = "bold green" if label == "yes" else "dim"
            wrong = (label == "yes") != (row["category"] == topic)
            cells.append(f"[{style}]{label:3} {row[f'{topic}_score']:4.0%}[/]{'[red]![/]' if wrong else ' '}")
        table.add_row(row["title"], *cells)
    return table


def _print_rows(result: duckdb.DuckDBPyConnection) -> None:
    table = Table(*(column[0] for column in result.description or ()))
    for row in result.fetchall():
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    console.print(table)


if __name__ == "__main__":
    main()
