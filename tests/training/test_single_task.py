from __future__ import annotations

import pytest
import torch

from mtop_batch.errors import TaskError
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, TrainSettings
from mtop_batch.training.single_task import LearnedTask, train_single_task
from tests.training.toy import make_examples, make_model, make_settings

ADDED = Task("added")


def data(task: Task = ADDED) -> TaskData:
    return TaskData(task, make_examples(task, 60, seed=1), make_examples(task, 30, seed=2))


def add(model: MTOPModel, data: TaskData, settings: TrainSettings, prompts: int, lora_rank: int = 0) -> LearnedTask:
    """Add a task and learn it, as `mtop add-tasks` does."""
    model.add_tasks([data.task], prompts_per_task=prompts, lora_rank=lora_rank, seed=settings.seed, replace=True)
    return train_single_task(model, data, settings)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_a_task_is_learned_and_nothing_else_changes(attention: str, lora_rank: int) -> None:
    model = make_model(prompt_attention=attention)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = make_settings(epochs=30, learning_rate=1e-2)
    added = add(model, data(), settings, 3, lora_rank)
    assert added.metrics["accuracy"] > 0.8
    assert added.tensors["prompts"].shape == (3, 16)
    lora = [name for name in added.tensors if name.startswith("lora.B")]
    assert all(added.tensors[name].any() for name in lora)
    assert bool(lora) == bool(lora_rank)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() - before.keys() == {f"task_modules.task_added.{name}" for name in added.tensors}


def test_what_is_learned_does_not_depend_on_other_isolated_tasks() -> None:
    learned = []
    for others in ([], [Task("other")]):
        model = make_model(prompt_attention="isolated")
        if others:
            model.add_tasks(others)
        added = add(model, data(), make_settings(epochs=2), 2)
        learned.append(added.tensors)
    torch.testing.assert_close(*learned, atol=0, rtol=0)


def test_an_isolated_task_is_learned_anew_in_its_place_and_a_joint_one_is_not() -> None:
    settings = make_settings(epochs=1)
    isolated = make_model(prompt_attention="isolated")
    add(isolated, data(Task("sport")), settings, 4)
    assert isolated.task_names == ["sport", "mood"]
    assert [prompts.num_prompts for prompts in isolated.task_prompts] == [4, 2]
    with pytest.raises(TaskError, match="'sport' cannot be removed or replaced"):
        add(make_model(), data(Task("sport")), settings, 4)
