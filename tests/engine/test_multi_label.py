"""A multi-label task through the whole product, on a real local Ray: trained, evaluated, labelled, added as a probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.engine.compare import CompareOptions, compare_bundles
from mtop_batch.engine.evaluate import evaluate_in_detail, write_errors
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.table.stats import table_stats
from tests.conftest import WORDS
from tests.engine.conftest import TOPICS, MakeConfig
from tests.engine.test_add_tasks import add, write_config
from tests.engine.test_label import write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TEXTS = ["match goal team", "bank market profit", "team goal bank market", "film star vote", "", "player cup economy"]


@pytest.fixture(scope="module")
def tags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `[[task]]` table of a task whose labels are the topics that a headline has words of."""
    root = tmp_path_factory.mktemp("tags")
    rng = np.random.default_rng(0)
    others = [word for word in WORDS if not any(word in words for words in TOPICS.values())]
    for part, count in (("train", 60), ("eval", 24)):
        labels = [[topic for topic in TOPICS if rng.random() < 0.5] for _ in range(count)]
        words = [[*others[:4], *(word for topic in row for word in TOPICS[topic] * 3)] for row in labels]
        texts = [" ".join(rng.choice(row, 8)) for row in words]
        table = pa.table({"headline": texts, "tags": pa.array(labels, pa.list_(pa.string()))})
        pq.write_table(table, root / f"{part}.parquet")
    files = {part: str(root / f"{part}.parquet") for part in ("train", "eval")}
    names = {"labels": list(TOPICS), "text": ["headline"], "label": "tags", "scores": "all"}
    return {"name": "tags", "kind": "multi-label", **names, **files}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig, tags: dict[str, Any]) -> str:
    """A bundle of a task with two labels and one with any number, trained by two workers."""
    output = tmp_path_factory.mktemp("bundle") / "model"
    config = make_config(output, train={"num_workers": 2})
    table = type(config.task[0]).model_validate(tags)
    config = config.model_copy(update={"task": (config.task[0], table)})
    with Progress(Console(quiet=True)) as progress:
        result = train(config, progress=progress)
    assert set(result.metrics["tags"]) >= {"micro_f1", "macro_f1", "subset_accuracy"}
    return str(output)


def label(model: str, root: Path, **options: Any) -> dict[str, Any]:
    return label_corpus(LabelOptions(model, f"{root}/corpus", f"{root}/labels", text_columns=("body",), **options))


def test_what_is_trained_is_evaluated_and_told_label_by_label(model: str, tmp_path: Path) -> None:
    found = evaluate_in_detail(model)["tags"]
    assert [scores.label for scores in found.report.labels] == list(TOPICS)
    num_errors = write_errors(str(tmp_path / "errors.parquet"), {"tags": found})
    share = 1 - found.metrics["subset_accuracy"]
    assert num_errors == round(share * found.metrics["num_examples"])
    card = (Path(model) / "README.md").read_text()
    assert "| tags | multi-label | prompts | sport, business | headline | " in card
    assert load_bundle(model).model.task("tags").scores == "all"


def test_the_label_table_has_what_the_predictor_says(model: str, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    report = label(model, tmp_path)
    table = read_labels(f"{tmp_path}/labels")
    expected = Predictor.load(model).predict(TEXTS)
    assert table["tags_label"].to_pylist() == expected["tags_label"].to_pylist()
    assert table.schema.field("tags_scores").equals(expected.schema.field("tags_scores"), check_metadata=True)
    given = [row for row in table["tags_label"].to_pylist() if row is not None]
    assert (len(given), report["list_counts"]) == (5, {"tags": 5})
    counts = {name: sum(name in row for row in given) for name in TOPICS}
    assert report["label_counts"]["tags"] == {name: count for name, count in counts.items() if count}
    assert table_stats(f"{tmp_path}/labels").tasks["tags"].label_counts == report["label_counts"]["tags"]
    page = Path(f"{tmp_path}/labels/_runs/{report['run']}/report.html").read_text()
    assert "tags" in page


def test_a_multi_label_probe_says_the_same_of_vectors_as_of_texts(
    model: str, tmp_path: Path, tags: dict[str, Any]
) -> None:
    add(model, write_config(tmp_path / "new.toml", [{**tags, "name": "more", "reads": "vector"}]), tmp_path / "m2")
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    label(model, tmp_path, vectors=True)
    report = label(str(tmp_path / "m2"), tmp_path)
    assert report["cells_from_vectors"] == 6
    table, expected = read_labels(f"{tmp_path}/labels"), Predictor.load(str(tmp_path / "m2")).predict(TEXTS)
    assert table["more_label"].to_pylist() == expected["more_label"].to_pylist()
    for row, other in zip(table["more_scores"].to_pylist(), expected["more_scores"].to_pylist(), strict=True):
        assert row == (None if other is None else pytest.approx(other, abs=1e-3))


def test_bundles_are_compared_label_by_label(model: str, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = CompareOptions(model, model, f"{tmp_path}/corpus", text_columns=("body",))
    flips = str(tmp_path / "flips.parquet")
    comparison = compare_bundles(options, flips_uri=flips)
    assert comparison["tasks"]["tags"]["agreement"] == 1.0
    assert comparison["tasks"]["tags"]["same_articles"] == 5
    assert len(pq.read_table(flips)) == 0
    json.dumps(comparison)
