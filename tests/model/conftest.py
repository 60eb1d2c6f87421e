"""Tasks, models and batches shared by the model's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone

TASKS = (
    Task("topic", labels=("sport", "film", "money"), text=("title",)),
    Task("type", labels=("no", "yes"), text=("title", "body")),
    Task("score", kind="regression", labels=()),
)
MakeModel = Callable[..., MTOPModel]
Batch = dict[str, Any]


@pytest.fixture
def make_model() -> MakeModel:
    """`make_model(prompt_attention=..., ...)`: three tasks on the tiny ELECTRA; prompts and heads made large."""

    def make(tasks: tuple[Task, ...] = TASKS, **settings: Any) -> MTOPModel:
        model = MTOPModel.from_backbone(
            make_backbone(), tasks, **{"max_tokens": 40, "prompt_attention": "joint", **settings}
        )
        enlarge(model)
        return model

    return make


def enlarge(model: MTOPModel, names: Sequence[str] | None = None) -> None:
    """Scale prompts and loras up, so that a test notices what they do; a fresh start hardly does anything."""
    wanted = [name for name in (model.task_names if names is None else names) if model.reads_prompts(name)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for prompts in {model.prompts(name) for name in wanted}:
            prompts.mul_(30)
        for lora in [lora for name in wanted if (lora := model.task_module(name).lora) is not None]:
            for up in lora.B:
                up.copy_(torch.randn(up.shape, generator=generator) / 4)


@pytest.fixture
def batch() -> Batch:
    """Three texts of 12, 7 and 2 tokens, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 80, (3, 12), generator=generator)
    lengths = torch.tensor([12, 7, 2])
    attention_mask = (torch.arange(12) < lengths[:, None]).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}
