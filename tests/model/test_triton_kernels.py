"""The GPU kernels beside PyTorch's sums; on machines with Triton but no GPU they are run line by line on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtop_batch.model.encoder.masks import group_spans
from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.encoder.ragged import Ragged
from mtop_batch.model.kernels import has_kernels

pytest.importorskip("triton")
from mtop_batch.model import triton_kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# NumPy, by which kernels are run on a CPU, has no products in bf16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16 if DEVICE.type == "cuda" else torch.float16: 0.05}


def draw(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(*size, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [32, 48, 7])
def test_the_norm_of_a_sum(width: int, dtype: torch.dtype) -> None:
    hidden, added = draw(5, width, dtype=dtype), draw(5, 2 * width, dtype=dtype)[:, ::2]
    weight, bias = draw(width, dtype=dtype), draw(width + 1, dtype=dtype)[1:]
    own = triton_kernels.add_norm(hidden, added, weight, bias, 1e-12)
    exact = F.layer_norm((hidden.float() + added.float()), (width,), weight.float(), bias.float(), 1e-12)
    assert own.dtype == dtype
    torch.testing.assert_close(own.float(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [16, 24])
@pytest.mark.parametrize(
    "groups", [(1, 1, 2, 2, 2), (1,), (3, 1, 2), tuple(index // 8 for index in range(72))], ids=lambda g: str(len(g))
)
def test_prompts_see_their_text_and_their_group(groups: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    lengths, heads = torch.tensor([70, 1, 64]), 2
    batch = Ragged.of(Packing(None, lengths.to(DEVICE), (3, 70)))
    text_key, text_value = draw(int(lengths.sum()), 3, heads, width, dtype=dtype).unbind(1)[1:]
    query, key, value = (
        each.unflatten(0, (3, -1)) for each in draw(3 * len(groups), 3, heads, width, dtype=dtype).unbind(1)
    )
    spans = group_spans(groups, DEVICE)
    own = triton_kernels.attend_from_prompts(query, key, value, (text_key, text_value), batch.offsets, spans)
    same = spans[0][:, None] == spans[0]
    for text, length in enumerate(lengths.tolist()):
        at = slice(int(batch.offsets[text]), int(batch.offsets[text + 1]))
        keys, values = torch.cat([text_key[at], key[text]]), torch.cat([text_value[at], value[text]])
        sees = torch.cat([same.new_ones(len(groups), length), same], dim=1)
        q, k, v = (each.float().transpose(0, 1) for each in (query[text], keys, values))
        exact = F.scaled_dot_product_attention(q, k, v, attn_mask=sees).transpose(0, 1)
        torch.testing.assert_close(own[text].float(), exact, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_outputs", "num_texts"), [(2, 16), (1, 1), (19, 80)])
@pytest.mark.parametrize("width", [32, 40])
def test_the_logits_behind_poolers(width: int, num_outputs: int, num_texts: int, dtype: torch.dtype) -> None:
    products, bias = draw(3, width, num_texts, dtype=dtype), draw(3, width, dtype=dtype)
    head = draw(3, num_outputs, width)
    own = triton_kernels.head_logits(products, bias, head)
    exact = torch.bmm(head, torch.tanh(products.float() + bias.float()[..., None]))
    torch.testing.assert_close(own, exact, atol=1e-4, rtol=1e-4)


def test_gradients_and_a_cpu_get_pytorchs_own() -> None:
    with torch.enable_grad():
        assert not has_kernels(draw(2))
    with torch.no_grad():
        assert has_kernels(draw(2)) == (DEVICE.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0))
