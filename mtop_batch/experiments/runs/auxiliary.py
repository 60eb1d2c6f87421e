"""A run whose method gives each task, or each family, a model of its own: of a task with tasks that help it.

Every task is the primary one in turn: its auxiliary tasks are chosen, a model is trained on all of these, and the
primary task is tested. The trainings that choosing takes are kept by their digests, for all runs of a directory. A
model of a family is trained on all tasks of the family.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.experiments.methods.families import family_of
from mtop_batch.experiments.runs.prefinetuned import beginning
from mtop_batch.experiments.runs.started import StartedRun
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.selection.jobs import Job, Jobs, together
from mtop_batch.selection.records import KeptRecords, Record, unfinished_of
from mtop_batch.selection.run_job import run_job
from mtop_batch.selection.select import Selection, SelectOptions, select
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.one_process import Trained, begin, train_whole
from mtop_batch.training.settings import TaskData


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
        seconds: "selection", the same as time, and "train", of the models that were tested; "prefinetune" where they
            begin with source tasks.
    """

    dev: dict[str, TaskMetrics] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    best_step: int = 0
    num_steps: int = 0
    selection_steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"selection": 0.0, "train": 0.0})

    def add(self, trained: Trained, tested: Sequence[str]) -> None:
        """Note what a model came to, and which tasks it is there for."""
        self.dev |= {name: trained.dev[name] for name in tested}
        self.history += [
            {**entry, "tasks": {name: entry["tasks"][name] for name in tested}} for entry in trained.history
        ]
        self.best_step += trained.best_step
        self.num_steps += trained.num_steps


@dataclass(frozen=True)
class OwnModel:
    """A model, and the tasks that it is tested on with their test examples."""

    model: MultiTaskModel
    tested: Sequence[tuple[Task, LabelledTokens]]


def own_models(run: StartedRun, into: Chosen) -> Iterator[OwnModel]:
    """The model of each task, or of each family, one after the other.

    Args:
        run: Its spec says what the models are of, and how to choose.
        into: Is told what the models came to.

    Raises:
        MtopError: The settings cannot work, or training diverged.
    """
    if run.spec.auxiliary == {"method": "family"}:
        yield from _models_of_families(run, into)
        return
    examples = run.examples
    jobs, records = trainings(run)
    for name, test in run.data.test.items():
        selection = _choose(jobs, name, run.spec.auxiliary or {}, records)
        started = time.monotonic()
        rates = dict(zip((name, *selection.auxiliary), map(float, selection.ratio), strict=False))
        own = together(run.config, [name, *selection.auxiliary], rates)
        items = [_of(selection, examples[task.name], task.rate) for task in own.task]
        unfinished = run.unfinished.part(name)
        model = begin(own, items, run.encoder, run.worker, unfinished)
        trained = train_whole(model, own, items, run.worker, unfinished)
        into.add(trained, [name])
        into.chosen[name] = list(selection.auxiliary)
        into.selection_steps += selection.num_steps
        into.seconds["selection"] += selection.seconds
        into.seconds["train"] += time.monotonic() - started
        yield OwnModel(model, [(examples[name].task, test)])


def _models_of_families(run: StartedRun, into: Chosen) -> Iterator[OwnModel]:
    """The same where each family has a model."""
    judged = (task.kind for task in run.config.task if task.name in run.data.test)
    for family in dict.fromkeys(map(family_of, judged)):
        part = run.part(family, [task for task in run.config.task if family_of(task.kind) == family])
        items = part.data.train
        with beginning(part) as first:
            started = time.monotonic()
            model = begin(first.config, items, first.encoder, part.worker, part.unfinished)
        trained = train_whole(model, part.config, items, part.worker, part.unfinished)
        into.add(trained, list(part.data.test))
        into.seconds["train"] += time.monotonic() - started
        if run.spec.prefinetune is not None:
            into.seconds["prefinetune"] = into.seconds.get("prefinetune", 0.0) + first.seconds
        yield OwnModel(model, [(part.examples[name].task, test) for name, test in part.data.test.items()])


def trainings(run: StartedRun) -> tuple[Jobs, KeptRecords]:
    """The trainings that a selection may ask for, and what runs them here, one after the other."""
    examples = run.examples

    def execute(missing: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
        for job in missing:
            unfinished = unfinished_of(run.kept, job) if run.kept else run.unfinished.part(job.digest)
            yield job, run_job(job, examples, run.encoder, worker=run.worker, unfinished=unfinished)
            unfinished.discard()

    return Jobs(run.config, examples, run.encoder.backbone), KeptRecords(run.kept, execute)


def _choose(jobs: Jobs, primary: str, auxiliary: dict[str, Any], records: KeptRecords) -> Selection:
    if auxiliary["method"] == "alone":
        return Selection(primary, "threshold", ())
    return select(jobs, primary, SelectOptions(**auxiliary), records)


def _of(selection: Selection, item: TaskData, rate: float | None) -> TaskData:
    """The examples of a task that were chosen."""
    item = replace(item, rate=rate)
    if item.task.name not in selection.rows:
        return item
    return replace(item, train=item.train.take(selection.rows[item.task.name]))
