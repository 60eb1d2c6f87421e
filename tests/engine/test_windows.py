"""Whole documents through the product, on a real local Ray: trained, evaluated, labelled, compared, with more tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.engine.calibrate import calibrate_bundle
from mtop_batch.engine.compare import CompareOptions, compare_bundles
from mtop_batch.engine.evaluate import evaluate_bundle
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.errors import ConfigError, MtopError, TaskError
from mtop_batch.model.bundle.files import read_bundle_info, read_decisions
from tests.conftest import WORDS
from tests.engine.conftest import TOPICS, MakeConfig
from tests.engine.test_add_tasks import add, write_config
from tests.engine.test_label import write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

WINDOWS = {"long_texts": "windows", "window_overlap": 2, "max_windows": 4}
OTHERS = [word for word in WORDS if not any(word in words for words in TOPICS.values())]
LONG = " ".join((OTHERS * 9)[:30])  # more than two windows that say nothing of any topic
TEXTS = ["match goal team", f"{LONG} bank market profit shares", f"{LONG} {LONG} goal", "", "film star vote"]


def with_long_texts(task: dict[str, Any], root: Path) -> dict[str, Any]:
    """The task, with the words that tell its label at the end of texts of three windows."""
    files = {}
    for part in ("train", "eval"):
        table = pq.read_table(task[part])
        texts = [f"{LONG} {text}" if row % 2 else text for row, text in enumerate(table["headline"].to_pylist())]
        files[part] = str(root / f"{task['name']}-{part}.parquet")
        pq.write_table(table.set_column(0, "headline", pa.array(texts)), files[part])
    return {**task, **files}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, task_tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("long")
    return [{**with_long_texts(task, root), "combine": "max"} for task in task_tables]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, tasks: list[dict[str, Any]]) -> str:
    output = tmp_path_factory.mktemp("bundle") / "model"
    config = make_config(output, backbone=WINDOWS, train={"num_workers": 2})
    tables = tuple(type(config.task[0]).model_validate(task) for task in tasks)
    with Progress(Console(quiet=True)) as progress:
        result = train(config.model_copy(update={"task": tables}), progress=progress)
    assert set(result.metrics) == set(TOPICS)
    return str(output)


def test_a_bundle_says_how_it_reads_and_evaluates_so(model: str) -> None:
    assert read_bundle_info(model).text_limits == {"max_tokens": 16, "max_windows": 4, "window_overlap": 2}
    assert "read in up to 4 windows of so many, each with 2 tokens" in (Path(model) / "README.md").read_text()
    recorded = json.loads((Path(model) / "metrics.json").read_text())
    found = evaluate_bundle(model)
    for task in TOPICS:
        assert found[task]["num_examples"] == 24
        assert found[task]["accuracy"] == recorded[task]["accuracy"]
        assert found[task]["loss"] == pytest.approx(recorded[task]["loss"], abs=1e-4)


def test_a_calibration_looks_at_whole_texts_as_the_training_did(
    model: str, tasks: list[dict[str, Any]], make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "unused")
    tables = tuple(type(config.task[0]).model_validate(task) for task in tasks)
    with Progress(Console(quiet=True)) as progress:
        result = calibrate_bundle(
            model, config.model_copy(update={"task": tables}), str(tmp_path / "m2"), progress=progress
        )
    trained = read_decisions(model)
    for task in TOPICS:
        assert result.tasks[task]["temperature"] == pytest.approx(trained[task]["temperature"], abs=1e-3)


def test_the_label_table_has_what_the_predictor_says_of_whole_texts(model: str, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = LabelOptions(
        model, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("body",), vectors=True, precision="fp32"
    )
    report = label_corpus(options)
    assert (report["rows"], report["errors"], report["texts_in_windows"], report["texts_cut"]) == (5, 1, 2, 1)
    assert report["text_limits"]["max_windows"] == 4
    table = read_labels(f"{tmp_path}/labels")
    expected = Predictor.load(model, precision="fp32").predict(TEXTS)
    assert table["id"].to_pylist() == list(range(5))
    for task in TOPICS:
        assert table[f"{task}_label"].to_pylist() == expected[f"{task}_label"].to_pylist()
        said = [score for score in expected[f"{task}_score"].to_pylist() if score is not None]
        assert [s for s in table[f"{task}_score"].to_pylist() if s is not None] == pytest.approx(said, abs=1e-4)
    assert label_corpus(options)["cells_planned"] == 0
    comparison = compare_bundles(CompareOptions(model, model, f"{tmp_path}/corpus", text_columns=("body",)))
    assert {task["agreement"] for task in comparison["tasks"].values()} == {1.0}


@pytest.mark.slow
def test_tasks_are_added_with_the_windows_of_the_bundle(
    model: str, tmp_path: Path, tasks: list[dict[str, Any]]
) -> None:
    new = [
        {**tasks[0], "name": "more"},
        {key: value for key, value in tasks[1].items() if key != "combine"} | {"name": "probe", "reads": "vector"},
    ]
    add(model, write_config(tmp_path / "new.toml", new), tmp_path / "m2")
    before, after = read_bundle_info(model), read_bundle_info(str(tmp_path / "m2"))
    assert after.text_limits == before.text_limits
    assert {name: after.fingerprints[name] for name in before.fingerprints} == before.fingerprints
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = LabelOptions(model, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("body",), vectors=True)
    label_corpus(options)
    for wanted, from_vectors in ((("probe",), 5), ((), 0)):
        options = replace(options, model=str(tmp_path / "m2"), vectors=False, tasks=wanted)
        report = label_corpus(options)
        assert (report["cells_planned"], report["cells_from_vectors"]) == (5, from_vectors)
    expected = Predictor.load(str(tmp_path / "m2")).predict(TEXTS)
    assert read_labels(f"{tmp_path}/labels")["probe_label"].to_pylist() == expected["probe_label"].to_pylist()


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"long_texts": "windows", "window_overlap": 7}, "window_overlap = 7 leaves no room for new text"),
        ({"long_texts": "windows", "window_overlap": 16}, "window_overlap = 16 leaves no room"),
        ({"long_texts": "windows", "window_overlap": 2, "max_tokens": 100}, "more than ElectraModel has positions for"),
    ],
)
def test_windows_that_cannot_be_are_refused_before_work(
    make_config: MakeConfig, tmp_path: Path, backbone: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message), Progress(Console(quiet=True)) as progress:
        train(make_config(tmp_path / "model", backbone=backbone), progress=progress)
    assert not (tmp_path / "model").exists()


def test_tasks_that_combine_windows_need_some(make_config: MakeConfig, tasks: list[dict[str, Any]]) -> None:
    config = make_config("here")
    values = config.model_dump()
    for changes, message in (
        ({"task": [{**tasks[0]}]}, "is about windows, and texts are cut"),
        ({"backbone": {**values["backbone"], "max_windows": 4}}, 'max_windows is for long_texts = "windows"'),
        ({"backbone": {**values["backbone"], **WINDOWS, "max_tokens": 512, "max_windows": 65}}, "33,280 tokens"),
    ):
        with pytest.raises((ValueError, MtopError), match=message):
            type(config).model_validate({**values, **changes})
    with pytest.raises(TaskError, match="does not fit a task that reads the vector"):
        type(config).model_validate(
            {**values, "backbone": {**values["backbone"], **WINDOWS}, "task": [{**tasks[0], "reads": "vector"}]}
        )
