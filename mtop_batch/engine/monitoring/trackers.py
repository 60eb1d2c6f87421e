"""Curves of a training for tools that draw them: TensorBoard and MLflow get the numbers of its events.

A point of a curve is written once. A training that resumes from a checkpoint does some steps again, with the same
outcome, so what is already there is passed over. A tool that fails costs its curves and not the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol, Self

from mtop_batch.config.sections import Config
from mtop_batch.config.train import TrainConfig
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.engine.training.workers import OWN_MODELS_PHASE, TRAIN_PHASE
from mtop_batch.errors import ConfigError, MtopError, one_line


class Tracker(Protocol):
    """A tool that draws curves."""

    name: str
    """What messages call it."""

    def last_step(self, curve: str) -> int:
        """The last step of a curve that was written before this process began; -1 if there is none."""

    def write(self, values: Mapping[str, float], step: int, time_s: float) -> None:
        """Add a point to each of some curves."""

    def keep(self) -> None:
        """Make sure that what was written outlives this process."""

    def finish(self, output: str) -> None:
        """The training is done, and its bundle goes to `output`."""

    def close(self, *, failed: bool) -> None:
        """This process writes no more."""


def check_trackers(train: TrainConfig) -> None:
    """Refuse tools that are wanted and not installed, before work starts.

    Raises:
        ConfigError: Says what to install.
    """
    if train.tensorboard and find_spec("tensorboardX") is None:
        raise ConfigError(
            "train.tensorboard = true needs tensorboardX, which is not installed; run `pip install "
            "'mtop-batch[tensorboard]'`, or leave the key out"
        )
    if train.mlflow is not None and find_spec("mlflow") is None:
        raise ConfigError(
            f"train.mlflow = {train.mlflow!r} needs MLflow, which is not installed; run `pip install mlflow`, or leave "
            "the key out"
        )


_OF_A_STEP = {
    "learning_rate": "learning_rate/backbone",
    "head_learning_rate": "learning_rate/heads",
    "examples_per_s": "examples_per_s",
}


class Trackers:
    """An event sink that passes the numbers of events on to tools; a context manager around the training.

    Args:
        trackers: The tools.
        progress: Where a failure is told.
    """

    def __init__(self, trackers: Sequence[Tracker], progress: Progress) -> None:
        self._last: list[tuple[Tracker, dict[str, int]]] = [(tracker, {}) for tracker in trackers]
        self._progress = progress

    @classmethod
    def of(cls, config: Config, run: RunDirectory, progress: Progress) -> Self:
        """Those that a configuration wants.

        Raises:
            ConfigError: MLflow does not answer, or refuses.
        """
        trackers: list[Tracker] = []
        # What they import need not be installed.
        if config.train.tensorboard:
            from mtop_batch.engine.monitoring.tensorboard import TensorBoard

            trackers.append(TensorBoard(run.uri))
        if config.train.mlflow is not None:
            from mtop_batch.engine.monitoring.mlflow_run import MLflowRun

            trackers.append(MLflowRun.begin(config.train.mlflow, run.name, config))
        return cls(trackers, progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for tracker, _last in list(self._last):
            self._try(tracker, partial(tracker.close, failed=error is not None))

    def __call__(self, event: Event) -> None:
        """Handle one event."""
        for tracker, last in list(self._last):
            self._try(tracker, partial(_add, tracker, last, event))

    def finish(self, output: str) -> None:
        """The training is done, and its bundle goes to `output`."""
        for tracker, _last in list(self._last):
            self._try(tracker, partial(tracker.finish, output))

    def _try(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """Do something with a tool, and do without the tool if that fails."""
        try:
            action()
        except Exception as error:  # of a server, a disk, a library: whatever it is, training goes on
            self._last = [entry for entry in self._last if entry[0] is not tracker]
            reason = one_line(error, with_type=not isinstance(error, MtopError))
            self._progress.note(f"{tracker.name} gets no more of this training, which goes on: {reason}")


def _add(tracker: Tracker, last: dict[str, int], event: Event) -> None:
    """Add the points of an event that are new."""
    values = curves(event)
    for curve in values:
        if curve not in last:
            last[curve] = tracker.last_step(curve)
    new = {curve: value for curve, value in values.items() if event["step"] > last[curve]}
    if new:
        step: int = event["step"]
        tracker.write(new, step, datetime.fromisoformat(event["time"]).timestamp())
        last.update(dict.fromkeys(new, step))
    if event["event"] == "evaluation":
        tracker.keep()


def curves(event: Event) -> dict[str, float]:
    """The numbers of an event by curve; those that are undefined are left out.

    >>> curves({"event": "step", "phase": "warm start", "task": "mood", "step": 5, "losses": {"mood": 0.5}})
    {'warm_start/loss/mood': 0.5}
    """
    phase = event.get("phase")
    # Where tasks train apart, each has steps of its own.
    before, after = ("", "") if phase == TRAIN_PHASE else (f"{phase}/".replace(" ", "_"), f"/{event.get('task')}")
    before = "" if phase == OWN_MODELS_PHASE else before
    values: dict[str, float] = {}
    if event["event"] == "step":
        values = {f"loss/{task}": loss for task, loss in event["losses"].items()}
        values |= {f"{name}{after}": event[key] for key, name in _OF_A_STEP.items() if key in event}
    elif event["event"] == "evaluation":
        values = {
            f"evaluation/{task}/{metric}": value
            for task, metrics in event["metrics"].items()
            for metric, value in metrics.items()
            if metric != "num_examples"
        }
        values["evaluation/mean" + after] = event["mean"]
    return {f"{before}{name}": value for name, value in values.items() if math.isfinite(value)}
