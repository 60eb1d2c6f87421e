"""What a labelling run tells people while it goes on: lost actors, outages, slow units, bad files."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mtop_batch.engine.monitoring.label_monitor import LabelMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.labelling.report.run_report import RunReport
from mtop_batch.labelling.run.stages import UnitResult
from mtop_batch.storage.retry import ACTOR_STARTED, ANSWERED, GAVE_UP, WAITING
from tests.labelling.support import definition


class Log:
    """A label monitor, and the lines that it wrote."""

    def __init__(self, num_actors: int = 2) -> None:
        self.now = 1000.0
        self._output = io.StringIO()
        progress = Progress(Console(file=self._output, width=300), interval_s=1e9)
        progress.phase("label", total=100, unit="articles")
        report = RunReport("run", definition({"a": "1"}), Plan(units=()))
        self.monitor = LabelMonitor(progress, report, num_actors, clock=lambda: self.now)

    def take(self, event: str, unit: str = "", **values: object) -> None:
        self.monitor.record({"event": event, "unit": unit, "reason": "S3 is down", "waited_s": 0.0, **values})

    def lines(self) -> list[str]:
        """Without the times before them, and without progress."""
        lines = [line.partition(" ")[2] for line in self._output.getvalue().splitlines()]
        return [line for line in lines if not line.startswith("label")]


@pytest.fixture
def log() -> Log:
    return Log()


def test_actors_that_start_are_not_told_and_one_more_is(log: Log) -> None:
    log.take(ACTOR_STARTED)
    log.take(ACTOR_STARTED)
    assert log.lines() == []
    log.take(ACTOR_STARTED)
    assert log.lines() == ["a labelling actor was lost; another one took its place"]


def test_an_outage_is_told_once_with_its_end(log: Log) -> None:
    for unit in ("a", "b"):
        log.take(WAITING, unit)
    log.take(ANSWERED, "a", waited_s=12.0)
    log.take(ANSWERED, "b", waited_s=31.0)
    assert log.lines() == [
        "storage fails, will be tried again: a: S3 is down",
        "storage works again; units that waited: 2, up to 31 s",
    ]


def test_a_unit_that_is_given_up_is_told_with_the_reason(log: Log) -> None:
    log.take(WAITING, "a")
    log.take(GAVE_UP, "a", waited_s=121.0)
    assert log.lines()[1:] == ["gave up a: no answer from storage for 121 s: S3 is down"]


def test_a_unit_that_was_waited_for_and_came_elsewhere_ends_the_outage(log: Log) -> None:
    log.take(WAITING, "a")
    log.monitor.unit_done(UnitResult("a", "a", rows=1, labelled=1))
    assert log.lines()[-1].startswith("storage works again")


def test_bad_files_and_stragglers_are_named(log: Log) -> None:
    for number in range(9):
        log.monitor.unit_done(UnitResult("x", f"x {number}", rows=1, labelled=1, seconds={"model": 2.0}))
    log.monitor.unit_done(UnitResult("y", "y", rows=1, labelled=1, seconds={"read": 90.0, "model": 2.0}))
    log.monitor.unit_done(UnitResult("z", "z", unreadable="the file is empty (0 bytes)"))
    assert log.lines() == [
        "slow: y took 92 s (read 90 s, model 2 s); half of the units take up to 2.0 s",
        "cannot read z: the file is empty (0 bytes)",
    ]
