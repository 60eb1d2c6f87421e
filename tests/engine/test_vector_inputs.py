"""Vectors beside texts through the product, on a real local Ray: trained, evaluated, labelled, compared, added to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.config.sections import Config
from mtop_batch.engine.compare import CompareOptions, compare_bundles
from mtop_batch.engine.evaluate import evaluate_bundle
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.errors import DataError
from mtop_batch.model.bundle.files import read_bundle_info
from tests.engine.conftest import MakeConfig
from tests.engine.test_add_tasks import add, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]

INPUTS = [{"column": "image", "size": 4, "tokens": 2}]
TYPE = pa.list_(pa.float32())


def write_examples(path: Path, count: int, seed: int) -> str:
    """Texts that say nothing, and vectors that tell the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    images = rng.normal(size=(count, 4)) + 8 * (labels[:, None] == np.arange(4))
    table = {"text": rng.choice(["bank market", "goal team", "film star"], count), "label": labels}
    pq.write_table(pa.table({**table, "image": pa.array(images.tolist(), TYPE)}), path)
    return str(path)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("pictures")
    files = {
        part: write_examples(root / f"{part}.parquet", count, count) for part, count in (("train", 64), ("eval", 24))
    }
    return {"name": "picture", "labels": ["cat", "dog"], "text": ["text"], **files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, task: dict[str, Any]) -> str:
    output = tmp_path_factory.mktemp("bundle") / "model"
    values = make_config(output, train={"epochs": 12, "learning_rate": 3e-3}, model={"inputs": INPUTS}).model_dump()
    config = Config.model_validate({**values, "task": [task]})
    with Progress(Console(quiet=True)) as progress:
        result = train(config, progress=progress)
    assert result.metrics["picture"]["accuracy"] > 0.9
    return str(output)


def corpus(root: Path, images: list[Any], image_type: pa.DataType = TYPE) -> str:
    table = {"id": range(len(images)), "text": ["bank market"] * len(images), "image": pa.array(images, image_type)}
    (root / "corpus").mkdir()
    pq.write_table(pa.table(table), root / "corpus" / "a.parquet")
    return str(root / "corpus")


def test_an_evaluation_reads_them(model: str) -> None:
    assert evaluate_bundle(model)["picture"]["accuracy"] > 0.9
    assert read_bundle_info(model).inputs[0].column == "image"


def test_the_label_table_has_what_the_predictor_says(model: str, tmp_path: Path) -> None:
    cat, dog = [9.0, 0.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]
    images = [cat, dog, None, [1.0, 2.0], [float("nan"), 0.0, 0.0, 0.0]]
    options = LabelOptions(model, corpus(tmp_path, images), f"{tmp_path}/labels", precision="fp32")
    report = label_corpus(options)
    assert (report["rows"], report["errors"]) == (5, 2)
    table = read_labels(f"{tmp_path}/labels")
    assert table["picture_label"].to_pylist()[:2] == ["cat", "dog"]
    assert table["error"].to_pylist()[:3] == [None] * 3
    assert table["error"].to_pylist()[3] == "input column 'image' has a vector of 2 floats, not 4"
    assert table["error"].to_pylist()[4] == "input column 'image' has a value that is no finite number"
    expected = Predictor.load(model, precision="fp32").predict(["bank market"] * 5, inputs={"image": images})
    assert table["picture_label"].to_pylist() == expected["picture_label"].to_pylist()
    said = expected["picture_score"].to_pylist()[:3]
    assert table["picture_score"].to_pylist()[:3] == pytest.approx(said, abs=1e-4)
    assert label_corpus(options)["cells_planned"] == 0
    comparison = compare_bundles(CompareOptions(model, model, f"{tmp_path}/corpus"))
    assert comparison["tasks"]["picture"]["agreement"] == 1.0


def test_a_corpus_without_the_column_is_refused_and_one_of_another_type_has_errors(model: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    pq.write_table(pa.table({"id": [1], "text": ["bank"]}), tmp_path / "a" / "a.parquet")
    with pytest.raises(
        DataError, match="no input column 'image', which the model reads beside texts; columns: id, text"
    ):
        label_corpus(LabelOptions(model, f"{tmp_path}/a", f"{tmp_path}/labels-a"))
    report = label_corpus(LabelOptions(model, corpus(tmp_path, ["x", None], pa.string()), f"{tmp_path}/labels"))
    assert report["error_reasons"] == {"input column 'image' has type string, not lists of 4 floats": 1}


def test_added_tasks_read_them_and_leave_the_others_alone(model: str, tmp_path: Path, task: dict[str, Any]) -> None:
    add(model, write_config(tmp_path / "new.toml", [{**task, "name": "more"}]), tmp_path / "m2")
    before, after = read_bundle_info(model), read_bundle_info(str(tmp_path / "m2"))
    assert after.inputs == before.inputs
    assert {name: after.fingerprints[name] for name in before.fingerprints} == before.fingerprints
    assert evaluate_bundle(str(tmp_path / "m2"))["more"]["accuracy"] > 0.9
