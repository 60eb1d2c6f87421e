"""A run whose method gives each task a model of its own, trained with tasks that were chosen to help it.

Every task is the primary one in turn: its auxiliary tasks are chosen, a model is trained on all of these, and the
primary task is tested. The trainings that choosing takes are kept by their digests, for all runs of a directory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtop_batch.config.sections import Config
from mtop_batch.data.examples import LabelledTokens
from mtop_batch.experiments.data import Prepared
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.selection.jobs import Job, Jobs, together
from mtop_batch.selection.records import KeptRecords, Record, unfinished_of
from mtop_batch.selection.run_job import run_job
from mtop_batch.selection.select import Selection, SelectOptions, select
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.one_process import Encoder, begin, train_whole
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.unfinished import Unfinished


@dataclass
class Chosen:
    """What all tasks' own models came to, so far.

    Args:
        dev: Task -> its metrics on evaluation examples, at the chosen weights.
        history: Evaluations of each task by its own model.
        chosen: Task -> its auxiliary tasks.
        best_step: A sum over the models.
        num_steps: The same.
        selection_steps: Training steps that the choices take, where nothing is known yet.
        selection_seconds: The same as time.
        train_seconds: Of the models that were tested.
    """

    dev: dict[str, TaskMetrics] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    best_step: int = 0
    num_steps: int = 0
    selection_steps: int = 0
    selection_seconds: float = 0.0
    train_seconds: float = 0.0


def own_models(
    config: Config,
    auxiliary: dict[str, Any],
    data: Prepared,
    encoder: Encoder,
    worker: Worker,
    unfinished: Unfinished,
    kept: str | None,
    into: Chosen,
) -> Iterator[tuple[TaskData, LabelledTokens, MultiTaskModel]]:
    """Each task with its test examples and its own model, one after the other.

    Args:
        config: With all tasks.
        auxiliary: How to choose, as in `Method`.
        data: The data set.
        encoder: That of the configuration.
        worker: This process.
        unfinished: Keeps what an interrupted run has done.
        kept: Directory of what choosing takes; None to keep it no longer than the run.
        into: Is told what the models came to.

    Raises:
        MtopError: The settings cannot work, or training diverged.
    """
    by_name = {item.task.name: item for item in data.train}
    jobs, records = trainings(config, data.train, encoder, worker, unfinished, kept)
    for name, test in data.test.items():
        item = by_name[name]
        selection = _choose(jobs, name, auxiliary, records)
        started = time.monotonic()
        rates = dict(zip((name, *selection.auxiliary), map(float, selection.ratio), strict=False))
        own = together(config, [name, *selection.auxiliary], rates)
        items = [_of(selection, by_name[task.name], task.rate) for task in own.task]
        part = unfinished.part(name)
        model = begin(own, items, encoder, worker, part)
        trained = train_whole(model, own, items, worker, part)
        into.dev[name] = trained.dev[name]
        into.history += [{**entry, "tasks": {name: entry["tasks"][name]}} for entry in trained.history]
        into.chosen[name] = list(selection.auxiliary)
        into.best_step += trained.best_step
        into.num_steps += trained.num_steps
        into.selection_steps += selection.num_steps
        into.selection_seconds += selection.seconds
        into.train_seconds += time.monotonic() - started
        yield item, test, model


def trainings(
    config: Config, data: Sequence[TaskData], encoder: Encoder, worker: Worker, unfinished: Unfinished, kept: str | None
) -> tuple[Jobs, KeptRecords]:
    """The trainings that a selection may ask for, and what runs them here, one after the other; see `own_models`."""
    by_name = {item.task.name: item for item in data}

    def execute(missing: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
        for job in missing:
            part = unfinished_of(kept, job) if kept else unfinished.part(job.digest)
            yield job, run_job(job, by_name, encoder, worker=worker, unfinished=part)
            part.discard()

    return Jobs(config, by_name, encoder.backbone), KeptRecords(kept, execute)


def _choose(jobs: Jobs, primary: str, auxiliary: dict[str, Any], records: KeptRecords) -> Selection:
    if auxiliary["method"] == "alone":
        return Selection(primary, "threshold", ())
    return select(jobs, primary, SelectOptions(**auxiliary), records)


def _of(selection: Selection, item: TaskData, rate: float | None) -> TaskData:
    """The examples of a task that were chosen."""
    item = replace(item, rate=rate)
    if item.task.name not in selection.rows:
        return item
    rows = selection.rows[item.task.name]
    return replace(item, train=LabelledTokens(item.train.tokens.take(rows), item.train.labels[rows]))
