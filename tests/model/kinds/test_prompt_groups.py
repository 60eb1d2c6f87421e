"""Tasks that share the prompts of a prompt group, each with a pooler and a head of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.bundle.fingerprints import task_fingerprints
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.model.conftest import TASKS, Batch, MakeModel, enlarge
from tests.model.reference import reference_logits

MORE_TASKS = (*TASKS, Task("tone", labels=("calm", "loud")), Task("long", labels=("no", "yes", "maybe", "never")))
GROUPS = {"topic": "b", "score": "b", "long": "a", "tone": "a"}
"""Two groups and a task with prompts of its own; the order of the groups' names is not that of their tasks."""
ADDED = Task("added", labels=("x", "y"))
LABELS = {"topic": [0, 1, 2], "type": [0, 1, 1], "score": [0.5, -1.0, 2.0], "tone": [1, 0, 1], "long": [3, 1, 2]}


@pytest.fixture(params=["joint", "isolated"])
def attention(request: pytest.FixtureRequest) -> str:
    attention: str = request.param
    return attention


@pytest.fixture
def grouped(make_model: MakeModel, attention: str) -> MTOPModel:
    return make_model(MORE_TASKS, prompt_attention=attention, prompt_groups=GROUPS)


def step(model: MTOPModel, optimiser: torch.optim.Optimizer, batch: Batch, task: str) -> None:
    optimiser.zero_grad()
    model(**batch, task=task, labels=torch.tensor(LABELS[task])).loss.backward()
    optimiser.step()


@torch.no_grad()
@pytest.mark.parametrize("shared_prompts", [0, 1])
@pytest.mark.parametrize("pooler_rank", [0, 5])
def test_logits_equal_the_slow_reference(
    make_model: MakeModel, batch: Batch, attention: str, shared_prompts: int, pooler_rank: int
) -> None:
    model = make_model(
        MORE_TASKS,
        prompt_attention=attention,
        prompt_groups=GROUPS,
        shared_prompts=shared_prompts,
        pooler_rank=pooler_rank,
    )
    model.add_tasks([ADDED], prompts_per_task=3)
    enlarge(model)
    logits = model(**batch).logits
    for i, task in enumerate(model.tasks):
        alone = model(**batch, task=task.name).logits
        torch.testing.assert_close(logits[:, i, : task.num_outputs], alone, atol=1e-5, rtol=0)
        assert (logits[:, i, task.num_outputs :] == -torch.inf).all()
        for row, length in enumerate(batch["attention_mask"].sum(dim=1)):
            expected = reference_logits(model, batch["input_ids"][row, :length], task.name)
            torch.testing.assert_close(alone[row], expected, atol=1e-5, rtol=0)


def test_the_sequence_holds_a_groups_prompts_once(grouped: MTOPModel) -> None:
    positions = grouped._layout(grouped.task_names).positions
    assert positions["topic"] == positions["score"]
    assert positions["tone"] == positions["long"]
    assert {position for own in positions.values() for position in own} == set(range(3 * 2))
    assert grouped.prompts("topic") is grouped.prompts("score")
    assert grouped.tasks_sharing("score") == ["topic", "score"]
    assert grouped.tasks_sharing("type") == ["type"]


def test_a_group_costs_only_poolers_and_heads(make_model: MakeModel) -> None:
    own, shared = make_model(MORE_TASKS), make_model(MORE_TASKS, prompt_groups=GROUPS)
    low_rank = make_model(MORE_TASKS, pooler_rank=4)
    assert own.num_parameters() - shared.num_parameters() == 2 * 2 * 16
    assert own.num_parameters() - low_rank.num_parameters() == len(MORE_TASKS) * (32**2 - 2 * 4 * 32)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_step_moves_its_groups_prompts_and_no_others(
    make_model: MakeModel, batch: Batch, attention: str, stop_gradient: bool
) -> None:
    model = make_model(
        MORE_TASKS, prompt_attention=attention, prompt_groups=GROUPS, stop_gradient=stop_gradient
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for task in LABELS:  # every parameter has momentum
        step(model, optimiser, batch, task)
    before = {task: model.task_tensors(task) for task in LABELS}
    step(model, optimiser, batch, "score")
    moved = {
        part: {task for task in LABELS if not torch.equal(before[task][part], model.task_tensors(task)[part])}
        for part in before["score"]
    }
    others = set(LABELS) if attention == "joint" and not stop_gradient else {"topic", "score"}
    assert moved.pop("prompts") == others
    assert moved == {"pooler.weight": {"score"}, "pooler.bias": {"score"}, "head.weight": {"score"}}


@torch.no_grad()
def test_a_group_of_one_is_a_task_with_prompts_of_its_own(make_model: MakeModel, batch: Batch, attention: str) -> None:
    own = make_model(TASKS, prompt_attention=attention)
    alone = make_model(TASKS, prompt_attention=attention, prompt_groups={"topic": "a", "type": "b", "score": "c"})
    for name in own.task_names:
        alone.load_task(name, own.task_tensors(name))
    torch.testing.assert_close(alone.all_tasks(**batch), own.all_tasks(**batch))
    assert task_fingerprints(alone, "t") == task_fingerprints(own, "t")


@torch.no_grad()
def test_a_bundle_holds_one_tensor_per_group(grouped: MTOPModel, batch: Batch, tmp_path: Path) -> None:
    grouped.save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("prompts")]
    assert sorted(names) == [
        "prompt_groups.group_a.prompts",
        "prompt_groups.group_b.prompts",
        "task_modules.task_type.prompts",
    ]
    loaded = MTOPModel.from_pretrained(tmp_path)
    assert loaded.task_prompts == grouped.task_prompts
    assert torch.equal(loaded.all_tasks(**batch), grouped.all_tasks(**batch))
    assert task_fingerprints(loaded, "t") == task_fingerprints(grouped, "t")


@torch.no_grad()
def test_a_fingerprint_covers_the_groups_prompts_and_no_other_task_of_the_group(
    grouped: MTOPModel, attention: str
) -> None:
    before = task_fingerprints(grouped, "t")
    grouped.task_module("topic").head.weight[0, 0].add_(1e-3)
    pooler = task_fingerprints(grouped, "t")
    assert {name for name in before if before[name] != pooler[name]} == {"topic"}
    grouped.prompts("topic")[0, 0].add_(1e-3)
    prompts = task_fingerprints(grouped, "t")
    everyone = {"topic", "score"} if attention == "isolated" else set(before)
    assert {name for name in before if pooler[name] != prompts[name]} == everyone


@torch.no_grad()
def test_dropping_tasks_leaves_the_others_as_they_are(grouped: MTOPModel, batch: Batch, attention: str) -> None:
    before, fingerprints = grouped.all_tasks(**batch), task_fingerprints(grouped, "t")
    grouped.drop_tasks(["topic"])
    after = grouped.all_tasks(**batch)
    torch.testing.assert_close(after, before[:, 1:], atol=1e-6, rtol=0)
    assert task_fingerprints(grouped, "t") == {name: fingerprints[name] for name in grouped.task_names}
    if attention == "joint":
        with pytest.raises(TaskError, match="'score' cannot be removed or replaced"):
            grouped.drop_tasks(["score"])
        with pytest.raises(TaskError, match="'tone' cannot be removed or replaced"):
            grouped.drop_tasks(["long", "tone"])
    else:
        grouped.drop_tasks(["score"])
        assert list(grouped.prompt_groups) == ["group_a"]


@torch.no_grad()
def test_added_tasks_bring_prompts_of_their_own(grouped: MTOPModel, batch: Batch) -> None:
    before, fingerprints = grouped.all_tasks(**batch), task_fingerprints(grouped, "t")
    grouped.add_tasks([ADDED, MORE_TASKS[0]], prompts_per_task=3, seed=1, replace=True)
    assert grouped.task_names == [*(task.name for task in MORE_TASKS), "added"]
    assert [len(grouped.prompts(name)) for name in ("topic", "added", "score")] == [3, 3, 2]
    torch.testing.assert_close(grouped.all_tasks(**batch)[:, 1:5], before[:, 1:], atol=1e-6, rtol=0)
    after = task_fingerprints(grouped, "t")
    assert {name for name in fingerprints if after[name] != fingerprints[name]} == {"topic"}


def test_a_groups_prompts_start_the_same_whatever_its_tasks(make_model: MakeModel) -> None:
    many, one = make_model(MORE_TASKS, prompt_groups=GROUPS), make_model(TASKS[:1], prompt_groups={"topic": "b"})
    for name, tensor in one.task_tensors("topic").items():
        assert torch.equal(tensor, many.task_tensors("topic")[name])
    assert not torch.equal(many.prompts("topic"), many.prompts("tone"))


def test_wrong_groups_and_ranks_say_what_is_allowed(make_model: MakeModel) -> None:
    with pytest.raises(TaskError, match="there is no task 'topics'; did you mean 'topic'"):
        make_model(prompt_groups={"topics": "a"})
    with pytest.raises(ConfigError, match=r"pooler_rank = 32 is not below the width 32 of ElectraModel"):
        make_model(pooler_rank=32)
    with pytest.raises(ConfigError, match="pooler_rank = -1 is negative"):
        make_model(pooler_rank=-1)
