"""The progress of a job, for people: a live bar on a terminal, a plain line now and then in a log, a table at the end.

Progress goes to stderr, so that stdout holds results only. Lines in a log begin with the time (UTC).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from mtop_batch.lines import for_people

_WIDEST_BAR = 120


class Progress:
    """Shows the phases of a job, one after the other; use it as a context manager, from one thread.

        with Progress() as progress:
            progress.phase("label", total=20, unit="units")
            progress.advance(1, "1,250 docs/s")
            progress.note("2 source files cannot be read")

    Args:
        console: Where to; stderr by default. Whether it is a terminal decides between bar and lines.
        interval_s: Seconds between two lines where it is no terminal.
        clock: Seconds that pass; tests give their own.
        now: The time of day; tests give their own.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        interval_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._console = console or Console(stderr=True)
        self._interval_s = interval_s
        self._clock = clock
        self._now = now
        self._bar = _Bar(self._console) if self._console.is_terminal else None
        self._phase: _Phase | None = None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish_phase()
        if self._bar is not None:
            self._bar.stop()

    def phase(self, name: str, total: float | None = None, unit: str = "steps", completed: float = 0) -> None:
        """Begin a phase; the one before it is over.

        Args:
            name: What is done, such as "train".
            total: Units of work; None if nobody knows yet.
            unit: What they are called.
            completed: Units that an earlier run did.
        """
        self._finish_phase()
        self._phase = _Phase(name, total, unit, completed, self._clock())
        if self._bar is None:
            self._line(f"{name} ...")
        else:
            self._bar.add_task(name, total=total, completed=int(completed), amount="", details="")

    def advance(self, amount: float = 1, details: str = "") -> None:
        """`amount` more units are done; `details` is a short text to show beside the bar."""
        if self._phase is not None:
            self.update(self._phase.completed + amount, details)

    def update(self, completed: float, details: str = "") -> None:
        """`completed` units of the phase are done in all; it may go back when work is done again."""
        phase = self._phase
        if phase is None:
            return
        phase.completed = completed
        phase.details = details or phase.details
        if self._bar is not None:
            task_id = self._bar.task_ids[-1]
            self._bar.update(task_id, completed=completed, amount=phase.amount(), details=phase.details)
        elif self._clock() - phase.shown_at >= self._interval_s:
            phase.shown_at = self._clock()
            self._line(phase.line(self._clock()))

    def note(self, text: str) -> None:
        """One line for the reader, above the bar."""
        self._line(text)

    def _finish_phase(self) -> None:
        phase, self._phase = self._phase, None
        if phase is None:
            return
        if self._bar is not None:
            task_id = self._bar.task_ids[-1]
            if phase.total is None:  # else the bar would look as if something were going on
                self._bar.update(task_id, total=1, completed=1)
            self._bar.update(task_id, details="")
            self._bar.stop_task(task_id)
        else:
            self._line(f"{phase.line(self._clock())}, took {_duration(self._clock() - phase.started_at)}")

    def _line(self, text: str) -> None:
        at = "" if self._bar is not None else f"{self._now():%H:%M:%SZ} "
        self._console.print(at + for_people(text), markup=False, highlight=False, soft_wrap=True)


class _Phase:
    """One phase: what was done of what, since when."""

    def __init__(self, name: str, total: float | None, unit: str, completed: float, now: float) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.started_at = self.shown_at = now
        self.completed = self.completed_before = completed
        self.details = ""

    def amount(self) -> str:
        if self.total is None and not self.completed:
            return ""
        total = "" if self.total is None else f"/{self.total:,.0f}"
        return f"{self.completed:,.0f}{total} {self.unit}"

    def line(self, now: float) -> str:
        parts = [f"{self.name}: {self.amount()}" if self.amount() else self.name]
        parts += [self.details] if self.details else []
        done = self.completed - self.completed_before
        if self.total is not None and done > 0 and self.completed < self.total:
            left_s = (now - self.started_at) / done * (self.total - self.completed)
            parts.append(f"about {_duration(left_s)} left")
        return ", ".join(parts)


class _Bar(Bar):
    """A line with a bar for each phase, and the details of the running one below them, as far as they fit."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=30)),
            BarColumn(bar_width=None, table_column=Column(min_width=8, max_width=40, ratio=1)),
            TextColumn("{task.fields[amount]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
            console=console,
            expand=console.width < _WIDEST_BAR,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn."""
        yield from super().get_renderables()
        if self.tasks and (details := self.tasks[-1].fields["details"]):
            yield Text(f"  {details}", no_wrap=True, overflow="ellipsis")


def _duration(seconds: float) -> str:
    """
    >>> _duration(42), _duration(3900)
    ('42 s', '1 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
