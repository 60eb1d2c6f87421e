"""One run without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.tables import METHODS
from mtop_batch.experiments.runs import speed
from mtop_batch.experiments.runs.data_set import LARGE, DataSet, tasks_of
from mtop_batch.experiments.runs.prepared import Prepared
from mtop_batch.experiments.runs.records import RunRecord, SpeedRecord, unpack
from mtop_batch.experiments.runs.run import run_spec, untrained
from mtop_batch.experiments.runs.specs import RunSettings, make_spec
from mtop_batch.experiments.runs.speed import measure_speed
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import Event, TaskData, Worker
from mtop_batch.training.unfinished import Unfinished
from tests.experiments.conftest import QUICK, SIZES, MakeSpec


class Killed(Exception):
    """The process is gone."""


def run(spec: Any, prepared: Prepared, data: DataSet, encoder: Encoder, **options: Any) -> RunRecord:
    return run_spec(spec, prepared, data.configs, encoder, **options)


# Of those that choose auxiliary tasks, one for each way to choose.
CHOOSING = ["mtop-alone", "mt-dnn-threshold", "mtop-trial", "mt-dnn-fine-grained", "mt-dnn-autosem"]
PLAIN = [
    name
    for name, chosen in METHODS.items()
    if not name.endswith(("prompts", "shared")) and not name.startswith("many") and chosen.auxiliary is None
]
MANY_TASKS = [
    "many",
    "many-frozen",
    "many-in-a-row",
    "many-late-1",
    "many-by-labels",
    "many-by-correlation",
    "many-learned",
    "many-pooled",
    "many-attention",
    "many-dypa",
]


@pytest.mark.parametrize("method", [*PLAIN, *MANY_TASKS, *CHOOSING])
def test_a_run_has_metrics_predictions_and_costs(
    method: str, spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder
) -> None:
    before = encoder.backbone.state_dict()["embeddings.word_embeddings.weight"].clone()
    record = run(spec_of(method), prepared, data_set, encoder)
    assert encoder.backbone.state_dict()["embeddings.word_embeddings.weight"].equal(before)
    for task, (name, examples) in zip(data_set.tasks, prepared.test.items(), strict=True):
        assert task.config.name == name
        predictions = unpack(record.predictions[name])
        assert len(predictions) == SIZES["test"]
        assert record.test[name]["num_examples"] == SIZES["test"]
        assert record.dev[name]["num_examples"] == SIZES["eval"]
        if task.config.kind == "classification":
            assert record.test[name]["accuracy"] == np.mean(predictions == examples.labels)
    passes_per_task = METHODS[method].model["kind"] not in ("mtop", "mt-dnn") or method in CHOOSING
    assert record.passes == (3 if passes_per_task else 1)
    assert record.parameters["total"] > record.parameters["per_task"] > 0
    assert max(round(entry["epoch"]) for entry in record.history) == 2
    assert set(record.chosen) == (set(record.dev) if method in CHOOSING else set())
    assert (record.selection_steps > 0) == (method in [*CHOOSING[1:], "many-by-correlation"])
    assert ("selection" in record.seconds) == (method in [*CHOOSING, "many-by-correlation"])
    assert RunRecord.from_dict(json.loads(record.to_json())) == record


@pytest.mark.parametrize("method", ["mtop", "single-task", "mt-dnn-taught", "mtop-alone"])
def test_a_killed_run_goes_on_from_its_checkpoint(
    method: str, spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    spec = spec_of(method)
    undisturbed = run(spec, prepared, data_set, encoder)
    evaluations = 0

    def kill(event: Event) -> None:
        nonlocal evaluations
        evaluations += event["event"] == "evaluation"
        if evaluations == 2:
            raise Killed

    unfinished = Unfinished(str(tmp_path / "run"))
    with pytest.raises(Killed):
        run(spec, prepared, data_set, encoder, worker=Worker(event_sink=kill), unfinished=unfinished)
    before = unfinished.seconds()
    starts: list[int] = []

    def note(event: Event) -> None:
        if event["event"] == "start":
            starts.append(event["step"])

    record = run(spec, prepared, data_set, encoder, worker=Worker(event_sink=note), unfinished=unfinished)
    assert max(starts) > 0
    assert (sum(before.values()) > 0) == (method != "mtop-alone")
    assert all(record.seconds[part] >= round(seconds, 2) for part, seconds in before.items())
    same: dict[str, Any] = {"seconds": {}, "finished": ""}
    assert replace(record, **same) == replace(undisturbed, **same)
    unfinished.discard()
    assert not list(tmp_path.iterdir())


def run_many(spec: Any, data: DataSet, prepared: Prepared, encoder: Encoder, **options: Any) -> RunRecord:
    learned, judged = tasks_of(METHODS[spec.method], data)
    return run_spec(spec, prepared.of(learned.names, judged.names), learned.configs, encoder, **options)


def test_more_tasks_are_learned_than_are_judged(
    spec_of: MakeSpec, prepared_many: Prepared, many_set: DataSet, encoder: Encoder
) -> None:
    judged = many_set.share(METHODS["many"].judged).names
    for name in ("many-1000", "many-and-large"):
        record = run_many(spec_of(name, epochs=1), many_set, prepared_many, encoder)
        assert list(record.predictions) == list(record.test) == list(record.dev) == judged
        assert all(list(entry["tasks"]) == judged for entry in record.history)
    assert LARGE not in judged


@pytest.mark.parametrize("name", ["single-task", "mt-dnn", "mt-dnn-threshold"])
def test_only_primary_tasks_are_tested(name: str, prepared: Prepared, data_set: DataSet, encoder: Encoder) -> None:
    primary = data_set.with_primaries(["business"])
    spec = make_spec(name, 0, primary, RunSettings("tiny", max_tokens=16, train=QUICK))
    record = run_many(spec, primary, prepared, encoder)
    assert list(record.test) == list(record.predictions) == list(record.dev) == ["business"]
    assert all(list(entry["tasks"]) == ["business"] for entry in record.history)
    assert list(record.chosen or {}) == (["business"] if name == "mt-dnn-threshold" else [])


def test_a_run_begins_with_the_encoder_that_another_left(
    spec_of: MakeSpec, prepared_many: Prepared, many_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    first = spec_of("many-1000", epochs=1)
    spec = replace(spec_of("many-large-1000", epochs=1), begins_with=first.digest)
    encoders = str(tmp_path / "encoders")
    with pytest.raises(ConfigError, match=f"begins with the encoder of run {first.digest}, .*; do that run first"):
        run_many(spec, many_set, prepared_many, encoder, encoders=encoders)
    run_many(first, many_set, prepared_many, encoder, encoders=encoders)
    assert [path.stem for path in (tmp_path / "encoders").iterdir()] == [first.digest]
    record = run_many(spec, many_set, prepared_many, encoder, encoders=encoders)
    assert list(record.test) == [LARGE]
    plain = run_many(spec_of("many-large", epochs=1), many_set, prepared_many, encoder, encoders=encoders)
    assert plain.num_steps == record.num_steps
    assert plain.dev != record.dev
    assert len(list((tmp_path / "encoders").iterdir())) == 1


def test_what_choosing_takes_is_shared_and_counted_alike(
    spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    events: list[Event] = []
    worker = Worker(event_sink=lambda event: events.append(event) if event["event"] == "start" else None)
    trial = run(spec_of("mt-dnn-trial"), prepared, data_set, encoder, worker=worker, kept=str(tmp_path))
    # Alone, each of the sets (of which the largest is the same but for whose score counts), and the model to test.
    assert len(events) == 3 + 3 * 3 + 3
    fine = run(spec_of("mt-dnn-fine-grained"), prepared, data_set, encoder, worker=worker, kept=str(tmp_path))
    assert len(events) == 15 + 3
    assert fine.selection_steps == trial.selection_steps > trial.num_steps
    assert fine.seconds["selection"] == pytest.approx(trial.seconds["selection"], rel=0.5)


def test_a_teacher_is_asked_once(
    spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder, tmp_path: Path
) -> None:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if [event["event"] for event in events].count("start") == 2:  # the teacher has said what it has to say
            raise Killed

    unfinished, spec = Unfinished(str(tmp_path / "run")), spec_of("mt-dnn-taught")
    with pytest.raises(Killed):
        run(spec, prepared, data_set, encoder, worker=Worker(event_sink=note), unfinished=unfinished)
    assert len(unfinished.soft_labels(0)) == len(prepared.unlabelled)  # type: ignore[arg-type]
    record = run(spec, prepared, data_set, encoder, worker=Worker(event_sink=events.append), unfinished=unfinished)
    assert [event["event"] for event in events].count("start") == 3
    assert record.test != run(spec_of("mt-dnn"), prepared, data_set, encoder).test


def test_the_speed_does_not_need_a_trained_model(
    spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder
) -> None:
    record = measure_speed(spec_of("mtop"), data_set, prepared, encoder, worker=Worker(), documents=20)
    assert record.documents == 20
    assert record.documents_per_s > 0
    assert b"one_task" not in record.to_json()
    assert SpeedRecord(**json.loads(record.to_json())) == record


@pytest.mark.parametrize("method", ["many", "many-pooled", "many-dypa"])
def test_the_speed_is_that_of_what_the_method_reads(
    method: str,
    spec_of: MakeSpec,
    prepared: Prepared,
    data_set: DataSet,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timed: list[Task] = []

    def noting(config: Config, encoder: Encoder, data: Sequence[TaskData]) -> MultiTaskModel:
        timed.extend(item.task for item in data)
        return untrained(config, encoder, data)

    monkeypatch.setattr(speed, "untrained", noting)
    measure_speed(spec_of(method), data_set, prepared, encoder, worker=Worker(), documents=20)
    assert [task.reads for task in timed] == [METHODS[method].reads or "prompts"] * len(data_set.tasks)


@pytest.mark.parametrize("method", ["many", "many-by-correlation"])
def test_the_speed_of_many_tasks_is_told_beside_that_of_one(
    method: str, spec_of: MakeSpec, prepared: Prepared, data_set: DataSet, encoder: Encoder
) -> None:
    record = measure_speed(spec_of(method), data_set, prepared, encoder, worker=Worker(), documents=20, beside_one=True)
    assert record.one_task is not None
    assert record.full is not None
    assert min(record.one_task, *record.full.values()) > 0
    assert SpeedRecord(**json.loads(record.to_json())) == record
