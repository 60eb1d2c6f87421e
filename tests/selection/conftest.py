"""Small tasks around topics: a primary one, one that asks the same, one of noise, and those of other kinds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtop_batch.config.load import validate
from mtop_batch.config.sections import Config
from mtop_batch.data.examples import with_label_scale
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.selection.jobs import Jobs
from mtop_batch.tasks import Task
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import TaskData
from tests.conftest import WORDS, make_backbone, make_tokenizer

SPORT = "match goal team player cup".split()
BUSINESS = "bank market profit shares economy".split()
KINDS: dict[str, dict[str, Any]] = {
    "sport": {"labels": ["no", "yes"]},
    "twin": {"labels": ["no", "yes"]},
    "noise": {"labels": ["no", "yes"]},
    "count": {"kind": "regression"},
    "themes": {"kind": "multi-label", "labels": ["sport", "business"]},
}


def make_task_data(name: str, size: int = 48, seed: int = 0) -> TaskData:
    """The task with so many training examples, and half as many to evaluate on."""
    values = KINDS[name]
    task = Task(name, values.get("kind", "classification"), tuple(values.get("labels", ())), reads="pooled")
    train, eval_ = (
        _examples(task, number, f"{name}/{part}/{seed}") for part, number in (("t", size), ("e", size // 2))
    )
    return TaskData(with_label_scale(task, train), train, eval_)


def _examples(task: Task, size: int, seed: str) -> LabelledTokens:
    rng = random.Random(seed)
    texts, labels = [], []
    for number in range(size):
        has = number % 2 == 1
        other = rng.random() < 0.5
        words = [*rng.choices(WORDS[15:], k=4), *(rng.choices(SPORT, k=2) if has else [])]
        words += rng.choices(BUSINESS, k=2) if other and task.is_multi_label else []
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append({"noise": rng.randrange(2), "count": 2.0 * has, "themes": [has, other]}.get(task.name, int(has)))
    types = {"regression": np.float32, "multi-label": np.bool_}
    tokens = TextTokenizer(make_tokenizer(), 16).encode(texts)
    return LabelledTokens(tokens, np.array(labels, dtype=types.get(task.kind, np.int64)))


def make_config(names: list[str], model: dict[str, Any] | None = None, **train: Any) -> Config:
    files = {"train": "train.parquet", "eval": "eval.parquet"}
    values = {
        "output": "models/it",
        "backbone": {"name": "tiny", "max_tokens": 16},
        "model": model or {"kind": "mt-dnn"},
        "train": {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, **train},
        "task": [{"name": name, **KINDS[name], **files} for name in names],
    }
    return validate(values, "a test")


def make_jobs(names: list[str], model: dict[str, Any] | None = None, size: int = 48, **train: Any) -> Jobs:
    data = {name: make_task_data(name, size) for name in names}
    return Jobs(make_config(names, model, **train), data, make_backbone())


@pytest.fixture
def encoder(backbone_dir: Path) -> Encoder:
    return Encoder(make_backbone(), make_tokenizer())
