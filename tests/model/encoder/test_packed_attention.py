"""Packed attention and fused layers beside the padded encoder; flash attention itself, which needs a GPU, is stood in
for by the same sums written out.
"""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from mtop_batch.model.encoder import fused, ragged
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.kv_cache import use_kv_cache_attention
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts import stacked_heads
from mtop_batch.tasks import Task
from tests.model.encoder.test_encode import BACKBONES, SIZES, some_prompts, text
from tests.model.kinds.kinds import RIVALS, make_rival

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
    name: str, mask: Tensor | None, prompt_attention: PromptAttention, shared_prompts: int, on_gpu: pytest.MonkeyPatch
) -> None:
    model = MTOPModel.from_backbone(
        encoder_of(name),
        [Task("topic"), Task("tone")],
        prompt_attention=prompt_attention,
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


@pytest.mark.parametrize("prompt_attention", ["joint", "isolated"])
@pytest.mark.parametrize("pooler_rank", [0, 3])
@torch.no_grad()
def test_with_kernels_fused_layers_have_the_same_logits(
    prompt_attention: PromptAttention, pooler_rank: int, on_gpu: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    tasks = [Task("topic", labels=("a", "b", "c")), Task("tone"), Task("score", kind="regression", labels=())]
    model = MTOPModel.from_backbone(
        encoder_of("bert"), tasks, prompt_attention=prompt_attention, pooler_rank=pooler_rank, max_tokens=64
    )
    assert model.fuse_layers()
    plain = model.all_tasks(text(), MASK, num_tokens=NUM_TOKENS)
    for module in (fused, ragged, stacked_heads):
        on_gpu.setattr(module, "has_kernels", lambda _: True)
    torch.testing.assert_close(model.all_tasks(text(), MASK, num_tokens=NUM_TOKENS), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
@torch.no_grad()
def test_a_product_that_ends_with_gelu_is_used_where_the_activation_is_one(
    activation: str, on_gpu: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=90, hidden_act=activation, **SIZES), add_pooling_layer=False).eval()
    use_kv_cache_attention(encoder)
    model = MTOPModel.from_backbone(encoder, [Task("topic")], prompt_attention="joint", max_tokens=64)
    assert model.fuse_layers()
    expected = model.all_tasks(text(), MASK, num_tokens=NUM_TOKENS)
    used = Mock(wraps=torch._addmm_activation)
    on_gpu.setattr(torch, "_addmm_activation", used)
    on_gpu.setattr(fused, "_has_gelu_in_product", lambda _: True)
    logits = model.all_tasks(text(), MASK, num_tokens=NUM_TOKENS)
    assert used.call_count == (0 if activation == "relu" else encoder.config.num_hidden_layers)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


def test_a_cpu_computes_the_gelu_that_the_model_has() -> None:
    assert not fused._has_gelu_in_product(torch.ones(1, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "full"])
@torch.inference_mode()
def test_other_kinds_of_models_give_the_same_packed_and_fused(
    kind: str, name: str, mask: Tensor | None, on_gpu: pytest.MonkeyPatch
) -> None:
    model = make_rival(kind, backbone=encoder_of(name), max_tokens=64)
    packed = model.all_tasks(text(), mask, num_tokens=NUM_TOKENS)
    assert model.fuse_layers() == (kind not in ("p-tuning-v2", "ca-mtl"))
    fused_ = model.all_tasks(text(), mask, num_tokens=NUM_TOKENS)
    on_gpu.setattr(ragged, "is_possible", lambda *_: False)
    plain = model.all_tasks(text(), mask)
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused_, plain, atol=1e-5, rtol=0)


def test_training_and_other_families_leave_fused_layers_alone() -> None:
    model = MTOPModel.from_backbone(encoder_of("bert"), [Task("topic")], max_tokens=64)
    assert model.fuse_layers()
    model.train()
    assert model._fused is None
    other = MTOPModel.from_backbone(encoder_of("albert"), [Task("topic")], max_tokens=64)
    assert not other.fuse_layers()


def test_a_cpu_does_not_attend_over_packed_texts() -> None:
    assert not ragged.is_possible(torch.device("cpu"), torch.bfloat16)
