"""Tasks that choose among prompt groups while they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.prompts import GroupChoice
from mtop_batch.tasks import Task
from tests.model.conftest import TASKS, Batch, MakeModel

MORE_TASKS = (*TASKS, Task("tone", labels=("calm", "loud")))
GROUPS = {"topic": "a", "type": "b", "score": "c", "tone": "a"}
OPEN = ["topic", "type", "score"]


def open_model(make_model: MakeModel, **settings: Any) -> MTOPModel:
    """Three groups that three tasks choose among; "tone" stays in one of them."""
    model = make_model(MORE_TASKS, prompt_attention="isolated", prompt_groups=GROUPS, **settings)
    model.open_groups(OPEN)
    return model


def choice_of(model: MTOPModel, task: str) -> GroupChoice:
    choice = model.task_module(task).choice
    assert choice is not None
    return choice


def prefer(model: MTOPModel, task: str, group: str) -> None:
    choice = choice_of(model, task)
    with torch.no_grad():
        choice.logits[choice.groups.index(group)] = 5.0


def loss_of(model: MTOPModel, batch: Batch, task: str, labels: list[int]) -> Tensor:
    loss: Tensor = model(**batch, task=task, labels=torch.tensor(labels)).loss
    return loss


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"shared_prompts": 2}, {"prompt_layers": 1}])
def test_a_task_reads_its_best_group_and_nothing_of_the_others(
    make_model: MakeModel, batch: Batch, settings: dict[str, Any]
) -> None:
    closed = make_model(
        MORE_TASKS, prompt_attention="isolated", prompt_groups={**GROUPS, "type": "a", "score": "b"}, **settings
    )
    model = open_model(make_model, **settings)
    for name in ("topic", "type"):  # groups "a" and "b" there
        for task in [task for task, group in GROUPS.items() if group == GROUPS[name]]:
            closed.load_task(task if task in ("topic", "tone") else "score", {"prompts": model.prompts(name)})
    for name in OPEN:
        tensors = {key: value for key, value in model.task_tensors(name).items() if "choice" not in key}
        closed.load_task(name, {key: value for key, value in tensors.items() if key != "prompts"})
    prefer(model, "type", "a")
    prefer(model, "score", "b")
    for name in OPEN:
        while_training = model.train()(**batch, task=name).logits
        torch.testing.assert_close(while_training, closed(**batch, task=name).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.eval().all_tasks(**batch), closed.all_tasks(**batch), atol=1e-5, rtol=0)


def test_the_choice_learns_as_from_the_mixture(make_model: MakeModel, batch: Batch) -> None:
    """The gradient of the logits is that of a softmax mixture, linear in the outputs around those that are read."""
    model = open_model(make_model).train()
    choice, module = choice_of(model, "topic"), model.task_module("topic")
    outputs = model._at_groups("topic", choice, Text(batch["input_ids"], batch["attention_mask"], None)).detach()
    read = outputs[:, choice.best].requires_grad_()
    torch.nn.functional.cross_entropy(module(read), torch.tensor([0, 1, 2])).backward()
    assert read.grad is not None
    worth = (outputs * read.grad[:, None]).sum(dim=(0, 2, 3))  # of each group
    shares = choice.logits.detach().softmax(dim=0)
    model.zero_grad()
    loss_of(model, batch, "topic", [0, 1, 2]).backward()
    assert choice.logits.grad is not None
    torch.testing.assert_close(choice.logits.grad, shares * (worth - (shares * worth).sum()), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_step_leaves_the_groups_that_are_not_read_alone(
    make_model: MakeModel, batch: Batch, stop_gradient: bool
) -> None:
    model = open_model(make_model, stop_gradient=stop_gradient).train()
    prefer(model, "topic", "b")
    loss_of(model, batch, "topic", [0, 1, 2]).backward()
    assert model.group_prompts("b").grad is not None
    assert model.group_prompts("b").grad.abs().max() > 0  # type: ignore[union-attr]
    for group in ("a", "c"):
        gradient = model.group_prompts(group).grad
        assert gradient is None if stop_gradient else not gradient.any()  # type: ignore[union-attr]
    assert choice_of(model, "type").logits.grad is None


@torch.no_grad()
def test_settled_tasks_stay_where_they_are_and_empty_groups_go(make_model: MakeModel, batch: Batch) -> None:
    model = open_model(make_model)
    prefer(model, "score", "b")
    before = model.train().eval().all_tasks(**batch)
    model.settle()
    assert torch.equal(model.all_tasks(**batch), before)
    assert {task.name: task.prompt_group for task in model.task_prompts} == {**GROUPS, "score": "b"}
    assert sorted(model.prompt_groups) == ["group_a", "group_b"]
    assert not [name for name in model.state_dict() if "choice" in name]
    model.settle()  # nothing is open
    assert torch.equal(model.all_tasks(**batch), before)


@torch.no_grad()
def test_all_tasks_at_once_follow_the_choices_while_they_train(make_model: MakeModel, batch: Batch) -> None:
    model = open_model(make_model).train()
    prefer(model, "type", "c")
    logits = model.all_tasks(**batch)
    for place, task in enumerate(model.tasks):
        alone = model(**batch, task=task.name).logits
        torch.testing.assert_close(logits[:, place, : task.num_outputs], alone, atol=1e-5, rtol=0)
