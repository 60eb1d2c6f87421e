"""Training that people steer, on a real local Ray: odd tasks, weights, patience, curves, and what to look at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.cli.commands import main
from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import TrainResult, train
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS
from tests.engine.conftest import MakeConfig
from tests.engine.test_trackers import read_curves

pytestmark = pytest.mark.usefixtures("ray_local")

COLD = {"prompt_init": "random", "pooler_init": "random"}


def write_task(root: Path, name: str, train: dict[str, Any], eval_: dict[str, Any], **task: Any) -> Any:
    for part, columns in (("train", train), ("eval", eval_)):
        pq.write_table(pa.table(columns), root / f"{name}-{part}.parquet")
    paths = {part: str(root / f"{name}-{part}.parquet") for part in ("train", "eval")}
    return {"name": name, "text": ["headline"], **paths, **task}


@pytest.fixture(scope="module")
def trained(
    make_config: MakeConfig, task_tables: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, TrainResult, list[Event]]:
    """Two usual tasks, one of them weighted; one of ten examples that is evaluated on one label; a constant number."""
    root = tmp_path_factory.mktemp("steered")
    labels = ["no", "yes"]
    ten = {"headline": [f"goal {n}" for n in range(10)], "label": ["no"] * 8 + ["yes"] * 2}
    one = {"headline": ["Goal 1!", "goal 8", "bank", "law"], "label": ["no"] * 4}
    flat = {"headline": ["law", "film star", "bank profit"], "label": [2.5, 2.5, 2.5]}
    tasks = [
        {**task_tables[0], "class_weights": "balanced"},
        {**task_tables[1], "class_weights": {"yes": 2.0}},
        write_task(root, "tiny", ten, one, labels=labels, metric="matthews", class_weights="balanced"),
        write_task(root, "flat", flat, flat, kind="regression"),
    ]
    settings = {"epochs": 30, "patience": 2, "tensorboard": True}
    config = make_config(root / "bundle", model=COLD, train=settings).model_dump(mode="json")
    loaded = Config.model_validate({**config, "task": tasks})
    events: list[Event] = []
    with Progress() as progress:
        return loaded, train(loaded, progress=progress, on_event=events.append), events


def test_odd_tasks_train_and_say_which_metrics_are_undefined(
    trained: tuple[Config, TrainResult, list[Event]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, result, _ = trained
    assert result.undefined == {
        "tiny": "only one label in the evaluation data",
        "flat": "only one value in the evaluation data",
    }
    assert math.isnan(result.metrics["tiny"]["matthews"])
    assert result.mean == (result.metrics["sport"]["accuracy"] + result.metrics["business"]["accuracy"]) / 2
    kept = json.loads((Path(config.output) / "metrics.json").read_text())
    assert kept["tiny"]["matthews"] is None
    assert kept["flat"]["pearson_spearman"] is None
    assert "matthews undefined" in (Path(config.output) / "README.md").read_text()


def test_patience_ends_the_training_and_the_log_says_so(trained: tuple[Config, TrainResult, list[Event]]) -> None:
    _, result, events = trained
    assert result.best_step <= result.last_step < result.num_steps
    (stopped,) = [event for event in events if event["event"] == "stopped"]
    assert stopped["step"] == result.last_step
    means = [event["mean"] for event in events if event["event"] == "evaluation"]
    assert max(means[:-2]) >= max(means[-2:])


def test_weights_stand_in_the_log_and_in_the_bundle(trained: tuple[Config, TrainResult, list[Event]]) -> None:
    config, _, events = trained
    (start,) = [event for event in events if event["event"] == "start"]
    assert start["class_weights"]["tiny"] == pytest.approx({"no": 0.625, "yes": 2.5})
    assert start["class_weights"]["business"] == pytest.approx({"no": 2 / 3, "yes": 4 / 3})
    recorded = {task["name"]: task["class_weights"] for task in load_bundle(config.output).training_config["task"]}
    assert recorded == {"sport": "balanced", "business": {"yes": 2.0}, "tiny": "balanced", "flat": None}


def test_curves_lie_beside_the_log(trained: tuple[Config, TrainResult, list[Event]]) -> None:
    config, _, events = trained
    found = read_curves(f"{config.output}/tensorboard")
    evaluated = {event["step"]: event["mean"] for event in events if event["event"] == "evaluation"}
    assert len(found["evaluation/mean"]) == len(evaluated)
    assert dict(found["evaluation/mean"]) == pytest.approx(evaluated)
    assert {f"loss/{name}" for name in ("sport", "business", "tiny", "flat")} < set(found)
    assert {"learning_rate/backbone", "learning_rate/heads", "evaluation/flat/rmse"} < set(found)
    assert "evaluation/tiny/matthews" not in found


def test_evaluation_tells_what_to_look_at(
    trained: tuple[Config, TrainResult, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = trained
    files = {name: str(tmp_path / name) for name in ("out.json", "errors.parquet", "suspects.parquet", "out.html")}
    options = ["--json", files["out.json"], "--errors", files["errors.parquet"]]
    options += ["--suspects", files["suspects.parquet"], "--report", files["out.html"]]
    main_ends(["evaluate", "--model", config.output, *options])
    said = " ".join(capsys.readouterr().out.split())
    assert "tiny: matthews is undefined: only one label in the evaluation data" in said
    assert "tiny: 2 of 4 evaluation examples have texts that it was trained on: goal 1; goal 8" in said
    assert "tiny: 1 text with labels that contradict each other: goal 8" in said
    assert "tiny: no search for wrong labels: 10 different texts" in said
    assert "flat: no search for wrong labels: a regression has no labels" in said
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["tiny"]["matthews"], found["tiny"]["undefined"]) == (None, "only one label in the evaluation data")
    assert found["tiny"]["labels"][1]["recall"] is None
    assert found["tiny"]["overlap"] == 2
    assert found["tiny"]["contradictory_texts"] == [
        {"text": "goal 8", "second_text": None, "train": {"yes": 1}, "eval": {"no": 1}}
    ]
    assert found["flat"]["overlap"] == 3
    assert found["sport"]["suspects"] + found["business"]["suspects"] == len(pq.read_table(files["suspects.parquet"]))
    assert pq.read_schema(files["suspects.parquet"]) == ERROR_COLUMNS
    assert "Can scores be trusted?" in (tmp_path / "out.html").read_text()


def test_an_evaluation_does_without_training_data_that_is_gone(
    trained: tuple[Config, TrainResult, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = trained
    task = config.task[2].model_dump(mode="json") | {"train": str(tmp_path / "gone.parquet")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in task.items() if value is not None]
    (tmp_path / "gone.toml").write_text("\n".join(["[[task]]", *lines]))
    suspects = str(tmp_path / "suspects.parquet")
    main_ends(["evaluate", "--model", config.output, "--config", f"{tmp_path}/gone.toml", "--suspects", suspects])
    said = capsys.readouterr().out
    assert "tiny: not compared with its training data:" in said
    assert len(pq.read_table(suspects)) == 0


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    trained: tuple[Config, TrainResult, list[Event]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _, _ = trained
    for option in ("--report", "--suspects", "--errors"):
        main_ends(["evaluate", "--model", config.output, option, str(tmp_path)], code=2)
        assert option in capsys.readouterr().err


def main_ends(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert int(end.value.code or 0) == code
