"""Learning from unlabelled texts on a real local Ray: teachers are trained, asked and forgotten."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.engine.training import teachers
from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.training.soft_labels import FloatArray
from tests.engine.conftest import MakeConfig
from tests.engine.test_train import COLD, weights

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def corpus(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The headlines that tasks are evaluated on, in capitals, and a few of nobody's."""
    path = tmp_path_factory.mktemp("corpus") / "texts.parquet"
    config = make_config(path)
    known = [text for task in config.task for text in pq.read_table(task.eval)["headline"].to_pylist()]
    own = ["goal after the market", "team of shares", None, ""]
    pq.write_table(pa.table({"title": [text.upper() for text in known] + own}), path)
    return str(path)


@pytest.fixture
def config(make_config: MakeConfig, corpus: str, tmp_path: Path) -> Config:
    unlabelled = {"corpus": corpus, "text": ["title"], "teachers": 2, "batch_size": 4}
    return make_config(tmp_path / "bundle", model=COLD, train={"epochs": 2}, unlabelled=unlabelled)


def run(config: Config) -> list[Event]:
    events: list[Event] = []
    with Progress() as progress:
        train(config, progress=progress, on_event=events.append)
    return events


@pytest.mark.slow
def test_an_interrupted_run_asks_no_teacher_twice_and_ends_alike(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    undisturbed = weights(config)
    assert "are left out because a task is evaluated or tested on them" in capsys.readouterr().err
    shutil.rmtree(config.output)
    asked: list[int] = []
    ask = teachers._ask

    def break_down_at_the_second(*args: Any) -> FloatArray:
        asked.append(len(args[1]))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return ask(*args)

    monkeypatch.setattr(teachers, "_ask", break_down_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not Path(config.output).exists()
    run(config)
    assert len(asked) == 3
    assert all((weights(config)[name] == value).all() for name, value in undisturbed.items())
    assert not Path(config.output + ".training").exists()


def test_teachers_differ_and_none_is_told_of_evaluation_texts(config: Config) -> None:
    first, second = config.teacher(0), config.teacher(1)
    assert first.train.seed != second.train.seed != config.train.seed
    assert first.unlabelled is None
    assert first.model.kind == "mt-dnn"


@pytest.mark.slow
def test_a_bundle_can_teach(config: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    teacher = make_config(tmp_path / "teacher", model=COLD, train={"epochs": 2})
    run(teacher)
    values = config.model_dump(mode="json")
    values["unlabelled"]["teachers"] = [teacher.output]
    run(Config.model_validate(values))
    assert load_bundle(config.output).training_config["unlabelled"]["teachers"] == [teacher.output]
    values["task"][0]["labels"] = ["yes", "no"]
    with pytest.raises(ConfigError, match=r"task 'sport' of .* is classification with labels no, yes, and here"):
        run(Config.model_validate(values))
