"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from mtop_batch.experiments.page.summary import Spread
from mtop_batch.tasks import Task

EMPTY = "–"


def spread_text(spread: Spread | None) -> str:
    """The median, and the lowest and highest seed if they differ."""
    if spread is None:
        return EMPTY
    if spread.low == spread.high:
        return f"{spread.median:.1f}"
    return f"{spread.median:.1f} ({spread.low:.1f}, {spread.high:.1f})"


def bold(text: str) -> str:
    """What matters most in a row; an empty cell stays as it is."""
    return text if text == EMPTY else f"**{text}**"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def judged_by(task: Task) -> str:
    """A task, with its metric if that is not the usual one."""
    return task.name if task.metric == "accuracy" else f"{task.name} ({task.metric})"
