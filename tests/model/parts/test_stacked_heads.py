"""All tasks' poolers and heads as a few products are those of the tasks one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mtop_batch.model.parts import stacked_heads
from mtop_batch.model.parts.heads import TaskModule
from mtop_batch.model.parts.stacked_heads import StackedTasks

PROMPTS = [range(1, 3), range(3, 4), range(5, 9), range(9, 11)]
"""Where four sets of prompts stand among eleven positions."""
READ = {
    "every task its own": [0, 1, 2, 3],
    "all the same": [2, 2, 2, 2, 2],
    "sets of one, two and three": [3, 0, 3, 1, 2, 1, 3],
    "sets of two": [0, 3, 2, 2, 3, 0, 1, 1],
}


def make_modules(count: int, pooler_rank: int) -> list[TaskModule]:
    modules = []
    for index in range(count):
        module = TaskModule(0, (3, 1, 7, 2)[index % 4], 16, 32, pooler_rank)
        module.initialise(torch.Generator().manual_seed(index))
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
        modules.append(module)
    return modules


def one_by_one(modules: list[TaskModule], positions: list[range], outputs: Tensor) -> Tensor:
    most = max(module.head.out_features for module in modules)
    logits = torch.full((len(outputs), len(modules), most), -torch.inf)
    for index, (module, own) in enumerate(zip(modules, positions, strict=True)):
        logits[:, index, : module.head.out_features] = module(outputs[:, list(own)])
    return logits


@torch.no_grad()
@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("pooler_rank", [0, 5])
@pytest.mark.parametrize("tasks_at_once", [1, 2, 100])
def test_stacked_tasks_equal_single_ones(
    read: list[int], pooler_rank: int, tasks_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = torch.randn(6, 11, 32)
    monkeypatch.setattr(stacked_heads, "MAX_VALUES", tasks_at_once * 6 * 32)
    modules, positions = make_modules(len(read), pooler_rank), [PROMPTS[index] for index in read]
    logits = StackedTasks.stack(modules, positions)(outputs)
    torch.testing.assert_close(logits, one_by_one(modules, positions, outputs), atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooler_rank", [0, 5])
def test_activations_stay_within_their_bound(pooler_rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    baddbmm = torch.baddbmm

    def watched(*arguments: Tensor) -> Tensor:
        result = baddbmm(*arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "baddbmm", watched)
    monkeypatch.setattr(stacked_heads, "MAX_VALUES", 1000)
    modules = make_modules(40, pooler_rank)
    StackedTasks.stack(modules, [PROMPTS[index % 3] for index in range(40)])(torch.randn(6, 11, 32))
    assert sum(sizes) == 40 * 6 * 32
    assert max(sizes) <= 1000


@torch.no_grad()
def test_under_autocast_stacks_are_kept_in_its_type_but_for_the_last_layer() -> None:
    modules, outputs = make_modules(4, 0), torch.randn(6, 11, 32)
    stacked = StackedTasks.stack(modules, [PROMPTS[0]] * 4, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = stacked(outputs)
        one = modules[0](outputs[:, PROMPTS[0].start : PROMPTS[0].stop])
    exact = one_by_one(modules, [PROMPTS[0]] * 4, outputs)
    assert {block.bias.dtype for block in stacked.blocks} == {torch.bfloat16}
    assert (rough.dtype, one.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.05)


def test_gradients_reach_every_parameter() -> None:
    modules = make_modules(5, 3)
    logits = StackedTasks.stack(modules, [PROMPTS[index % 2] for index in range(5)])(torch.randn(6, 11, 32))
    logits[logits.isfinite()].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for m in modules for parameter in m.parameters())
