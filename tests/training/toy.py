"""Two tasks that a tiny encoder learns in a hundred steps, and what is needed to train on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ElectraModel

from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.entities.tags import find_entities, tags_of_words
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, TrainSettings
from tests.conftest import make_backbone

TASKS = (Task("sport"), Task("mood", labels=("sad", "calm", "glad")))


def make_examples(task: Task, count: int, seed: int) -> LabelledTokens:
    """Rows of 4 to 9 tokens whose second token gives the label away; of a multi-label task a token for each label, and
    of a token task one for each tag.
    """
    rng = np.random.default_rng(seed)
    if task.is_token:
        return make_entities(task, count, rng)
    if task.is_multi_label:
        has_label = rng.random((count, task.num_outputs)) < 0.4
        lists = [[10 + label for label in np.flatnonzero(row)] for row in has_label]
        rows = [[2, *found, *rng.integers(20, 60, size=rng.integers(1, 5)), 3] for found in lists]
        return LabelledTokens(Tokens.from_rows(rows), has_label)
    labels = rng.integers(task.num_outputs, size=count)
    rows = [[2, 10 + label, *rng.integers(20, 60, size=rng.integers(1, 7)), 3] for label in labels]
    if task.kind == "regression":
        labels = rng.normal(size=count).astype(np.float32)
    return LabelledTokens(Tokens.from_rows(rows), labels)


def make_entities(task: Task, count: int, rng: np.random.Generator) -> LabelledTokens:
    """Rows of 3 to 8 words of one token each; token 10 + t stands for tag t, and others for none."""
    rows, entities, words = [], [], []
    for _ in range(count):
        tags: list[int] = []
        for tag in rng.integers(task.num_outputs, size=rng.integers(3, 9)).tolist():
            tags.append(tag - 1 if tag and not tag % 2 and (not tags or tags[-1] not in (tag, tag - 1)) else tag)
        rows.append([2, *(10 + tag if tag else int(rng.integers(20, 60)) for tag in tags), 3])
        own = np.array(
            [[-1, 0, 0], *([0, 2 * place, 2 * place + 1] for place in range(len(tags))), [-1, 0, 0]], np.int32
        )
        words.append(own)
        sure = np.where(np.arange(task.num_outputs) == np.array(tags)[:, None], 0.0, -9.0).astype(np.float32)
        entities.append(find_entities(own[1:-1], np.zeros(len(tags), np.int64), sure, 1)[0])
    given = Entities.concat(entities)
    tokens = replace(Tokens.from_rows(rows), words=np.concatenate(words))
    tags_of = [tags_of_words(own, given.row(row))[0] for row, own in enumerate(words)]
    return LabelledTokens(tokens, given.has_type(len(task.labels)), None, given, np.concatenate(tags_of))


def make_data(sizes: tuple[int, ...] = (40, 24), tasks: tuple[Task, ...] = TASKS) -> list[TaskData]:
    """Training examples of the given sizes, and twelve to evaluate on."""
    return [
        TaskData(task, make_examples(task, size, seed=index), make_examples(task, 12, seed=100 + index))
        for index, (task, size) in enumerate(zip(tasks, sizes, strict=True))
    ]


def make_encoder(dropout: float = 0.0) -> ElectraModel:
    """The tiny ELECTRA with weights so large that its outputs tell texts apart, as a pretrained one's do."""
    backbone = make_backbone()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return backbone


def make_model(
    dropout: float = 0.0,
    tasks: tuple[Task, ...] = TASKS,
    prompt_attention: PromptAttention = "joint",
    prompt_groups: Mapping[str, str] | None = None,
    pooler_rank: int = 0,
) -> MTOPModel:
    """The toy encoder with the tasks' prompts, poolers and heads."""
    return MTOPModel.from_backbone(
        make_encoder(dropout),
        tasks,
        prompt_attention=prompt_attention,
        prompt_groups=prompt_groups,
        pooler_rank=pooler_rank,
        max_tokens=16,
    )


def make_settings(**changes: Any) -> TrainSettings:
    """Short and steep: four epochs of batches of eight."""
    values = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "warmup_fraction": 0.1, **changes}
    return TrainSettings(**values)
