"""A small data set with three parts, the tiny encoder, and records made up for tables."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtop_batch.data.sets.task_files import TaskExamples, write_tasks
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.experiments.methods.many import JUDGED
from mtop_batch.experiments.methods.tables import METHODS
from mtop_batch.experiments.runs.data_set import LARGE, DataSet, RawTask, tasks_of
from mtop_batch.experiments.runs.prepared import Prepared, prepare
from mtop_batch.experiments.runs.read import read_data_set, with_unlabelled
from mtop_batch.experiments.runs.records import DataRecord, Records, RunRecord, SpeedRecord, pack
from mtop_batch.experiments.runs.specs import RunSettings, RunSpec, make_spec
from mtop_batch.experiments.runs.speed import speed_digest
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.tasks import Task
from mtop_batch.training.one_process import Encoder
from tests.conftest import WORDS, make_tokenizer

TOPICS = {"sport": "match goal team player cup".split(), "business": "bank market profit shares economy".split()}
SIZES = {"train": 24, "eval": 12, "test": 12}
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


def write_data_set(root: Path) -> Path:
    """Two topics and how many of a topic's words there are: a `tasks.toml`."""
    tasks = []
    for topic in TOPICS:
        parts = {part: _examples(random.Random(f"{topic}/{part}"), topic, size) for part, size in SIZES.items()}
        tasks.append(TaskExamples(Task(topic, text=("headline",)), parts))  # type: ignore[arg-type]
    counts = {}
    for part, size in SIZES.items():
        found = _examples(random.Random(f"count/{part}"), "sport", size)
        texts = found["headline"].to_pylist()
        values = [float(sum(word in TOPICS["sport"] for word in text.split())) for text in texts]
        counts[part] = found.set_column(1, "label", pa.array(values, pa.float32()))
    tasks.append(TaskExamples(Task("count", "regression", (), ("headline",)), counts))  # type: ignore[arg-type]
    write_tasks(str(root), tasks, "a test")
    return root / "tasks.toml"


def _examples(rng: random.Random, topic: str, size: int) -> pa.Table:
    labels = [("no", "yes")[number % 2] for number in range(size)]
    own = [rng.choices(TOPICS[topic], k=2) if label == "yes" else [] for label in labels]
    texts = [" ".join([*rng.choices(WORDS, k=4), *words]) for words in own]
    return pa.table({"headline": texts, "label": labels})


@pytest.fixture(scope="session")
def tasks_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="session")
def data_set(tasks_file: Path) -> DataSet:
    return with_unlabelled(read_data_set("news", str(tasks_file)), None, 100)


@pytest.fixture(scope="session")
def many_set(data_set: DataSet) -> DataSet:
    """A dozen tasks of sites and a very large one, for a quick trial: methods of a hundred tasks are judged on ten."""
    tasks = (*copies(data_set.tasks[0], 12), _named(data_set.tasks[1], LARGE))
    return DataSet("many", tasks, "of many", scale=0.1)


@pytest.fixture(scope="session")
def prepared_many(many_set: DataSet) -> Prepared:
    return prepare(many_set, TextTokenizer(make_tokenizer(), 16), None)


@pytest.fixture(scope="session")
def prepared(data_set: DataSet) -> Prepared:
    return prepare(data_set, TextTokenizer(make_tokenizer(), 16), None)


@pytest.fixture
def encoder(backbone_dir: Path) -> Encoder:
    return Encoder(load_backbone(str(backbone_dir)), make_tokenizer())


def chooses_tasks(name: str) -> bool:
    """Whether the method learns other tasks of a set than the first hundred."""
    chosen = METHODS.get(name)
    return chosen is not None and (chosen.judged not in (None, JUDGED) or chosen.learns is not None)


MakeSpec = Callable[..., RunSpec]


@pytest.fixture
def spec_of(data_set: DataSet, many_set: DataSet) -> MakeSpec:
    """`spec_of(method, seed=0, **train)`: a short run; of methods that choose among many tasks, on such a set."""

    def make(method: str, seed: int = 0, **train: Any) -> RunSpec:
        warm = {"warm_start": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}} if "mtop" in method else {}
        settings = RunSettings("tiny", max_tokens=16, train={**QUICK, **warm, **train})
        spec = make_spec(method, seed, many_set if chooses_tasks(method) else data_set, settings)
        model = {**spec.model, "pooler_rank": 8} if "pooler_rank" in spec.model else spec.model  # it is a tiny encoder
        if model.get("prompt_layers"):  # and it has two layers
            model = {**model, "prompt_layers": min(2, model["prompt_layers"])}
        return replace(spec, model=model)

    return make


@pytest.fixture
def made_up(data_set: DataSet) -> Callable[..., Records]:
    """`made_up({"mtop": 0.9, ...}, seeds)`: records of methods that are right so often.

    Those of many tasks are judged on twenty of different sizes, and may learn a few more and a large one.
    """

    def make(rates: dict[str, float], seeds: int = 5, table_data: str = "news") -> Records:
        used = DataSet(table_data, data_set.tasks, data_set.digest)
        if table_data == "many":
            large = _named(data_set.tasks[1], LARGE)
            used = replace(used, tasks=(*copies(data_set.tasks[0], 22), large), scale=0.2)
        records = Records()
        for method, rate in rates.items():
            _, judged = tasks_of(METHODS[method], used)
            records.data[judged.digest] = DataRecord.of(judged)
            for seed in range(seeds):
                spec = make_spec(method, seed, used, RunSettings("tiny"))
                records.runs.append(_record(spec, judged, rate, np.random.default_rng((seed, len(method)))))
            records.speeds.append(_speed(spec, 100.0 * len(method)))
        return records

    return make


def copies(task: RawTask, count: int) -> list[RawTask]:
    """The task under many names, each with one training example less than the one before."""
    found = []
    for number in range(count):
        train = replace(
            task.train, texts=task.train.texts[: -number or None], labels=task.train.labels[: -number or None]
        )
        found.append(replace(_named(task, f"{task.config.name}_{number}"), train=train))
    return found


def _named(task: RawTask, name: str) -> RawTask:
    return replace(task, config=task.config.model_copy(update={"name": name}))


def _record(spec: RunSpec, data: DataSet, rate: float, rng: np.random.Generator) -> RunRecord:
    predictions, dev = {}, {}
    for task in data.tasks:
        labels = task.test.labels
        right = rng.random(len(labels)) < rate
        if task.config.kind == "regression":
            predictions[task.config.name] = pack(labels + rng.normal(size=len(labels)) * (1 - rate))
            dev[task.config.name] = {"pearson_spearman": rate, "loss": 1.0}
        else:
            predictions[task.config.name] = pack(np.where(right, labels, 1 - labels))
            dev[task.config.name] = {"accuracy": rate, "loss": 1.0}
    history = [
        {"step": 10 * epoch, "epoch": float(epoch), "mean": rate, "tasks": dict.fromkeys(dev, rate - 0.1 / epoch)}
        for epoch in (1, 2)
    ]
    passes = 1 if METHODS[spec.method].model["kind"] in ("mtop", "mt-dnn") else len(dev)
    return RunRecord(
        spec=spec,
        dev=dev,
        test=dev,
        predictions=predictions,
        history=history,
        best_step=20,
        num_steps=20,
        passes=passes,
        parameters={"total": 1000.0, "backbone": 900.0, "per_task": 12.5},
        seconds={"train": 60.0, "test": 1.0},
        machine={"gpu": None, "cpu": "a processor", "cores": 2, "precision": "fp32"},
        versions={"torch": "2.13.0"},
        finished="2026-11-26T12:00:00+00:00",
    )


def _speed(spec: RunSpec, documents_per_s: float) -> SpeedRecord:
    return SpeedRecord(
        digest=speed_digest(spec),
        method=spec.method,
        model=spec.model,
        data=spec.data,
        data_digest=spec.data_digest,
        backbone=spec.backbone,
        documents=100,
        documents_per_s=documents_per_s,
        precision="fp32",
        machine={"gpu": None, "cpu": "a processor", "cores": 2},
    )


def write_records(records: Records, results: Path) -> None:
    """All records as files."""
    results.mkdir(parents=True, exist_ok=True)
    for run in records.runs:
        (results / f"{run.spec.digest}.json").write_bytes(run.to_json())
    for data in records.data.values():
        (results / f"data-{data.digest}.json").write_bytes(data.to_json())
    for speed in records.speeds:
        (results / f"speed-{speed.digest}.json").write_bytes(speed.to_json())
