"""Small models of the kinds that MTOP is compared with, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS
from mtop_batch.tasks import Task
from tests.conftest import make_backbone

RIVALS = ("mt-dnn", "single-task", "p-tuning", "p-tuning-v2", "ca-mtl")
PER_TASK = tuple(kind for kind in RIVALS if kind != "mt-dnn")


def tasks_of(kind: str) -> tuple[Task, ...]:
    """Two classifications and a regression that read what the kind has."""
    reads = KINDS[kind].readers[0]
    return (
        Task("sport", reads=reads),
        Task("mood", labels=("sad", "calm", "glad"), reads=reads),
        Task("length", "regression", labels=(), reads=reads),
    )


def make_rival(
    kind: str, tasks: Sequence[Task] = (), backbone: PreTrainedModel | None = None, **settings: Any
) -> MultiTaskModel:
    """A model of that kind around the tiny ELECTRA; what the kind adds is made so large that tests notice it."""
    model = KINDS[kind].from_backbone(
        backbone or make_backbone(), tasks or tasks_of(kind), **{"max_tokens": 16, **settings}
    )
    in_backbone = {id(parameter) for encoder in model.encoders for parameter in encoder.parameters()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = name.endswith("norm.weight")
            if id(parameter) not in in_backbone and not is_norm:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
