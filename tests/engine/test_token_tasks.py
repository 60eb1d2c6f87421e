"""Entities through the product, on a real local Ray: trained, evaluated, labelled beside other tasks, added later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.engine.compare import CompareOptions, compare_bundles
from mtop_batch.engine.evaluate import evaluate_in_detail
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.bundle.files import read_bundle_info
from tests.conftest import WORDS
from tests.engine.conftest import TOPICS, MakeConfig
from tests.engine.test_add_tasks import add, write_config
from tests.engine.test_label import write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TEXTS = ["match, bank market! a team", "", "new law says the vote", "goal goal profit", "film star vote"]


def tags_of(words: Sequence[str]) -> list[str]:
    """Words of a topic that stand side by side are an entity of that type."""
    types = [next((topic for topic, own in TOPICS.items() if word in own), "") for word in words]
    return [f"{'I' if own == before else 'B'}-{own}" if own else "O" for before, own in pairwise(["", *types])]


def write_words(root: Path, name: str) -> dict[str, Any]:
    """A `[[task]]` table of words and tags."""
    sources = {}
    for split, count in (("train", 60), ("eval", 30)):
        draws = random.Random(f"{name}/{split}")
        rows = [draws.choices(WORDS, k=draws.randint(2, 9)) for _ in range(count)]
        sources[split] = str(root / f"{name}-{split}.parquet")
        pq.write_table(pa.table({"tokens": rows, "tags": [tags_of(row) for row in rows]}), sources[split])
    return {"name": name, "kind": "token", "labels": list(TOPICS), "text": ["tokens"], "label": "tags", **sources}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_words(tmp_path_factory.mktemp("words"), "names")


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: MakeConfig,
    task_tables: list[dict[str, Any]],
    names: dict[str, Any],
) -> str:
    output = tmp_path_factory.mktemp("bundle") / "model"
    config = make_config(output, train={"epochs": 12, "num_workers": 2})
    tables = tuple(type(config.task[0]).model_validate(task) for task in [names, *task_tables])
    with Progress(Console(quiet=True)) as progress:
        result = train(config.model_copy(update={"task": tables}), progress=progress)
    assert result.metrics["names"]["entity_f1"] > 0.5
    return str(output)


def test_an_evaluation_tells_the_types(model: str) -> None:
    found = evaluate_in_detail(model)["names"]
    assert [scores.label for scores in found.report.labels] == list(TOPICS)
    total = sum(scores.support for scores in found.report.labels)
    assert total > 30
    precision, recall = found.metrics["precision"], found.metrics["recall"]
    assert found.metrics["entity_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert all("(" in label or not label for label in found.errors["label"].to_pylist())


def test_entities_are_labelled_beside_other_tasks_and_found_again(model: str, tmp_path: Path) -> None:
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = LabelOptions(model, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("body",), precision="fp32")
    report = label_corpus(options)
    assert (report["rows"], report["errors"]) == (5, 1)
    table = read_labels(f"{tmp_path}/labels")
    expected = Predictor.load(model, precision="fp32").predict(TEXTS)
    for ours, theirs in zip(table["names_label"].to_pylist(), expected["names_label"].to_pylist(), strict=True):
        places = [
            None if row is None else [(entity["start"], entity["end"], entity["label"]) for entity in row]
            for row in (ours, theirs)
        ]
        assert places[0] == places[1]
        assert all(entity["column"] == "body" for entity in ours or [])
    types = [{entity["label"] for entity in row or []} for row in table["names_label"].to_pylist()]
    counts = {name: sum(name in of for of in types) for name in TOPICS}
    assert report["label_counts"]["names"] == {name: count for name, count in counts.items() if count}
    assert report["list_counts"]["names"] == 4
    assert label_corpus(options)["cells_planned"] == 0
    comparison = compare_bundles(
        CompareOptions(model, model, f"{tmp_path}/corpus", text_columns=("body",)),
        flips_uri=str(tmp_path / "flips.parquet"),
    )
    assert comparison["tasks"]["names"]["agreement"] == 1.0
    assert not pq.read_metadata(tmp_path / "flips.parquet").num_rows


@pytest.mark.slow
def test_a_token_task_is_added_without_touching_the_others(model: str, names: dict[str, Any], tmp_path: Path) -> None:
    new = {**names, "name": "things"}
    result = add(model, write_config(tmp_path / "new.toml", [new]), tmp_path / "m2")
    before, after = read_bundle_info(model), read_bundle_info(str(tmp_path / "m2"))
    assert {name: after.fingerprints[name] for name in before.fingerprints} == before.fingerprints
    assert result.added["things"]["entity_f1"] >= 0
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    options = LabelOptions(model, f"{tmp_path}/corpus", f"{tmp_path}/labels", text_columns=("body",))
    label_corpus(options)
    old = read_labels(f"{tmp_path}/labels")
    assert label_corpus(replace(options, model=str(tmp_path / "m2")))["cells_planned"] == len(TEXTS)
    now = read_labels(f"{tmp_path}/labels")
    assert all(now[name].equals(old[name]) for name in old.column_names)
    assert now["things_label"].null_count == 1


def test_what_a_token_task_cannot_be_is_refused_before_work(
    make_config: MakeConfig, names: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(tmp_path / "model")
    table = type(config.task[0]).model_validate(names)
    others = make_config(tmp_path / "model", model={"kind": "mt-dnn"}).model_copy(update={"task": (table,)})
    with pytest.raises(TaskError, match="reads = 'words' is not what a 'mt-dnn' model has"), Progress() as progress:
        train(others, progress=progress)
    values = config.model_dump()
    for changes, message in (
        ({"reads": "pooled"}, "does not fit kind = 'token'"),
        ({"class_weights": "balanced"}, "a token task has no labels to weigh"),
        ({"abstain_below": 0.5}, "a token task has no labels to decide"),
        ({"scores": "all"}, "keeps the score of each entity"),
        ({"labels": []}, "needs at least one"),
    ):
        with pytest.raises((ValueError, TaskError, ConfigError), match=message):
            type(config).model_validate({**values, "task": [{**names, **changes}]})
