"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime

import pytest
from rich.console import Console

from mtop_batch.engine.monitoring.progress import Progress


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
        assert "loss 0.5" in drawn(progress)
    assert "2/2 tasks" in output.getvalue()
    assert "7 steps" in output.getvalue()


def drawn(progress: Progress) -> str:
    """What the bar draws now."""
    bar, output = progress._bar, io.StringIO()
    assert bar is not None
    Console(file=output, width=bar.console.width, force_terminal=True, color_system=None).print(bar.get_renderable())
    return output.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_shows_bar_amount_and_time_left_whole(width: int) -> None:
    with Progress(Console(file=io.StringIO(), force_terminal=True, width=width)) as progress:
        progress.phase("learn the new tasks", total=12_000)
        progress.update(3_000, "epoch 12.34, technology: loss 0.123, 12,345 examples/s, last mean 0.9012")
        line, details = drawn(progress).splitlines()
    assert len(line.rstrip()) <= width
    assert re.search(r"━{2,}.* 3,000/12,000 steps -:--:--", line)
    assert details.startswith("  epoch 12.34, technology: loss 0.123")
    assert "…" in details or details.endswith("0.9012")


def test_a_phase_of_unknown_length_is_full_when_it_is_over() -> None:
    with Progress(Console(file=io.StringIO(), force_terminal=True, width=80)) as progress:
        progress.phase("start the training workers")
        progress.phase("train", total=10)
        assert progress._bar is not None
        over, running = progress._bar.tasks
        assert over.finished
        assert not running.finished


def test_progress_without_a_phase_is_no_error() -> None:
    Progress(Console(file=io.StringIO())).advance()
