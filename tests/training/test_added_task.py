from __future__ import annotations

import pytest
import torch

from mtop_batch.errors import TaskError
from mtop_batch.tasks import Task
from mtop_batch.training.added_task import train_added_task
from mtop_batch.training.settings import TaskData
from tests.training.toy import PAD, make_examples, make_model, make_settings

ADDED = Task("added")


def data(task: Task = ADDED) -> TaskData:
    return TaskData(task, make_examples(task, 60, seed=1), make_examples(task, 30, seed=2))


@pytest.mark.parametrize("adapter_rank", [0, 2])
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_a_task_is_learned_and_nothing_else_changes(attention: str, adapter_rank: int) -> None:
    model = make_model(prompt_attention=attention)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = make_settings(epochs=30, learning_rate=1e-2)
    added = train_added_task(model, data(), settings, num_prompts=3, adapter_rank=adapter_rank, pad_token_id=PAD)
    assert added.metrics["accuracy"] > 0.8
    assert added.tensors["prompts"].shape == (3, 16)
    adapter = [name for name in added.tensors if name.startswith("adapter.up")]
    assert all(added.tensors[name].any() for name in adapter)
    assert bool(adapter) == bool(adapter_rank)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() - before.keys() == {f"task_modules.task_added.{name}" for name in added.tensors}


def test_what_is_learned_does_not_depend_on_other_isolated_tasks() -> None:
    learned = []
    for others in ([], [Task("other")]):
        model = make_model(prompt_attention="isolated")
        if others:
            model.add_tasks(others)
        added = train_added_task(model, data(), make_settings(epochs=2), num_prompts=2, pad_token_id=PAD)
        learned.append(added.tensors)
    torch.testing.assert_close(*learned, atol=0, rtol=0)


def test_an_isolated_task_is_learned_anew_in_its_place_and_a_joint_one_is_not() -> None:
    settings = make_settings(epochs=1)
    isolated = make_model(prompt_attention="isolated")
    train_added_task(isolated, data(Task("sport")), settings, num_prompts=4, pad_token_id=PAD)
    assert isolated.task_names == ["sport", "mood"]
    assert [prompts.num_prompts for prompts in isolated.task_prompts] == [4, 2]
    with pytest.raises(TaskError, match="'sport' cannot be removed or replaced"):
        train_added_task(make_model(), data(Task("sport")), settings, num_prompts=4, pad_token_id=PAD)
