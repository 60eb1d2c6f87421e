"""One job in one process, on a GPU or a CPU, with or without Ray around it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from mtop_batch.config.sections import Config
from mtop_batch.selection.autosem import BanditPlan, play
from mtop_batch.selection.importance import head_gradients
from mtop_batch.selection.jobs import Job
from mtop_batch.selection.records import Record
from mtop_batch.training.one_process import Encoder, Trained, begin, train_whole
from mtop_batch.training.sampling import num_steps
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.unfinished import Unfinished


def run_job(
    job: Job,
    data: Mapping[str, TaskData],
    encoder: Encoder,
    *,
    worker: Worker | None = None,
    unfinished: Unfinished | None = None,
) -> Record:
    """Train as a job says.

    Args:
        job: What to do.
        data: Task -> its examples, also of tasks that the job does not train.
        encoder: That of the job's configuration.
        worker: This process; None for a single one on the CPU.
        unfinished: Where an interrupted job left what it had done; None to begin anew and keep nothing.

    Raises:
        MtopError: The settings cannot work, or training diverged.
    """
    worker, unfinished = worker or Worker(), unfinished or Unfinished(None)
    started = time.monotonic()
    items = _read_by(job, data)
    if job.kind == "explore":
        return _explore(job, items, encoder, worker, unfinished, started)
    model = begin(job.config, items, encoder, worker, unfinished)
    trained = train_whole(model, job.config, items, worker, unfinished)
    score = trained.dev[job.task][str(data[job.task].task.metric)]
    if job.kind == "train":
        return Record(score, trained.num_steps, time.monotonic() - started)
    gradients = head_gradients(model, job.task, items[0].train, worker=worker)
    return Record(score, trained.num_steps, time.monotonic() - started, gradients=gradients)


def _explore(
    job: Job,
    items: list[TaskData],
    encoder: Encoder,
    worker: Worker,
    unfinished: Unfinished,
    started: float,
) -> Record:
    """A training whose tasks a bandit draws; it is not resumed, for a checkpoint after every round would cost more."""
    items.sort(key=lambda item: item.task.name != job.task)  # the primary task is the first; the others stay in order
    sizes, train = [len(item.train) for item in items], job.config.train
    plan = BanditPlan(sizes, train.batch_size, num_steps(sum(sizes), train.batch_size, train.epochs), train.seed)
    judged = [items[0], *(replace(item, eval=None) for item in items[1:])]
    model = begin(job.config, items, encoder, worker, unfinished)
    trained = train_whole(model, _patient(job), judged, worker, Unfinished(None), plan=plan)
    _, beliefs = play([entry["mean"] for entry in trained.history], len(items), train.seed)
    utilities = dict(zip((item.task.name for item in items), beliefs.utilities.tolist(), strict=True))
    return Record(_best(trained, job.task), trained.num_steps, time.monotonic() - started, utilities)


def _patient(job: Job) -> Config:
    """Rounds are no epochs, and the score of a bandit goes up and down."""
    return job.config.model_copy(update={"train": job.config.train.model_copy(update={"patience": None})})


def _best(trained: Trained, task: str) -> float:
    return max((entry["tasks"][task] for entry in trained.history), default=float("nan"))


def _read_by(job: Job, data: Mapping[str, TaskData]) -> list[TaskData]:
    """The examples of the job's tasks, as its kind of model reads them."""
    default = job.config.model.default_reader
    return [
        replace(item := data[task.name], task=replace(item.task, reads=task.definition(default).reads), rate=task.rate)
        for task in job.config.task
    ]
