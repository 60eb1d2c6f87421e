from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.errors import DataError
from mtop_batch.model.parts.prompts import TaskPrompts, attention_mask_of, prompt_layout, random_prompts, token_prompts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def tasks_and_wanted(draw: st.DrawFn) -> tuple[list[TaskPrompts], int, list[str]]:
    count = draw(st.integers(1, 6))
    tasks = [TaskPrompts(f"t{i}", draw(st.integers(1, 3)), draw(st.booleans())) for i in range(count)]
    for i, task in enumerate(tasks):
        if shares := draw(st.sampled_from([None, *tasks[:i]])):
            group = shares.prompt_group or shares.name
            tasks[i] = task._replace(num_prompts=shares.num_prompts, isolated=shares.isolated, prompt_group=group)
            tasks[tasks.index(shares)] = shares._replace(prompt_group=group)
    return tasks, draw(st.integers(0, 3)), draw(st.lists(st.sampled_from([t.name for t in tasks]), unique=True))


@given(tasks_and_wanted())
def test_the_layout_holds_the_context_and_the_wanted_tasks(case: tuple[list[TaskPrompts], int, list[str]]) -> None:
    tasks, num_shared, wanted = case
    layout = prompt_layout(tasks, num_shared, wanted)
    assert set(layout.positions) == {t.name for t in tasks if not t.isolated or t.name in wanted}
    covered = [i for name in layout.owners for i in layout.positions[name]]
    assert [*range(num_shared), *covered] == list(range(len(layout.groups)))
    present = [task for task in tasks if task.name in layout.positions]
    for task in present:
        own = layout.positions[task.name]
        sharing = [t for t in present if task.prompt_group is not None and t.prompt_group == task.prompt_group]
        assert {t.name for t in present if layout.positions[t.name] == own} == {task.name, *(t.name for t in sharing)}
        groups = {layout.groups[i] for i in own}
        others = {layout.groups[i] for other in layout.positions.values() if other != own for i in other}
        assert groups == {0} if not task.isolated else len(groups) == 1 and not groups & others


def test_added_tasks_have_a_pass_of_their_own_whatever_the_order_of_the_tasks() -> None:
    old, new = TaskPrompts("old", 2, True), TaskPrompts("new", 3, True, added=True)
    tasks = [new, TaskPrompts("joint", 1, False), old, TaskPrompts("older", 1, True)]
    layout = prompt_layout(tasks, 1, [task.name for task in tasks])
    assert layout.owners == ("joint", "old", "older", "new")
    assert layout.passes == (range(2, 5), range(5, 8))
    assert prompt_layout(tasks, 1, ["new"]).passes == (range(2, 5),)
    assert prompt_layout(tasks, 1, ["joint"]).passes == ()


def test_a_task_that_leaves_its_group_moves_no_prompts() -> None:
    tasks = [TaskPrompts("a", 2, False, "y"), TaskPrompts("b", 1, False), TaskPrompts("c", 1, False, "x")]
    tasks.append(TaskPrompts("d", 2, False, "y"))
    before, after = prompt_layout(tasks, 0, ["b", "c", "d"]), prompt_layout(tasks[1:], 0, ["b", "c", "d"])
    assert after.positions == {name: before.positions[name] for name in ("b", "c", "d")}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_everyone_sees_the_context_and_only_its_own_group_besides(groups: list[int]) -> None:
    sees = attention_mask_of(torch.tensor(groups))
    for q, query in enumerate(groups):
        for k, key in enumerate(groups):
            assert sees[q, k] == (key in (0, query))


def test_random_prompts_are_a_normal_cut_at_two_sigma() -> None:
    prompts = random_prompts((500, 400), generator())
    assert prompts.abs().max() <= 0.04
    # A unit normal cut at two sigma has a standard deviation of 0.8796.
    assert prompts.std().item() == pytest.approx(0.02 * 0.8796, rel=0.01)
    assert prompts.mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.equal(prompts, random_prompts((500, 400), generator()))


def test_token_prompts_are_rows_of_the_most_frequent_tokens() -> None:
    table, counts = torch.randn(100, 8), torch.arange(100)
    prompts = token_prompts(table, counts, 200, generator(), special_ids=[99, 0], vocabulary_size=5)
    drawn = {int((table == prompt).all(dim=1).nonzero()) for prompt in prompts}
    assert drawn == {94, 95, 96, 97, 98}


def test_token_prompts_leave_out_tokens_that_never_occur() -> None:
    table, counts = torch.randn(10, 4), torch.tensor([9, 0, 0, 3, 0, 0, 0, 0, 0, 0])
    assert torch.equal(token_prompts(table, counts, 2, generator(), special_ids=[0]), table[[3, 3]])
    with pytest.raises(DataError, match="no token but special ones"):
        token_prompts(table, counts, 2, generator(), special_ids=[0, 3])
