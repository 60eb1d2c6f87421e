"""What a labelling run logs while it goes on, for whoever reads the log in the morning."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.monitoring.metrics import RunMetrics
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.labelling.report.run_report import RunReport
from mtop_batch.labelling.run.stages import UnitResult
from mtop_batch.storage.retry import ACTOR_STARTED, ANSWERED, GAVE_UP, TRIED_ALONE, WAITING

_POLL_S = 1.0
# Storage that fails again and again is logged once a minute.
_BETWEEN_OUTAGES_S = 60.0


class LabelMonitor:
    """Logs results of units and events of workers; an outage is logged once, however many units it holds up.

    Args:
        progress: Where the lines go; nobody else may use it while a queue is followed.
        report: Adds up the results.
        num_actors: How many labelling actors there are to be; whoever starts beyond that replaces one.
        metrics: Told what the log tells.
        clock: Seconds that pass; tests give their own.
    """

    def __init__(
        self,
        progress: Progress,
        report: RunReport,
        num_actors: int,
        clock: Callable[[], float] = time.monotonic,
        metrics: RunMetrics | None = None,
    ) -> None:
        self._progress = progress
        self._report = report
        self._actors_to_come = num_actors
        self._clock = clock
        self._metrics = metrics
        self._outage = _Outage()
        self._logged_at = -_BETWEEN_OUTAGES_S
        self._lock = threading.Lock()

    @contextmanager
    def following(self, queue: EventQueue) -> Iterator[None]:
        """Take in the workers' events while the block runs, and show now and then that the run is alive."""
        ended = threading.Event()

        def follow() -> None:
            while not ended.wait(_POLL_S):
                self._follow(queue)

        thread = threading.Thread(target=follow, name="label monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._follow(queue)

    def unit_done(self, result: UnitResult) -> None:
        """Count a unit, and log what is remarkable about it."""
        with self._lock:
            is_straggler = self._report.add(result)
            if self._metrics is not None:
                self._metrics.unit_done(result)
            if result.unreadable:
                self._progress.note(f"cannot read {result.unit}: {result.unreadable}")
            if is_straggler:
                self._log_straggler(result)
            self._end_waiting(result.unit, 0.0)
            self._advance(result.rows)

    def record(self, event: Event) -> None:
        """Handle one event."""
        with self._lock:
            if event["event"] == ACTOR_STARTED:
                self._report.actor_started()
                self._actors_to_come -= 1
                if self._actors_to_come < 0:
                    self._progress.note("a labelling actor was lost; another one took its place")
                    if self._metrics is not None:
                        self._metrics.actor_lost()
            elif event["event"] == TRIED_ALONE:
                self._progress.note(
                    f"the processes that worked on these were killed twice, so each is tried alone: "
                    f"{', '.join(event['units'])}"
                )
            elif event["event"] == WAITING:
                self._begin_waiting(event["unit"], event["reason"])
            elif event["event"] == ANSWERED:
                self._end_waiting(event["unit"], event["waited_s"])
            elif event["event"] == GAVE_UP:
                self._progress.note(
                    f"gave up {event['unit']}: no answer from storage for {event['waited_s']:.0f} s: {event['reason']}"
                )

    def _follow(self, queue: EventQueue) -> None:
        for event in queue.take():
            self.record(event)
        with self._lock:
            self._advance(0)

    def _begin_waiting(self, unit: str, reason: str) -> None:
        if not self._outage.waiting:
            self._outage = _Outage(is_logged=self._clock() - self._logged_at >= _BETWEEN_OUTAGES_S)
            if self._outage.is_logged:
                self._logged_at = self._clock()
                self._progress.note(f"storage fails, will be tried again: {unit}: {reason}")
        self._outage.waiting.add(unit)
        self._outage.held_up.add(unit)

    def _end_waiting(self, unit: str, waited_s: float) -> None:
        outage = self._outage
        if unit not in outage.waiting:
            return
        outage.waiting.remove(unit)
        outage.longest_s = max(outage.longest_s, waited_s)
        if outage.is_logged and not outage.waiting:
            self._progress.note(
                f"storage works again; units that waited: {len(outage.held_up)}, up to {outage.longest_s:.0f} s"
            )

    def _log_straggler(self, result: UnitResult) -> None:
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
        self._progress.note(
            f"slow: {result.unit} took {sum(result.seconds.values()):.0f} s ({stages}); "
            f"half of the units take up to {self._report.stragglers.median_s:.1f} s"
        )

    def _advance(self, rows: int) -> None:
        if self._metrics is not None:
            self._metrics.waiting(len(self._outage.waiting))
        details = f"{self._report.documents_per_s:,.1f} documents/s, {self._report.errors:,} errors"
        if self._outage.waiting:
            details += f", {len(self._outage.waiting)} units wait for storage"
        self._progress.advance(rows, details)


class _Outage:
    """A time in which storage fails: from the first unit that waits until none does."""

    def __init__(self, *, is_logged: bool = False) -> None:
        self.is_logged = is_logged
        self.waiting: set[str] = set()
        self.held_up: set[str] = set()
        self.longest_s = 0.0
