"""Heads that read the text itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mtop_batch.errors import ConfigError
from mtop_batch.model.parts import text_heads
from mtop_batch.model.parts.text_heads import AttentionHead, StackedAttention, dynamic_widths

D = 12


def make_head(num_outputs: int = 3, width: int = 8, num_heads: int = 2, seed: int = 0) -> AttentionHead:
    head = AttentionHead(num_outputs, D, width, num_heads)
    head.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)) * 0.1)
    return head


def slow(head: AttentionHead, at_text: Tensor) -> Tensor:
    """The logits of one text, token by token and head by head, from its (T, D) outputs."""
    low = at_text @ head.down.weight.T + head.down.bias
    joint = low @ head.query_key_value.weight.T + head.query_key_value.bias
    width = low.shape[1]
    size = width // head.num_heads
    rows = []
    for token in range(len(low)):
        mixed = []
        for number in range(head.num_heads):
            own = slice(number * size, (number + 1) * size)
            query, keys, values = (joint[:, part * width : (part + 1) * width][:, own] for part in range(3))
            weights = torch.softmax(keys @ query[token] / math.sqrt(size), dim=0)
            mixed.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
        rows.append(torch.cat(mixed) @ head.out.weight.T + head.out.bias)
    return torch.stack(rows).mean(dim=0) @ head.head.weight.T + head.head.bias


@torch.no_grad()
@pytest.mark.parametrize("max_values", [1, text_heads._MAX_VALUES])
def test_stacked_heads_equal_a_slow_reference(monkeypatch: pytest.MonkeyPatch, max_values: int) -> None:
    monkeypatch.setattr(text_heads, "_MAX_VALUES", max_values)
    heads = [make_head(outputs, seed=seed) for seed, outputs in enumerate((2, 5, 1, 3))]
    at_text = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(7))
    lengths = [6, 1, 4]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    logits = StackedAttention.stack(heads)(at_text, mask)
    assert logits.shape == (3, 4, 5)
    for index, head in enumerate(heads):
        outputs = head.head.out_features
        assert (logits[:, index, outputs:] == -torch.inf).all()
        for row, length in enumerate(lengths):
            expected = slow(head, at_text[row, :length])
            torch.testing.assert_close(logits[row, index, :outputs], expected, atol=1e-5, rtol=0)
    whole = StackedAttention.stack(heads)(at_text[:1], None)
    torch.testing.assert_close(whole, logits[:1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_is_padding_does_not_count() -> None:
    head, at_text = make_head(), torch.randn(2, 5, D)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    other = at_text.clone()
    other[0, 3:] = 1e4
    torch.testing.assert_close(head(at_text, mask), head(other, mask))


def test_a_head_of_the_published_size_has_a_tenth_of_the_parameters() -> None:
    attention = AttentionHead(10, 768, 64, 2)
    connected = 768 * 768 + 768 + 768 * 10 + 10
    assert 8 < connected / sum(parameter.numel() for parameter in attention.parameters()) < 10


def test_the_published_widths() -> None:
    assert dynamic_widths([10, 20, 30, 40, 50, 60, 70, 80], 768, 2) == [128, 128, 256, 256, 512, 512, 1024, 1024]
    assert dynamic_widths([100] * 5, 768, 4) == [128] * 5
    assert all(width % 4 == 0 for width in dynamic_widths([1, 2, 3], 30, 4))


@pytest.mark.parametrize(("width", "num_heads"), [(0, 2), (7, 2), (2, 4)])
def test_a_width_that_heads_cannot_share_is_refused(width: int, num_heads: int) -> None:
    with pytest.raises(ConfigError, match="attention_width"):
        AttentionHead(2, D, width, num_heads)
