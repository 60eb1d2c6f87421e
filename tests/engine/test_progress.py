"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime

from rich.console import Console

from mtop_batch.engine.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    output, clock = io.StringIO(), Clock()
    console, night = Console(file=output, width=200), datetime(2026, 11, 20, 2, 0, 31, tzinfo=UTC)
    with Progress(console, interval_s=30, clock=clock, now=lambda: night) as progress:
        progress.phase("train", total=1000)
        for step in range(0, 400, 10):
            clock.now = step / 5
            progress.update(step, f"loss {1 / (step + 1):.2f}")
        progress.note("a worker was lost [1]")
    assert output.getvalue().splitlines() == [
        "02:00:31Z train ...",
        "02:00:31Z train: 150/1,000 steps, loss 0.01, about 3 min left",
        "02:00:31Z train: 300/1,000 steps, loss 0.00, about 2 min left",
        "02:00:31Z a worker was lost [1]",
        "02:00:31Z train: 390/1,000 steps, loss 0.00, about 2 min left, took 1 min",
    ]


def test_work_of_an_earlier_run_does_not_count_as_speed() -> None:
    output, clock = io.StringIO(), Clock()
    with Progress(Console(file=output, width=200), interval_s=30, clock=clock) as progress:
        progress.phase("train", total=1000, completed=900)
        clock.now = 30
        progress.advance(50)
        clock.now = 60
        progress.advance(50)
    assert "train: 950/1,000 steps, about 30 s left" in output.getvalue()
    assert "train: 1,000/1,000 steps, took 1 min" in output.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    with Progress(Console(file=output, force_terminal=True, width=120)) as progress:
        progress.phase("read", total=2, unit="tasks")
        progress.advance(2)
        progress.phase("train", total=None)
        progress.advance(7, "loss 0.5")
    assert "2/2 tasks" in output.getvalue()
    assert re.search(r"7 steps +loss 0\.5", output.getvalue())


def test_progress_without_a_phase_is_no_error() -> None:
    Progress(Console(file=io.StringIO())).advance()
