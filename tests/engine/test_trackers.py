"""Curves for TensorBoard and MLflow; no Ray runs here."""

from __future__ import annotations

import io
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.config.train import TrainConfig
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.monitoring.tensorboard import TensorBoard, _read
from mtop_batch.engine.monitoring.trackers import Trackers, check_trackers, curves
from mtop_batch.engine.training.run_directory import RunDirectory
from mtop_batch.errors import ConfigError
from tests.s3 import S3Server

Curves = dict[str, list[tuple[int, float]]]


def step(number: int, loss: float = 0.5) -> Event:
    return {
        "event": "step",
        "phase": "train",
        "time": f"2026-11-26T10:00:{number % 60:02}+00:00",
        "step": number,
        "losses": {"sport": loss},
        "learning_rate": 1e-5,
        "head_learning_rate": 1e-3,
        "examples_per_s": 80.0,
    }


def evaluation(number: int, mean: float = 0.75) -> Event:
    metrics = {"sport": {"accuracy": mean, "loss": 0.5, "num_examples": 12}, "odd": {"matthews": math.nan}}
    return {**step(number), "event": "evaluation", "mean": mean, "metrics": metrics, "epoch": 1.0, "best": True}


def read_curves(uri: str) -> Curves:
    """What TensorBoard would draw of a directory's files."""
    found: Curves = defaultdict(list)
    for info in storage.list_files(uri):
        for event in _read(storage.read_bytes(storage.join(uri, info.path))):
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
    return dict(found)


def steps_of(curves: Curves, name: str) -> list[int]:
    return [number for number, _ in curves[name]]


def track(run_uri: str, output: str, events: list[Event], *, finish: bool = True) -> str:
    """Events on their way to TensorBoard; returns what people saw."""
    seen = io.StringIO()
    with Progress(Console(file=seen, width=200)) as progress, Trackers([TensorBoard(run_uri)], progress) as trackers:
        for event in events:
            trackers(event)
        if finish:
            trackers.finish(output)
    return seen.getvalue()


def test_the_numbers_of_an_event_have_a_curve_each_and_undefined_ones_none() -> None:
    assert curves(step(8)) == {
        "loss/sport": 0.5,
        "learning_rate/backbone": 1e-5,
        "learning_rate/heads": 1e-3,
        "examples_per_s": 80.0,
    }
    assert curves(evaluation(8)) == {
        "evaluation/sport/accuracy": 0.75,
        "evaluation/sport/loss": 0.5,
        "evaluation/mean": 0.75,
    }
    alone = {**step(8), "task": "sport", "phase": "train a model for each task"}
    assert set(curves(alone)) == {
        "loss/sport",
        "learning_rate/backbone/sport",
        "learning_rate/heads/sport",
        "examples_per_s/sport",
    }
    assert "warm_start/loss/sport" in curves({**alone, "phase": "warm start"})
    assert curves({"event": "end", "time": "2026-11-26T10:00:00+00:00"}) == {}


def test_event_files_go_with_the_bundle_in_place_of_older_ones(tmp_path: Path) -> None:
    run, output = str(tmp_path / "out.training" / "abc"), str(tmp_path / "out")
    storage.write_bytes(f"{output}/tensorboard/events.out.tfevents.1.old", b"")
    track(run, output, [step(8), step(16), evaluation(16), step(24)])
    found = read_curves(f"{output}/tensorboard")
    assert found["loss/sport"] == [(8, 0.5), (16, 0.5), (24, 0.5)]
    assert found["evaluation/mean"] == [(16, 0.75)]
    assert [info.path for info in storage.list_files(f"{output}/tensorboard")] != []
    assert all(not info.path.endswith("old") for info in storage.list_files(f"{output}/tensorboard"))


@pytest.mark.parametrize("cut", [0, 5])
def test_steps_done_again_are_written_once_whoever_died(tmp_path: Path, cut: int) -> None:
    run, output = str(tmp_path / "out.training" / "abc"), str(tmp_path / "out")
    # A worker was lost after step 24, the training went on from 16; then the whole process, at step 32.
    track(run, output, [step(8), step(16), evaluation(16), step(24), step(20), step(24), step(32)], finish=False)
    (first,) = Path(run, "tensorboard").iterdir()
    first.write_bytes(first.read_bytes()[: first.stat().st_size - cut])  # killed in the middle of a write
    track(run, output, [step(24), step(32), evaluation(32), step(40)])
    found = read_curves(f"{output}/tensorboard")
    assert steps_of(found, "loss/sport") == [8, 16, 24, 32, 40]
    assert steps_of(found, "examples_per_s") == [8, 16, 24, 32, 40]
    assert steps_of(found, "evaluation/mean") == [16, 32]


def test_on_object_storage_files_are_copied_at_evaluations(
    s3_service: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    base = f"s3://{s3_service.bucket}/tracked"
    run, output = f"{base}.training/abc", base
    with Progress(Console(file=io.StringIO())) as progress:
        lost = Trackers([TensorBoard(run)], progress)  # its process is killed: nobody closes it
        for event in (step(8), evaluation(8), step(16)):
            lost(event)
    assert steps_of(read_curves(f"{run}/tensorboard"), "loss/sport") == [8]
    track(run, output, [step(16), evaluation(16)])
    found = read_curves(f"{output}/tensorboard")
    assert steps_of(found, "loss/sport") == steps_of(found, "evaluation/mean") == [8, 16]


def test_a_tool_that_fails_costs_its_curves_and_not_the_training(tmp_path: Path) -> None:
    class Broken(TensorBoard):
        def write(self, *_: Any) -> None:
            raise OSError(28, "No space left on device")

    seen = io.StringIO()
    with Progress(Console(file=seen, width=200)) as progress:
        working = TensorBoard(str(tmp_path / "run"))
        with Trackers([Broken(str(tmp_path / "broken")), working], progress) as trackers:
            for number in (8, 16):
                trackers(step(number))
    assert seen.getvalue().count("TensorBoard gets no more of this training, which goes on: OSError") == 1
    assert steps_of(read_curves(str(tmp_path / "run" / "tensorboard")), "loss/sport") == [8, 16]


def test_what_is_not_installed_is_said_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtop_batch.engine.monitoring.trackers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"train.tensorboard = true needs tensorboardX, which is not installed; run"):
        check_trackers(TrainConfig(tensorboard=True))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"train.mlflow = 'news' needs MLflow, which is not installed; run"):
        check_trackers(TrainConfig(mlflow="news"))  # type: ignore[call-arg]
    check_trackers(TrainConfig())  # type: ignore[call-arg]


class FakeServer:
    """What an MLflow server would know."""

    def __init__(self) -> None:
        self.uris: list[str | None] = []
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.answers = True


class FakeClient:
    """Those methods of `mlflow.MlflowClient` that are used, with their arguments."""

    server: FakeServer

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.server.uris.append(tracking_uri)

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        if not self.server.answers:
            raise ConnectionError("no answer\nfrom the server")
        known = self.server.experiments.get(name)
        return None if known is None else SimpleNamespace(experiment_id=known)

    def create_experiment(self, name: str) -> str:
        self.server.experiments[name] = str(len(self.server.experiments))
        return self.server.experiments[name]

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[SimpleNamespace]:
        name = filter_string.removeprefix("tags.mtop_run = '").removesuffix("'")
        runs = [run for run in self.server.runs.values() if run.tags["mtop_run"] == name]
        return [run for run in runs if run.experiment in experiment_ids][-max_results:]

    def create_run(self, experiment_id: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        info = SimpleNamespace(run_id=f"run-{len(self.server.runs)}", status="RUNNING")
        run = SimpleNamespace(info=info, experiment=experiment_id, tags=dict(tags), name=run_name, params={}, points=[])
        self.server.runs[info.run_id] = run
        return run

    def log_param(self, run_id: str, key: str, value: Any) -> None:
        self.server.runs[run_id].params[key] = value

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        assert len(metrics) <= 1000
        if not self.server.answers:
            raise ConnectionError("no answer\nfrom the server")
        self.server.runs[run_id].points += metrics

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [point for point in self.server.runs[run_id].points if point.key == key]

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.server.runs[run_id].tags[key] = value

    def update_run(self, run_id: str, status: str) -> None:
        self.server.runs[run_id].info.status = status

    def set_terminated(self, run_id: str, status: str) -> None:
        self.server.runs[run_id].info.status = status


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A stand-in for the package `mlflow` and for its server."""
    found = FakeServer()
    monkeypatch.setattr(FakeClient, "server", found, raising=False)
    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.MlflowClient = FakeClient  # type: ignore[attr-defined]

    def metric(key: str, value: float, timestamp: int, step: int) -> SimpleNamespace:
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    entities.Metric = metric  # type: ignore[attr-defined]
    for module in (package, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules.pop("mtop_batch.engine.monitoring.mlflow_run", None)
    yield found
    sys.modules.pop("mtop_batch.engine.monitoring.mlflow_run", None)


def config_with(target: str) -> Config:
    task = {"name": "sport", "labels": ["no", "yes"], "train": "t.parquet", "eval": "e.parquet"}
    values = {"output": "out", "backbone": {"name": "b"}, "train": {"mlflow": target}, "task": [task]}
    return Config.model_validate(values)


@pytest.mark.parametrize(
    ("target", "uri", "experiment"),
    [("http://tracking:5000", "http://tracking:5000", "mtop-batch"), ("news", None, "news")],
)
def test_a_training_is_a_run_of_mlflow_and_goes_on_in_it(
    server: FakeServer, tmp_path: Path, target: str, uri: str | None, experiment: str
) -> None:
    run, config = RunDirectory(str(tmp_path / "out"), "abc"), config_with(target)
    with Progress(Console(file=io.StringIO())) as progress:
        with suppress(RuntimeError), Trackers.of(config, run, progress) as trackers:
            for event in (step(8), evaluation(8), step(16)):
                trackers(event)
            raise RuntimeError("a worker failed too often")
        (only,) = server.runs.values()
        assert only.info.status == "FAILED"
        with Trackers.of(config, run, progress) as trackers:
            for event in (step(16), evaluation(16)):
                trackers(event)
            trackers.finish("s3://models/out")
    assert (server.uris, list(server.experiments)) == ([uri, uri], [experiment])
    (only,) = server.runs.values()
    assert only.info.status == "FINISHED"
    assert only.tags == {"mtop_run": "abc", "mtop_bundle": "s3://models/out"}
    assert only.params["train.epochs"] == 5.0
    assert only.params["model.kind"] == "mtop"
    assert [point.step for point in only.points if point.key == "loss/sport"] == [8, 16]
    assert [point.step for point in only.points if point.key == "evaluation/mean"] == [8, 16]
    assert only.points[0].timestamp == 1795687208000


def test_a_server_that_does_not_answer_is_refused_at_the_start_and_forgiven_later(
    server: FakeServer, tmp_path: Path
) -> None:
    run, seen = RunDirectory(str(tmp_path / "out"), "abc"), io.StringIO()
    with Progress(Console(file=seen, width=200)) as progress:
        with Trackers.of(config_with("news"), run, progress) as trackers:
            server.answers = False
            trackers(step(8))
        assert "MLflow gets no more of this training, which goes on: ConnectionError: no answer" in seen.getvalue()
        with pytest.raises(ConfigError, match=r"train\.mlflow = 'news' cannot be used: ConnectionError: no answer;"):
            Trackers.of(config_with("news"), run, progress)


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not carry credentials"):
        config_with("https://me:secret@tracking")
