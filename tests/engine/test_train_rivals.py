"""The kinds of models that MTOP is compared with, on a real local Ray: from a configuration to labels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from mtop_batch import Predictor, read_labels
from mtop_batch.cli.commands import main
from mtop_batch.config.sections import Config
from mtop_batch.engine.evaluate import evaluate_bundle, evaluate_in_detail
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import TrainResult, train
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.engine.training.workers import SingleTaskJob, train_own_model
from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import WRITTEN_LAST
from mtop_batch.training.single_task import LearnedTask
from mtop_batch.training.task_checkpoints import TaskCheckpoints
from tests.engine.conftest import MakeConfig
from tests.model.kinds.kinds import PER_TASK, RIVALS
from tests.training.toy import make_data, make_encoder, make_settings

pytestmark = pytest.mark.usefixtures("ray_local")


def run(config: Config) -> tuple[TrainResult, list[Event]]:
    events: list[Event] = []
    with Progress() as progress:
        return train(config, progress=progress, on_event=events.append), events


@pytest.mark.slow  # several trainings and labelling runs
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", RIVALS)
def test_a_configuration_becomes_a_bundle_that_evaluates_predicts_and_labels(
    kind: str, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "bundle", model={"kind": kind}, train={"num_workers": 2})
    result, _ = run(config)
    assert result.mean > 0.7
    assert not Path(config.output + ".training").exists()
    bundle = load_bundle(config.output)
    assert bundle.model.config.model_type == kind
    resolved = [{**task, "label_by": "name"} for task in config.model_dump(mode="json")["task"]]
    assert bundle.metrics == result.metrics
    assert bundle.training_config == {**config.model_dump(mode="json"), "task": resolved}
    # Also by a configuration of another kind, whose tasks do not say what they read.
    for other in (config, make_config(tmp_path / "other")):
        for name, values in evaluate_bundle(config.output, other).items():
            assert values == pytest.approx(result.metrics[name], abs=1e-5)

    found_out = evaluate_in_detail(config.output, suspects=True)["sport"]
    assert (found_out.suspects is None) == (kind in PER_TASK)
    assert ("so there is no document vector" in found_out.no_suspects) == (kind in PER_TASK)

    titles = ["bank market profit", None, "match goal team", "the law wins a vote"]
    (tmp_path / "corpus").mkdir()
    pq.write_table(pa.table({"id": list("abcd"), "headline": titles}), tmp_path / "corpus" / "a.parquet")
    options = LabelOptions(
        config.output, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("headline",), precision="fp32"
    )
    passes = 2 if kind in PER_TASK else 1
    assert label_corpus(options, plan_only=True)["passes_per_text"] == passes
    assert f"4 articles, {passes} forward pass{'es' if passes > 1 else ''} per text" in capsys.readouterr().out
    assert label_corpus(options)["passes_per_text"] == passes
    assert label_corpus(options, plan_only=True)["cells_planned"] == 0
    expected = Predictor.load(config.output, device="cpu", precision="fp32").predict(titles)
    found = read_labels(f"{tmp_path}/labels").select(expected.column_names)
    assert found["sport_label"].to_pylist() == expected["sport_label"].to_pylist()
    assert found["sport_score"].to_pylist() == pytest.approx(expected["sport_score"].to_pylist(), abs=1e-5)

    if passes > 1:
        with pytest.raises(ConfigError, match=f"has a '{kind}' model, which reads a text once for each task, so there"):
            label_corpus(LabelOptions(config.output, options.corpus, f"{tmp_path}/vectors", vectors=True))
    (tmp_path / "new.toml").write_text('[[task]]\nname = "new"\nlabels = ["no", "yes"]\ntrain = "a"\neval = "b"\n')
    arguments = ["--model", config.output, "--config", f"{tmp_path}/new.toml", "--output", f"{tmp_path}/more"]
    with pytest.raises(SystemExit) as left:
        main(["add-tasks", *arguments])
    assert left.value.code == 2
    assert f"has a '{kind}' model; tasks can be added to and dropped from 'mtop' models only" in capsys.readouterr().err


def test_each_model_of_its_own_trains_by_itself(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "bundle", model={"kind": "single-task"}, train={"epochs": 3, "freeze_layers": 1})
    result, events = run(config)
    starts = [event for event in events if event["event"] == "start"]
    assert sorted((event["task"], event["num_examples"]) for event in starts) == [("business", 48), ("sport", 48)]
    assert result.num_steps == 2 * 18
    best = {}
    for event in events:
        if event["event"] == "evaluation":
            assert list(event["metrics"]) == [event["task"]]
            if event["best"]:
                best[event["task"]] = event
    assert result.best_step == sum(event["step"] for event in best.values())
    for task, event in best.items():
        assert event["metrics"][task].items() <= result.metrics[task].items()
    assert result.mean == sum(event["mean"] for event in best.values()) / 2
    model = load_bundle(config.output).model
    assert isinstance(model, SingleTaskModel)
    first, second = (model.encoder_of(name).state_dict() for name in ("sport", "business"))
    dense = {name for name in first if name.endswith("dense.weight")}
    assert {name for name in dense if torch.equal(first[name], second[name])} == {
        name for name in dense if ".0." in name
    }


@pytest.mark.slow
def test_the_whole_backbone_may_stay_frozen(make_config: MakeConfig, tmp_path: Path) -> None:
    model = {"kind": "p-tuning-v2", "prompts_per_task": 4}
    config = make_config(tmp_path / "bundle", model=model, train={"epochs": 1, "freeze_backbone": True})
    run(config)
    before = load_file(Path(config.backbone.name) / "model.safetensors")
    after = load_file(Path(config.output) / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(after[f"backbone.{name}"], value), name
    written = json.loads((Path(config.output) / "config.json").read_text())
    assert written["prompts_per_task"] == 4


def test_what_cannot_work_is_refused_before_work_starts(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(tmp_path / "bundle", train={"freeze_layers": 3})
    with pytest.raises(
        ConfigError, match="freeze_layers = 3 is more than the layers of ElectraModel; allowed: up to 2"
    ):
        run(config)


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_model_of_its_own_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    queue: Any = SimpleNamespace(emit=events.append)
    settings = make_settings(epochs=2, checkpoint_steps=3)
    new_task = {"dropout": 0.1, "max_tokens": 16, "seed": 0}
    [data] = make_data((40,), (Task("sport", reads="pooled"),))

    def learn(run_uri: str) -> LearnedTask:
        job = SingleTaskJob("own", settings, "fp32", new_task, {}, (), {}, queue, run_uri, processes=1, max_threads=1)
        return train_own_model(make_encoder(dropout=0.1), data, job)

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    expected = learn(f"{tmp_path}/one")
    write = TaskCheckpoints.save

    def killed_after_six(self: TaskCheckpoints, *arguments: Any) -> None:
        write(self, *arguments)
        if arguments[1]["step"] == 6:
            raise Killed

    monkeypatch.setattr(TaskCheckpoints, "save", killed_after_six)
    with pytest.raises(Killed):
        learn(f"{tmp_path}/two")
    monkeypatch.setattr(TaskCheckpoints, "save", write)
    found = learn(f"{tmp_path}/two")
    assert [event["step"] for event in events if event["event"] == "start"] == [0, 0, 6]
    assert (found.metrics, found.best_step, found.num_steps) == (expected.metrics, expected.best_step, 10)
    for name, value in found.tensors.items():
        assert torch.equal(value, expected.tensors[name]), name
    run = RunDirectory(f"{tmp_path}/out", "abc")
    run.keep_task("sport", {"a": torch.ones(1)})
    assert not list(Path(run.uri).rglob("state.json"))


def test_what_is_left_of_a_checkpoint_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    checkpoints = TaskCheckpoints(str(tmp_path), "sport")

    def write(path: Path) -> None:
        (path / WRITTEN_LAST).write_text("{}")

    checkpoints.save(write, {})
    (tmp_path / "copy").mkdir()
    assert checkpoints.read(tmp_path / "copy") == tmp_path / "copy"

    def cut_off(path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        checkpoints.save(cut_off, {})
    assert checkpoints.read(tmp_path / "copy") is not None  # the one before
    (tmp_path / "tasks" / "sport.checkpoint" / WRITTEN_LAST).unlink()
    assert checkpoints.read(tmp_path / "copy") is None
    checkpoints.discard()
    checkpoints.discard()
    nowhere = TaskCheckpoints(str(tmp_path / "not-here"), "sport")
    nowhere.save(Path.touch, {})
    assert not (tmp_path / "not-here").exists()
