"""The arithmetic of a forward pass, against the operations that torch counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AlbertConfig, AlbertModel

from mtop_batch.model.flops import measure_peak_flops_per_s
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.conftest import make_backbone

TASKS = [Task("a"), Task("b", labels=("x", "y", "z"))]


@pytest.mark.parametrize("attention", ["joint", "isolated"])
@pytest.mark.parametrize("names", [["a", "b"], ["b"]])
@pytest.mark.parametrize("vectors", [False, True])
def test_the_cost_is_what_torch_counts(attention: PromptAttention, names: list[str], vectors: bool) -> None:
    model = MTOPModel.from_backbone(make_backbone(), TASKS, prompt_attention=attention, max_tokens=60)
    num_texts, num_tokens = 3, 20
    # The counter knows attention on CPUs only as the matrix products that it is made of.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run = model.all_tasks_and_vectors if vectors else model.all_tasks
        run(torch.full((num_texts, num_tokens), 5), tasks=names)
    counted = counter.get_total_flops()
    # Heads are padded to the labels of the task that has most, and isolated prompts see each other: both little.
    cost = model.forward_flops(names, vectors=vectors)(np.full(num_texts, num_tokens))
    assert cost == pytest.approx(counted, rel=0.02)
    assert cost <= counted


def test_layers_that_are_run_more_than_once_count_as_often() -> None:
    config = AlbertConfig(
        vocab_size=90,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = MTOPModel.from_backbone(AlbertModel(config), TASKS, prompt_attention="isolated", max_tokens=60)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.all_tasks(torch.full((3, 20), 5))
    cost = model.forward_flops(["a", "b"])(np.full(3, 20))
    assert cost == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_nobody_pays_for_outputs_at_the_text_that_nobody_wants() -> None:
    model = MTOPModel.from_backbone(make_backbone(), TASKS, prompt_attention="isolated", max_tokens=60)
    lengths = np.full(3, 20)
    assert model.forward_flops(["a"])(lengths) < 0.8 * model.forward_flops(["a"], vectors=True)(lengths)


def test_texts_without_tokens_cost_nothing_and_long_ones_more_than_their_share() -> None:
    flops = MTOPModel.from_backbone(make_backbone(), TASKS, max_tokens=60).forward_flops(["a", "b"])
    assert flops(np.array([0, 0])) == 0
    assert flops(np.array([8, 0, 8])) == pytest.approx(2 * flops(np.array([8])))
    assert flops(np.array([40])) - flops(np.array([20])) > flops(np.array([20])) - flops(np.array([1]))


def test_the_peak_is_measured() -> None:
    assert 1e8 < measure_peak_flops_per_s(torch.device("cpu"), torch.float32) < 1e15
