"""Choosing auxiliary tasks: with records made up, and with trainings in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.selection.jobs import Job, Jobs
from mtop_batch.selection.records import KeptRecords, Record, unfinished_of
from mtop_batch.selection.run_job import run_job
from mtop_batch.selection.select import METHODS, Selection, SelectOptions, described, select
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Event, Worker
from mtop_batch.training.unfinished import Unfinished
from tests.selection.conftest import make_config, make_jobs, make_task_data

NAMES = ["sport", "twin", "noise", "count"]


def made_up(helps: dict[str, float], asked: list[Job]) -> Callable[[Sequence[Job]], list[Record]]:
    """Records of heads like those of "sport" for the first names, and scores to which each task adds something."""
    rng = np.random.default_rng(0)
    base = rng.random((4, 8)) + 0.1 * rng.random((48, 4, 8))
    likeness = dict(zip(["sport", *helps], (0.0, 0.02, 0.2, 20.0), strict=False))

    def record(job: Job) -> Record:
        asked.append(job)
        score = 0.5 + sum(helps.get(name, 0.0) for name in job.tasks)
        if job.kind == "measure":
            noise = np.random.default_rng(len(job.task)).random(base.shape[1:])
            gradients = (base + likeness[job.task] * noise).astype(np.float32)
            return Record(score, 10, 1.0, gradients=gradients)
        utilities = {name: 0.5 + helps.get(name, 0.0) for name in job.tasks}
        return Record(score, 100, 2.0, utilities if job.kind == "explore" else {})

    return lambda jobs: [record(job) for job in jobs]


def choose(method: str, helps: dict[str, float], **options: float) -> tuple[Selection, list[Job]]:
    asked: list[Job] = []
    jobs = make_jobs(NAMES)
    chosen = SelectOptions(method, **options)  # type: ignore[arg-type]
    return select(jobs, "sport", chosen, made_up(helps, asked)), asked


HELPS = {"twin": 0.2, "count": 0.1, "noise": -0.3}


def test_threshold_trains_every_task_once_and_nothing_else() -> None:
    selection, asked = choose("threshold", HELPS, threshold=0.3)
    assert selection.auxiliary[0] == "twin"
    assert "noise" not in selection.auxiliary
    assert sorted(job.title for job in asked) == ["count alone", "noise alone", "sport alone", "twin alone"]
    assert selection.num_steps == 40
    assert selection.seconds >= 4.0
    none, _ = choose("threshold", HELPS, threshold=1)
    assert none.auxiliary == ()
    assert "no task correlates with sport by more than 1; the closest is twin" in none.notes[0]
    assert described(none) == "sport: train it alone"


def test_trial_keeps_the_best_of_growing_sets() -> None:
    selection, asked = choose("trial", HELPS)
    assert selection.auxiliary == ("twin", "count")
    assert [len(tried.auxiliary) for tried in selection.tried] == [0, 1, 2, 3]
    assert selection.tried[2].score == pytest.approx(0.8)
    assert len(asked) == 8
    alone, _ = choose("trial", {"twin": -0.1, "count": -0.1, "noise": -0.1})
    assert alone.auxiliary == ()
    assert "does best on its own" in alone.notes[0]
    few, asked = choose("trial", HELPS, most=1)
    assert len(few.tried) == 2


def test_fine_grained_keeps_examples_of_what_trial_found() -> None:
    selection, _ = choose("fine-grained", HELPS, threshold=0.3)
    assert set(selection.auxiliary) <= {"twin", "count"}
    assert "twin" in selection.rows
    assert 0 < len(selection.rows["twin"]) <= 48
    assert "examples" in described(selection)
    none, _ = choose("fine-grained", HELPS, threshold=1)
    assert (none.auxiliary, none.rows) == ((), {})
    assert "twin is left out: 0 examples" in none.notes[0]


def test_autosem_tries_ratios_of_useful_tasks() -> None:
    selection, asked = choose("autosem", {"twin": 0.2, "count": 0.1, "noise": -0.3})
    assert asked[0].kind == "explore"
    assert {name for tried in selection.tried for name in tried.auxiliary} == {"twin", "count"}
    assert len(selection.tried) == 10
    assert selection.heads is None
    assert len(selection.ratio) == 1 + len(selection.auxiliary)
    rates = [task.rate for job in asked[1:] for task in job.config.task]
    assert all(rate is None or rate > 0 for rate in rates)
    nothing, asked = choose("autosem", {"twin": -0.2, "count": -0.1, "noise": -0.3})
    assert (nothing.auxiliary, len(asked)) == ((), 1)


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_work_is_refused(method: str) -> None:
    options = SelectOptions(method)  # type: ignore[arg-type]
    run = made_up(HELPS, [])
    with pytest.raises(TaskError, match="there is no task 'sprot'; did you mean 'sport'"):
        select(make_jobs(NAMES), "sprot", options, run)
    with pytest.raises(ConfigError, match="'sport' is the only task"):
        select(make_jobs(["sport"]), "sport", options, run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "--method 'guess' is not a method; allowed: threshold, trial"),
        ({"threshold": 2.0}, "-1 to 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectOptions(**options)  # type: ignore[arg-type]


def in_process(jobs: Jobs, encoder: Encoder) -> Callable[[Sequence[Job]], Iterator[tuple[Job, Record]]]:
    def execute(missing: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
        for job in missing:
            yield job, run_job(job, jobs.data, encoder)

    return execute


def test_a_task_that_asks_the_same_is_told_from_noise(encoder: Encoder) -> None:
    """With few examples of its own, the primary task learns from those of the twin and forgets over the noise."""
    sizes = {"sport": 8, "twin": 96, "noise": 96}
    data = {
        name: replace(make_task_data(name, size), eval=make_task_data(name, 96).eval) for name, size in sizes.items()
    }
    jobs = Jobs(make_config(list(sizes), epochs=2), data, encoder.backbone)
    alone, helped, harmed = (
        run_job(jobs.train("sport", names), data, encoder).score for names in ([], ["twin"], ["noise"])
    )
    assert helped > max(alone, harmed)


def test_a_task_more_costs_its_own_trainings_only(encoder: Encoder, tmp_path: Path) -> None:
    few, more = make_jobs(["sport", "count"], epochs=1), make_jobs(["sport", "noise", "count"], epochs=1)
    options = SelectOptions("threshold", threshold=-1)
    select(few, "sport", options, KeptRecords(str(tmp_path), in_process(few, encoder)))
    records = KeptRecords(str(tmp_path), in_process(more, encoder))
    selection = select(more, "sport", options, records)
    assert (records.done, records.reused) == (["noise alone"], ["sport alone", "count alone"])
    again = KeptRecords(str(tmp_path), in_process(more, encoder))
    same = select(more, "noise", options, again)
    assert not again.done
    assert selection.heads is not None
    assert same.heads is not None
    np.testing.assert_array_equal(selection.heads.correlations, same.heads.correlations)


@pytest.mark.parametrize(
    "model", [{"kind": "mt-dnn"}, {"kind": "mtop", "prompt_groups": {"by": "correlation", "n": 2}}]
)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_works_with_tasks_of_all_kinds(
    method: str, model: dict[str, object], encoder: Encoder, tmp_path: Path
) -> None:
    names = ["sport", "count", "themes"]
    jobs = make_jobs(names, model, size=16, epochs=1, warm_start={"epochs": 1})
    records = KeptRecords(str(tmp_path), in_process(jobs, encoder))
    selection = select(jobs, "sport", SelectOptions(method, threshold=0), records)  # type: ignore[arg-type]
    assert set(selection.auxiliary) <= set(names)
    assert selection.num_steps > 0


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"num_workers": 2}, True),
        ({"max_failures": 0}, True),
        ({"warm_start": {"epochs": 3}}, True),
        ({"seed": 1}, False),
        ({"epochs": 5}, False),
    ],
)
def test_what_decides_a_training_changes_its_digest(change: dict[str, Any], same: bool) -> None:
    before, after = make_jobs(["sport", "twin"]), make_jobs(["sport", "twin"], **change)
    assert (before.measure("sport").digest == after.measure("sport").digest) == same
    assert before.measure("sport").digest != before.measure("twin").digest
    assert before.measure("sport").digest != make_jobs(["sport"], size=20).measure("sport").digest


def test_what_a_task_learns_alone_is_learned_once(encoder: Encoder, tmp_path: Path) -> None:
    model = {"kind": "mtop", "prompt_init": "single-task", "pooler_init": "single-task"}
    jobs = make_jobs(["sport", "twin", "count"], model, size=16, epochs=1, warm_start={"epochs": 1})
    starts: list[int] = []
    worker = Worker(event_sink=lambda event: starts.append(event["num_tasks"]) if event["event"] == "start" else None)
    records = [
        run_job(job, jobs.data, encoder, worker=worker, unfinished=unfinished_of(str(tmp_path), job))
        for job in (
            jobs.train("sport", ["twin"]),
            jobs.train("twin", ["sport", "count"]),
            jobs.train("sport", ["twin"]),
        )
    ]
    assert starts == [1, 1, 2, 1, 3, 2]  # two warm starts and their model, one more and its model, the first model
    assert records[0].score == records[2].score


class Killed(Exception):
    """The process is gone."""


@pytest.mark.parametrize("kind", ["measure", "train"])
def test_a_killed_training_goes_on_from_its_checkpoint(kind: str, encoder: Encoder, tmp_path: Path) -> None:
    jobs = make_jobs(["sport", "twin"])
    job = jobs.measure("sport") if kind == "measure" else jobs.train("sport", ["twin"])
    undisturbed = run_job(job, jobs.data, encoder)
    starts, evaluations = list[int](), list[Event]()

    def kill(event: Event) -> None:
        evaluations.extend([event] if event["event"] == "evaluation" else [])
        if len(evaluations) == 3:
            raise Killed

    unfinished = Unfinished(str(tmp_path / "job"))
    with pytest.raises(Killed):
        run_job(job, jobs.data, encoder, worker=Worker(event_sink=kill), unfinished=unfinished)

    def note(event: Event) -> None:
        starts.extend([event["step"]] if event["event"] == "start" else [])

    record = run_job(job, jobs.data, encoder, worker=Worker(event_sink=note), unfinished=unfinished)
    assert starts[0] > 0
    assert record.score == undisturbed.score
    np.testing.assert_array_equal(record.gradients, undisturbed.gradients)


def test_a_record_survives_its_file() -> None:
    record = Record(float("nan"), 3, 1.5, {"a": 0.25}, np.ones((2, 1, 2), np.float32))
    again = Record.from_bytes(record.to_bytes())
    assert np.isnan(again.score)
    assert (again.num_steps, again.seconds, again.utilities) == (3, 1.5, {"a": 0.25})
    assert again.gradients.tolist() == record.gradients.tolist()
