from __future__ import annotations

from typing import Any

import pytest
import torch

from mtop_batch.errors import TaskError
from mtop_batch.families import Family
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, TrainSettings
from mtop_batch.training.single_task import LearnedTask, load_learned, train_family, train_single_task
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


def test_a_new_family_is_learned_with_its_tasks_and_nothing_else_changes() -> None:
    tasks = [Task("added"), Task("names", "token", ("PER", "LOC"))]
    family_of = dict.fromkeys((task.name for task in tasks), "late")
    new: dict[str, Any] = {"families": [Family("late", rank=4, layers=1)], "family_of": family_of}
    model, start = make_model(prompt_attention="isolated"), make_model(prompt_attention="isolated")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.add_tasks(tasks, **new)
    learned = train_family(model, "late", [*map(data, tasks)], make_settings(epochs=12, learning_rate=1e-2))
    assert learned["added"].metrics["accuracy"] > 0.8
    assert learned["names"].metrics["entity_f1"] > 0.8
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    start.add_tasks(tasks, **new)
    for name, task in learned.items():
        load_learned(start, name, task.tensors)
    assert all(torch.equal(start.state_dict()[name], value) for name, value in model.state_dict().items())
    assert all(value.any() for value in start.family_tensors("late").values())


def test_a_task_that_is_added_to_a_family_learns_from_its_pass() -> None:
    model = make_model(prompt_attention="isolated")
    model.add_tasks([Task("first")], families=[Family("late", layers=1)], family_of={"first": "late"})
    with torch.no_grad():
        for value in model.family_parameters("late"):
            value.normal_(generator=torch.Generator().manual_seed(0))
    before = model.family_tensors("late")
    model.add_tasks([ADDED], lora_rank=2, family_of={"added": "late"})
    added = train_single_task(model, data(), make_settings(epochs=30, learning_rate=1e-2))
    assert model.has_fixed_cache(["added"])
    assert added.metrics["accuracy"] > 0.8
    assert all(torch.equal(value, before[name]) for name, value in model.family_tensors("late").items())
