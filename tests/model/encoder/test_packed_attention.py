"""Packed attention and fused layers beside the padded encoder; flash attention itself, which needs a GPU, is stood in
for by the same sums written out.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.model.encoder import fused, ragged
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.kv_cache import use_kv_cache_attention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from tests.model.encoder.test_encode import BACKBONES, some_prompts, text

MASK = (torch.arange(20) < torch.tensor([[20], [6]])).long()
NUM_TOKENS = 26
FUSED = ["bert", "electra", "roberta"]


def attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: tuple[Tensor, Tensor], longest: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    outputs, log_sum_exps = [], []
    for q, k, v in zip(
        query.tensor_split(offsets[0][1:-1].long()),
        key.tensor_split(offsets[1][1:-1].long()),
        value.tensor_split(offsets[1][1:-1].long()),
        strict=True,
    ):
        assert (len(q) <= longest[0]) & (len(k) <= longest[1])
        scores = torch.einsum("qhw,khw->hqk", q, k) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("hqk,khw->qhw", scores.softmax(dim=-1), v))
        log_sum_exps.append(scores.logsumexp(dim=-1))
    return torch.cat(outputs), torch.cat(log_sum_exps, dim=1)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(ragged, "is_possible", lambda *_: True)
    monkeypatch.setattr(ragged, "varlen_attention", attention)
    monkeypatch.setattr(fused, "varlen_attention", attention)
    return monkeypatch


def encoder_of(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    encoder = BACKBONES[name]().eval()
    use_kv_cache_attention(encoder)
    return encoder


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "full"])
@pytest.mark.parametrize("at_context", [True, False])
@pytest.mark.parametrize("groups", [None, [0, 1, 1, 2, 2], [1, 1, 2, 2, 2]], ids=["joint", "mixed", "isolated"])
@torch.no_grad()
def test_packed_texts_have_the_outputs_of_padded_ones(
    name: str, mask: Tensor | None, at_context: bool, groups: list[int] | None, on_gpu: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(name)
    prompts = some_prompts(encoder, 5)
    at_prompts, at_text = encode(
        encoder, prompts, text(), mask, groups=groups, at_context=at_context, num_tokens=NUM_TOKENS
    )
    on_gpu.setattr(ragged, "is_possible", lambda *_: False)
    padded, text_padded = encode(encoder, prompts, text(), mask, groups=groups, at_context=at_context)
    torch.testing.assert_close(at_prompts, padded, atol=1e-5, rtol=0)
    assert at_text.shape == text_padded.shape
    if at_text.shape[1]:
        real = (torch.ones_like(MASK) if mask is None else mask) == 1
        torch.testing.assert_close(at_text[real], text_padded[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "full"])
@pytest.mark.parametrize("prompt_attention", ["joint", "isolated"])
@pytest.mark.parametrize("shared_prompts", [0, 1])
def test_fused_layers_have_the_logits_and_vectors_of_the_encoder(
    name: str, mask: Tensor | None, prompt_attention: str, shared_prompts: int, on_gpu: pytest.MonkeyPatch
) -> None:
    model = MTOPModel.from_backbone(
        encoder_of(name),
        [Task("topic"), Task("tone")],
        prompt_attention="joint" if prompt_attention == "joint" else "isolated",
        shared_prompts=shared_prompts,
        max_tokens=64,
    )
    model.add_tasks([Task("added")], lora_rank=2)
    for key, tensor in model.task_module("added").state_dict().items():
        if key.startswith("lora.B"):
            tensor.normal_()
    assert model.fuse_layers()
    with torch.inference_mode():
        logits = model.all_tasks(text(), mask, num_tokens=NUM_TOKENS)
        with_vectors, vectors = model.all_tasks_and_vectors(text(), mask, num_tokens=NUM_TOKENS)
        on_gpu.setattr(ragged, "is_possible", lambda *_: False)
        plain, plain_vectors = model.all_tasks_and_vectors(text(), mask)
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(with_vectors, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(vectors, plain_vectors, atol=1e-3, rtol=0)


def test_training_and_other_families_leave_fused_layers_alone() -> None:
    model = MTOPModel.from_backbone(encoder_of("bert"), [Task("topic")], max_tokens=64)
    assert model.fuse_layers()
    model.train()
    assert model._fused is None
    other = MTOPModel.from_backbone(encoder_of("albert"), [Task("topic")], max_tokens=64)
    assert not other.fuse_layers()


def test_a_cpu_does_not_attend_over_packed_texts() -> None:
    assert not ragged.is_possible(torch.device("cpu"), torch.bfloat16)
