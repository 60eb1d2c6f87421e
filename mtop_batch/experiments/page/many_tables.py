"""What the page says of many tasks: tables with a line for each method, and where their order is not the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from mtop_batch.experiments.methods.many import FEWER_TITLES
from mtop_batch.experiments.page.markdown import EMPTY, bold, markdown, spread_text
from mtop_batch.experiments.page.summary import ResultTable, Row, Spread

Published = Mapping[str, Mapping[str, str]]


def quality_of_many(table: ResultTable, published: Published) -> str:
    """A line for each method, for there are too many tasks to have a column each; below it the paper's."""
    several = len(table.tasks) > 1
    head = [
        "method",
        "tasks",
        "steps",
        "seeds",
        *(["mean", "T10", "B10", "worst task", "best task"] if several else ["large"]),
    ]
    rows = []
    for row in table.rows:
        cells = [bold(spread_text(row.mean))]
        if several:
            ends = [f"{of(spread.median for spread in row.tasks.values()):.1f}" for of in (min, max) if row.tasks]
            cells += [*(spread_text(spread) for spread in row.tenths or (None, None)), *(ends or [EMPTY, EMPTY])]
        rows.append([row.title, _num_tasks(row, table), _num_steps(row), str(len(row.runs)), *cells])
        if row.method in published:
            theirs = list(published[row.method].values())
            rows.append(["*in the paper*", "", "", "", *theirs, *([EMPTY] * (len(cells) - len(theirs)))])
    return markdown(head, rows)


def notes_of_many(table: ResultTable, published: Published) -> list[str]:
    """What the columns are, and how methods that the paper has come out here and there."""
    notes = []
    if len(table.tasks) > 1:
        notes.append(
            f"All are tested on the same {len(table.tasks):,} tasks. T10 and B10: the mean over the tenth of these "
            "with the most and with the fewest training examples."
        )
    for column, values in _columns(table).items():
        here = {row.title: spread.median for row, spread in values if row.method in published}
        there = {
            row.title: float(published[row.method][column])
            for row, _ in values
            if column in published.get(row.method, {})
        }
        if len(there) < 2:
            continue
        orders = _order(here), _order(there)
        same = "as in the paper" if orders[0] == orders[1] else f"in the paper {' > '.join(orders[1])}"
        notes.append(f"By {column}: {' > '.join(orders[0])}, {same}.")
    return notes


def fewer_tasks(tables: Sequence[ResultTable], published: Published) -> str:
    """A line for each number of tasks, with a column for each way to train them; below it the paper's."""
    head = ["tasks", "seeds", *FEWER_TITLES]
    rows, notes = [], []
    for table in sorted(tables, key=lambda table: len(table.tasks)):
        by_title = {row.title: row for row in table.rows}
        found = [by_title.get(title) for title in FEWER_TITLES]
        seeds = [str(len(row.runs)) if row else "0" for row in found]
        means = [spread_text(row.mean if row else None) for row in found]
        rows.append([f"{len(table.tasks):,}", seeds[0] if len(set(seeds)) == 1 else ", ".join(seeds), *means])
        theirs = [published.get(row.method, {}).get("mean", EMPTY) if row else EMPTY for row in found]
        rows.append(["*in the paper*", "", *theirs])
        notes += [f"{len(table.tasks):,} tasks. {note}" for note in notes_of_many(table, published) if "By" in note]
    return markdown(head, rows) + "\n" + "".join(f"* {note}\n" for note in notes)


def costs_beside_one(table: ResultTable) -> str:
    """What all tasks cost beside one task of the same kind, on texts as they are and on long ones."""
    tokens = f"{table.setting.max_tokens} tokens, documents/s"
    head = ["method", "texts as they are, documents/s", "times one task", tokens, "times one task"]
    rows = []
    for row in table.rows:
        speed = row.speed
        if speed is None or speed.one_task is None or speed.full is None:
            continue
        full = speed.full
        rows.append(
            [
                row.title,
                f"{speed.documents_per_s:,.0f}",
                f"{speed.one_task:.2f}",
                f"{full['documents_per_s']:,.0f}",
                f"{full['one_task']:.2f}",
            ]
        )
    if not rows:
        return ""
    note = "\n*Times one task*: the time of all tasks beside that of a model of one, measured in turn.\n"
    return "\n" + markdown(head, rows) + note


def _num_tasks(row: Row, table: ResultTable) -> str:
    learned = [(run.spec.learns or {}).get("tasks", len(table.tasks)) for run in row.runs.values()]
    return f"{median(learned):,.0f}" if learned else EMPTY


def _num_steps(row: Row) -> str:
    return f"{median(run.num_steps for run in row.runs.values()):,.0f}" if row.runs else EMPTY


def _columns(table: ResultTable) -> dict[str, list[tuple[Row, Spread]]]:
    """Column -> the methods that have a value there."""
    columns: dict[str, list[tuple[Row, Spread]]] = {"mean": [], "T10": [], "B10": []}
    for row in table.rows:
        values = (row.mean, *(row.tenths or (None, None)))
        for column, spread in zip(columns, values, strict=True):
            if spread is not None:
                columns[column].append((row, spread))
    return columns


def _order(values: Mapping[str, float]) -> list[str]:
    """The best first."""
    return sorted(values, key=lambda title: -values[title])
