"""Inference in bf16: what has weights in bf16, what has not, and how near it comes."""

from __future__ import annotations

import pytest
import torch

from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.precision import with_bf16_encoder
from mtop_batch.precision import has_bf16
from mtop_batch.tasks import Task
from tests.model.conftest import Batch, MakeModel, enlarge
from tests.model.encoder.test_encode import modernbert
from tests.model.parts.test_document_vectors import MINILM

NEW = Task("new")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["joint", "isolated"])
def test_outputs_are_near_and_the_model_stays_as_it_is(make_model: MakeModel, batch: Batch, attention: str) -> None:
    model = make_model(prompt_attention=attention)
    model.add_tasks([NEW], prompts_per_task=2, lora_rank=2)
    enlarge(model, ["new"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = model(**batch).logits
    rough = with_bf16_encoder(model)(**batch).logits
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.1)
    assert not torch.equal(rough, exact)
    after = model.state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=0, rtol=0)


def test_weights_of_the_encoder_are_bf16_and_its_buffers_are_not() -> None:
    model = MTOPModel.from_backbone(modernbert(), [NEW], max_tokens=16)
    buffers = [buffer.clone() for buffer in model.backbone.buffers() if buffer.is_floating_point()]
    half = with_bf16_encoder(model).backbone
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert buffers, "rotary embeddings have frequencies"
    for kept, buffer in zip((b for b in half.buffers() if b.is_floating_point()), buffers, strict=True):
        torch.testing.assert_close(kept, buffer, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),  # half as fast as fp32
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, False),
    ],
)
def test_a_cpu_has_bf16_if_it_gains_by_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16(torch.device("cpu")) == expected


@torch.no_grad()
def test_vectors_of_pretrained_weights_hardly_move() -> None:
    model = MTOPModel.from_backbone(load_backbone(MINILM), [NEW], prompt_attention="isolated")
    ids = torch.randint(1000, 30_000, (4, 24), generator=torch.Generator().manual_seed(0))
    exact, rough = (m.all_tasks_and_vectors(ids)[1].float() for m in (model, with_bf16_encoder(model)))
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.999
