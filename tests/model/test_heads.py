from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mtop_batch.model.heads import StackedTasks, TaskModule, task_loss
from mtop_batch.tasks import Task


def make_module(num_prompts: int, num_outputs: int, seed: int = 0) -> TaskModule:
    module = TaskModule(num_prompts, num_outputs, 16, 32)
    module.initialise(torch.Generator().manual_seed(seed))
    return module


@pytest.mark.parametrize(("prompts", "labels"), [(2, 2), (5, 3), (1, 1)])
def test_a_task_has_as_many_parameters_as_the_paper_counts(prompts: int, labels: int) -> None:
    d = 48
    module = TaskModule(prompts, labels, d, d)
    assert sum(p.numel() for p in module.parameters()) == d**2 + (prompts + labels + 1) * d


def test_kernels_start_glorot_uniform_and_the_bias_zero() -> None:
    module = make_module(2, 3)
    for layer in (module.pooler, module.head):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert not module.pooler.bias.any()
    assert module.head.bias is None


def test_equations_1_and_3() -> None:
    module, outputs = make_module(2, 3), torch.randn(4, 2, 32)
    mean = (outputs[:, 0] + outputs[:, 1]) / 2
    expected = torch.tanh(mean @ module.pooler.weight.T + module.pooler.bias) @ module.head.weight.T
    torch.testing.assert_close(module(outputs), expected)


def test_stacked_tasks_equal_single_ones_whatever_their_sizes() -> None:
    sizes = [(2, 3), (1, 1), (4, 7), (2, 2)]
    modules = [make_module(prompts, outputs, seed) for seed, (prompts, outputs) in enumerate(sizes)]
    for module in modules:
        torch.nn.init.normal_(module.pooler.bias)
    positions = [range(1, 3), range(3, 4), range(5, 9), range(9, 11)]
    outputs = torch.randn(6, 11, 32)
    logits = StackedTasks.stack(modules, positions)(outputs)
    assert logits.shape == (6, 4, 7)
    for i, (module, own) in enumerate(zip(modules, positions, strict=True)):
        num_outputs = module.head.out_features
        torch.testing.assert_close(logits[:, i, :num_outputs], module(outputs[:, list(own)]), atol=1e-6, rtol=1e-5)
        assert (logits[:, i, num_outputs:] == -torch.inf).all()


def test_the_loss_is_mean_cross_entropy_or_mean_squared_error() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = -F.log_softmax(logits, dim=-1)[range(5), labels].mean()
    assert torch.allclose(task_loss(Task("a", labels=("x", "y", "z")), logits, labels), expected)
    values = torch.randn(5)
    regression = Task("b", kind="regression", labels=())
    assert torch.allclose(task_loss(regression, logits[:, :1], values), ((logits[:, 0] - values) ** 2).mean())
