from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtop_batch.model.kinds.mtop import MTOPModel
from tests.model.conftest import Batch, MakeModel

LABELS: dict[str, Tensor] = {
    "topic": torch.tensor([0, 1, 2]),
    "type": torch.tensor([0, 1, 1]),
    "score": torch.tensor([0.5, -1.0, 2.0]),
}


def step(model: MTOPModel, optimiser: torch.optim.Optimizer, batch: Batch, task: str) -> None:
    optimiser.zero_grad()
    model(**batch, task=task, labels=LABELS[task]).loss.backward()
    optimiser.step()


def changed_tasks(make_model: MakeModel, batch: Batch, part: str, **settings: Any) -> set[str]:
    """Tasks of which `part` changes in a step on "type", after AdamW has built up momentum on all tasks."""
    model = make_model(**settings).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for task in LABELS:
        step(model, optimiser, batch, task)
    before = {task: model.task_tensors(task) for task in LABELS}
    step(model, optimiser, batch, "type")
    return {task for task in LABELS if not torch.equal(before[task][part], model.task_tensors(task)[part])}


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize("part", ["prompts", "pooler.weight", "pooler.bias", "head.weight"])
def test_a_step_moves_the_parameters_of_its_task_only(
    make_model: MakeModel, batch: Batch, attention: str, part: str
) -> None:
    assert changed_tasks(make_model, batch, part, prompt_attention=attention) == {"type"}


def test_without_the_stop_all_joint_prompts_move_but_no_other_heads(make_model: MakeModel, batch: Batch) -> None:
    assert changed_tasks(make_model, batch, "prompts", stop_gradient=False) == set(LABELS)
    assert changed_tasks(make_model, batch, "head.weight", stop_gradient=False) == {"type"}


def test_backbone_and_shared_prompts_learn_from_every_task(make_model: MakeModel, batch: Batch) -> None:
    for attention in ("joint", "isolated"):
        model = make_model(prompt_attention=attention, shared_prompts=1).train()
        for task in LABELS:
            model.zero_grad()
            model(**batch, task=task, labels=LABELS[task]).loss.backward()
            assert model.shared_prompts is not None
            assert model.shared_prompts.grad is not None
            assert model.shared_prompts.grad.abs().sum() > 0
            assert all(p.grad is not None for p in model.backbone.parameters())


def test_the_stop_changes_no_gradient_of_the_task_itself(make_model: MakeModel, batch: Batch) -> None:
    gradients = []
    for stop_gradient in (True, False):
        model = make_model(stop_gradient=stop_gradient).train()
        model(**batch, task="type", labels=LABELS["type"]).loss.backward()
        gradients.append([p.grad for p in model.task_parameters("type")])
    torch.testing.assert_close(*gradients)
