"""A real local Ray, and small learnable tasks in Parquet files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.sections import Config
from tests.conftest import WORDS
from tests.s3 import S3Server
from tests.shared_ray import start_shared_ray, stop_shared_ray

TOPICS = {"sport": "match goal team player cup".split(), "business": "bank market profit shares economy".split()}


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """The Ray of this test process. Ray Train's driver looks often, for trainings here are over in seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setattr("mtop_batch.engine.training.single_tasks.POLL_S", 0.1)
        start_shared_ray()
        yield


@pytest.fixture(scope="module")
def s3_environment(s3_service: S3Server) -> Iterator[None]:
    """The AWS variables; to be asked for before `ray_local`, so that the workers of a new Ray have them."""
    stop_shared_ray()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_service.environment.items():
            environment.setenv(name, value)
        yield
        stop_shared_ray()


@pytest.fixture(scope="session")
def dropout_backbone_dir(backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone with dropout, so that random numbers matter."""
    path = tmp_path_factory.mktemp("backbone") / "dropout"
    shutil.copytree(backbone_dir, path)
    config = json.loads((path / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def task_tables(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """`[[task]]` tables of two topics, with 48 training and 24 evaluation examples each."""
    root = tmp_path_factory.mktemp("tasks")
    return [_write_task(root, topic, seed) for seed, topic in enumerate(TOPICS)]


MakeConfig = Callable[..., Config]


@pytest.fixture(scope="session")
def make_config(backbone_dir: Path, task_tables: list[dict[str, Any]]) -> MakeConfig:
    """`make_config(output, train={...}, ...)`: a short training of both tasks; what is given goes on top.

    Models begin as in the paper, with each task alone: that has most steps.
    """

    def make(output: str | Path, **sections: dict[str, Any]) -> Config:
        values: dict[str, Any] = {
            "output": str(output),
            "backbone": {"name": str(backbone_dir), "max_tokens": 16},
            "train": {"epochs": 5, "batch_size": 8, "learning_rate": 3e-3, "warm_start": {"epochs": 1}},
            "task": task_tables,
        }
        if sections.get("model", {}).get("kind", "mtop") == "mtop":
            values["model"] = {"prompt_init": "single-task", "pooler_init": "single-task"}
        for name, given in sections.items():
            values[name] = {**values.get(name, {}), **given}
        return Config.model_validate(values)

    return make


def _write_task(root: Path, topic: str, seed: int) -> dict[str, Any]:
    paths = {"train": root / topic / "train.parquet", "eval": root / topic / "eval.parquet"}
    for split, count in (("train", 48), ("eval", 24)):
        rng = random.Random(f"{seed}/{split}")
        rows = [_example(rng, topic, label) for label in ("no", "yes") * (count // 2)]
        paths[split].parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), paths[split])
    sources = {split: str(path) for split, path in paths.items()}
    return {"name": topic, "labels": ["no", "yes"], "text": ["headline"], **sources}


def _example(rng: random.Random, topic: str, label: str) -> dict[str, str]:
    others = [word for word in WORDS if word not in TOPICS[topic]]
    words = rng.choices(others, k=rng.randint(1, 4)) + rng.choices(TOPICS[topic] if label == "yes" else others, k=4)
    rng.shuffle(words)
    return {"headline": " ".join(words), "label": label}
