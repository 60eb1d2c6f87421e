from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mtop_batch.model.parts.heads import TaskModule
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.tasks import Task


def make_module(num_prompts: int, num_outputs: int, pooler_rank: int = 0) -> TaskModule:
    module = TaskModule(num_prompts, num_outputs, 16, 32, pooler_rank)
    module.initialise(torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize(("prompts", "labels"), [(2, 2), (5, 3), (1, 1)])
def test_a_task_has_as_many_parameters_as_the_paper_counts(prompts: int, labels: int) -> None:
    d = 48
    module = TaskModule(prompts, labels, d, d)
    assert sum(p.numel() for p in module.parameters()) == d**2 + (prompts + labels + 1) * d


@pytest.mark.parametrize("rank", [0, 8])
def test_kernels_start_glorot_uniform_and_the_bias_zero(rank: int) -> None:
    module = make_module(2, 3, rank)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) == (3 if rank else 2)
    for layer in layers:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    biases = [parameter for name, parameter in module.named_parameters() if name.endswith("bias")]
    assert [tuple(bias.shape) for bias in biases] == [(32,)]
    assert not biases[0].any()


def test_equations_1_and_3() -> None:
    module, outputs = make_module(2, 3), torch.randn(4, 2, 32)
    tensors = dict(module.named_parameters())
    mean = (outputs[:, 0] + outputs[:, 1]) / 2
    expected = torch.tanh(mean @ tensors["pooler.weight"].T + tensors["pooler.bias"]) @ tensors["head.weight"].T
    torch.testing.assert_close(module(outputs), expected)


def test_a_low_rank_pooler_is_the_product_of_its_kernels() -> None:
    module, outputs = make_module(2, 3, pooler_rank=4), torch.randn(4, 2, 32)
    tensors = dict(module.named_parameters())
    kernel = tensors["pooler.up.weight"] @ tensors["pooler.down.weight"]
    expected = torch.tanh(outputs.mean(dim=1) @ kernel.T + tensors["pooler.up.bias"]) @ tensors["head.weight"].T
    torch.testing.assert_close(module(outputs), expected)


def test_the_loss_is_mean_cross_entropy_or_mean_squared_error() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    expected = -F.log_softmax(logits, dim=-1)[range(5), labels].mean()
    assert torch.allclose(task_loss(Task("a", labels=("x", "y", "z")), logits, labels), expected)
    values = torch.randn(5)
    regression = Task("b", kind="regression", labels=())
    assert torch.allclose(task_loss(regression, logits[:, :1], values), ((logits[:, 0] - values) ** 2).mean())


def test_the_loss_of_a_regression_is_in_standard_deviations() -> None:
    logits, values = torch.randn(5, 1), torch.tensor([5e3, 7e3, 9e3, 3e38, -3e38])
    prices = Task("prices", kind="regression", labels=(), mean=7e3, std=1e3)
    expected = ((logits[:3, 0] - torch.tensor([-2.0, 0.0, 2.0])) ** 2).mean()
    assert torch.allclose(task_loss(prices, logits[:3], values[:3]), expected)
    wide = Task("wide", kind="regression", labels=(), mean=-3e38, std=3e38)
    assert task_loss(wide, logits, values).isfinite()
