"""What people see of a training's events; no Ray runs here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.training.run_directory import RunDirectory

START = {"num_steps": 40, "num_workers": 2, "device": "cpu", "precision": "fp32", "left_out": ("tiny", "rare")}


def event(kind: str, phase: str, **values: Any) -> Event:
    return {"event": kind, "phase": phase, **values}


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


def watch(output: io.StringIO, run: RunDirectory, events: list[Event]) -> TrainingMonitor:
    with Progress(Console(file=output, width=200), interval_s=0) as progress:
        monitor = TrainingMonitor(run, progress)
        monitor.begin_training()
        for one in events:
            monitor.record(one)
    return monitor


def test_steps_evaluations_and_lost_workers_are_told(output: io.StringIO, tmp_path: Path) -> None:
    losses = {"task": "sport", "losses": {"mood": 0.75, "sport": 0.125}}
    step = {"step": 10, "num_steps": 40, "epoch": 0.5, "loss": 0.25, **losses, "examples_per_s": 81.2}
    events = [
        event("start", "train", step=0, **START),
        event("step", "train", **step),
        event("evaluation", "train", epoch=1.0, mean=0.75, best=True),
        event("start", "train", step=8, **START),
        event("step", "train", **step),
    ]
    run = RunDirectory(str(tmp_path / "out"), "abc")
    monitor = watch(output, run, events)
    lines = output.getvalue()
    assert "training on 2 workers (cpu, fp32)" in lines
    assert "warning: no step trains tiny, rare: the run has 40 steps and more tasks than that; raise" in lines
    assert "train: 10/40 steps, epoch 0.50, loss 0.125 (sport), 81 examples/s" in lines
    assert "epoch 1.00: mean 0.7500, the best so far" in lines
    assert "a worker was lost; training resumes from step 8" in lines
    assert "81 examples/s, last mean 0.7500" in lines
    assert monitor.examples_per_s() == 81.2
    assert (Path(run.uri) / "events.jsonl").read_text().count("\n") == 3


def test_a_log_that_cannot_be_written_does_not_end_the_training(output: io.StringIO, tmp_path: Path) -> None:
    (tmp_path / "out.training").write_text("in the way")
    events = [
        event("start", "train", step=0, **START),
        event("evaluation", "train", epoch=1.0, mean=0.75, best=False),
    ]
    watch(output, RunDirectory(str(tmp_path / "out"), "abc"), events)
    assert "the log of this run could not be kept" in output.getvalue()


def test_warm_starts_end_complete_although_their_last_events_are_late(output: io.StringIO, tmp_path: Path) -> None:
    with Progress(Console(file=output, width=200), interval_s=0) as progress:
        monitor = TrainingMonitor(RunDirectory(str(tmp_path / "out"), "abc"), progress)
        monitor.begin_single_tasks("warm start", {"sport": 10, "business": 30, "kept": 20}, done=["kept"])
        monitor.record(event("step", "warm start", task="business", step=15, loss=0.5))
        monitor.end_single_task("sport")
        monitor.end_single_task("business")
        monitor.record(event("step", "warm start", task="business", step=29, loss=0.4))
    lines = output.getvalue()
    assert "warm start: 35/60 steps, business: loss 0.500" in lines
    assert "Z warm start: 60/60 steps" in lines.splitlines()[-1]
