"""A run that has been started, with what it has at hand: every part of a run is given this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.experiments.runs.prepared import Prepared
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.unfinished import Unfinished


@dataclass(frozen=True)
class StartedRun:
    """A run, or the part of it that trains one of its models.

    Args:
        spec: What decides its outcome.
        config: Of its training, with the tasks that this learns.
        data: The tasks' examples, and the test examples of those that are judged.
        encoder: As pretrained, or what another run left.
        worker: This process.
        unfinished: Keeps what an interrupted run has done.
        kept: Where that lies which several runs use: trainings that choosing tasks takes, and pre-finetuned encoders;
            None to keep it no longer than the run.
    """

    spec: RunSpec
    config: Config
    data: Prepared
    encoder: Encoder
    worker: Worker
    unfinished: Unfinished
    kept: str | None

    @property
    def examples(self) -> dict[str, TaskData]:
        """Task -> its training and evaluation examples."""
        return {item.task.name: item for item in self.data.train}

    def part(self, name: str, tasks: Sequence[TaskConfig]) -> StartedRun:
        """The part that trains a model of some of the tasks; `name` is that of what it leaves unfinished."""
        names = [task.name for task in tasks]
        data = self.data.of(names, [name for name in names if name in self.data.test])
        return replace(self, config=self.config.with_tasks(tasks), data=data, unfinished=self.unfinished.part(name))
