"""What the driver makes of the events of a training run: a log, and progress for people."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from math import isnan
from statistics import median

from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.errors import MtopError
from mtop_batch.lines import counted, listed


class TrainingMonitor:
    """Takes events, stamps them with the time, keeps them in the run's directory and shows what they say.

    Args:
        run: Where the events are kept.
        progress: Where people look.
        sinks: Called with every event as well.
    """

    def __init__(self, run: RunDirectory, progress: Progress, *sinks: Callable[[Event], None]) -> None:
        self._run = run
        self._progress = progress
        self._sinks = sinks
        self._single_phase = ""
        self._steps: dict[str, int] = {}
        self._num_steps: dict[str, int] = {}
        self._mean: float | None = None
        self._started = self._failed = False

    def begin_single_tasks(self, phase: str, num_steps: Mapping[str, int], done: Collection[str]) -> None:
        """A phase begins in which tasks train alone, with this many steps each; an earlier run has done these tasks.

        Args:
            phase: Its name; the tasks' events carry it.
            num_steps: Of each task.
            done: Some of them.
        """
        self._single_phase = phase
        self._num_steps = dict(num_steps)
        self._steps = {name: num_steps[name] for name in done}
        self._progress.phase(phase, sum(num_steps.values()), completed=sum(self._steps.values()))

    def end_single_task(self, task: str) -> None:
        """A task is done; its last events may still be on their way."""
        self._steps[task] = self._num_steps[task]
        self._progress.update(sum(self._steps.values()))

    def begin_training(self) -> None:
        """The multi-task phase begins; how many steps it has is known when its workers have started."""
        self._progress.phase("start the training workers")

    def poll(self, queue: EventQueue) -> None:
        """Handle what has come in."""
        for event in queue.take():
            self.record(event)

    def record(self, event: Event) -> None:
        """Handle one event."""
        event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}
        self._run.events.append(event)
        if event.get("phase") == "train":
            self._show_training(event)
        elif self._single_phase and event.get("phase") == self._single_phase:
            self._show_single_task(event)
        for sink in self._sinks:
            sink(event)

    def examples_per_s(self, phase: str = "train") -> float:
        """How fast a phase was, most of the time; 0 where it was over before anyone looked.

        Where tasks train side by side, that of one of them.
        """
        speeds = [e["examples_per_s"] for e in self._run.events if e["event"] == "step" and e.get("phase") == phase]
        return median(speeds) if speeds else 0.0

    def _show_single_task(self, event: Event) -> None:
        task = event["task"]
        if event["event"] == "stopped":
            self._progress.note(f"{task}: {_stopped_early(event)}")
        if self._steps.get(task) == self._num_steps.get(task):
            return
        if event["event"] == "texts":
            details = f"{task}: {event['done']:,}/{event['num']:,} texts read"
        elif event["event"] == "step":
            self._steps[task] = event["step"]
            details = f"{task}: loss {event['loss']:.3f}"
        else:
            return
        self._progress.update(sum(self._steps.values()), details)

    def _show_training(self, event: Event) -> None:
        if event["event"] == "start":
            self._show_start(event)
        elif event["event"] == "step":
            task = event["task"]  # that of the last step; the losses of others say nothing about it
            loss = f"loss {event['losses'][task]:.3f} ({task})"
            details = f"epoch {event['epoch']:.2f}, {loss}, {event['examples_per_s']:,.0f} examples/s"
            if self._mean is not None:
                details += f", last mean {self._mean:.4f}"
            self._progress.update(event["step"], details)
        elif event["event"] == "stopped":
            self._progress.note(_stopped_early(event))
        elif event["event"] == "error":
            self._failed = True
            self._progress.note(f"a worker failed: {event['error']}")
        elif event["event"] == "evaluation":
            self._mean = None if isnan(event["mean"]) else event["mean"]
            best = ", the best so far" if event["best"] else ""
            mean = "undefined" if self._mean is None else f"{self._mean:.4f}"
            self._progress.note(f"epoch {event['epoch']:.2f}: mean {mean}{best}")
            self._keep_events()

    def _keep_events(self) -> None:
        try:
            self._run.keep_events()
        except (MtopError, OSError) as error:
            self._progress.note(f"the log of this run could not be kept ({error}); training goes on")

    def _show_start(self, event: Event) -> None:
        if self._started:
            lost = "" if self._failed else "a worker was lost; "
            self._failed = False
            self._progress.note(f"{lost}training resumes from step {event['step']:,}")
        else:
            workers = counted(event["num_workers"], "worker")
            self._progress.phase("train", event["num_steps"], completed=event["step"])
            self._progress.note(f"training on {workers} ({event['device']}, {event['precision']})")
            if event["left_out"]:
                self._progress.note(untrained(event["left_out"], event["num_steps"]))
        self._started = True


def _stopped_early(event: Event) -> str:
    steps = f"{event['step']:,} of {event['num_steps']:,} steps"
    return f"stopped at epoch {event['epoch']:.2f}, after {steps}: the mean has not risen for long (train.patience)"


def untrained(tasks: Sequence[str], num_steps: int) -> str:
    """A warning about tasks that no step trains."""
    return (
        f"warning: no step trains {listed(tasks)}: the run has {num_steps:,} steps and more tasks than that; raise "
        "train.epochs or lower train.batch_size, or expect nothing of these tasks"
    )
