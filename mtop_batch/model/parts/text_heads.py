"""Heads that read the encoder's outputs at the text itself, in place of prompts.

"Exceeding the Limits of Visual-Linguistic Multi-Task Learning", sections 4.5 and 4.6: each task projects the text's
outputs to a low width, lets them attend to one another there, and takes a linear function of their mean. That takes few
parameters, and DyPA gives more of them to tasks with more examples.

Shapes: B texts, T text positions, D hidden width, W width of an attention head's space, n tasks, C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtop_batch.errors import ConfigError
from mtop_batch.model.parts.heads import draw_linear

# Values of the largest intermediate tensor: on a CPU what stays in its cache, on a GPU what keeps it busy.
_MAX_VALUES, _MAX_GPU_VALUES = 2**21, 2**26


def dynamic_widths(num_examples: Sequence[int], hidden_size: int, num_heads: int) -> list[int]:
    """Dynamic parameter allocation, DyPA (section 4.6): the width of each task's attention head.

    The numbers of examples are z-scored, which changes no order, and parted at their quartiles. The published widths,
    128, 256, 512 and 1024 at a hidden width of 768, are scaled to this encoder's.

    Args:
        num_examples: Training examples of each task (n,).
        hidden_size: D
        num_heads: A width is a multiple of it.

    >>> dynamic_widths([50, 100, 500, 1000, 8000], hidden_size=384, num_heads=2)
    [64, 64, 128, 256, 512]
    """
    sizes = np.asarray(num_examples, dtype=np.float64)
    quartiles = np.searchsorted(np.quantile(sizes, [0.25, 0.5, 0.75]), sizes, side="left")
    return [least_width(hidden_size, num_heads) * 2 ** int(quartile) for quartile in quartiles]


def least_width(hidden_size: int, num_heads: int) -> int:
    """The width of the smallest attention heads: a sixth of the encoder's, as published."""
    return max(num_heads, hidden_size // 6 // num_heads * num_heads)


class AttentionHead(nn.Module):
    """One task's self-attention over the text and its linear layer.

    Args:
        num_outputs: C
        hidden_size: D
        width: W
        num_heads: W must be a multiple of it.

    Raises:
        ConfigError: It is not.
    """

    def __init__(self, num_outputs: int, hidden_size: int, width: int, num_heads: int) -> None:
        super().__init__()
        if width < 1 or width % num_heads:
            raise ConfigError(
                f"model.attention_width = {width} is not a multiple of model.attention_heads = {num_heads}"
            )
        self.num_heads = num_heads
        self.down = nn.Linear(hidden_size, width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, at_text: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, C) logits in float32, from (B, T, D) outputs."""
        return StackedAttention.stack([self])(at_text, attention_mask)[:, 0]

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random: Glorot-uniform kernels, zero biases."""
        for layer in (self.down, self.query_key_value, self.out, self.head):
            draw_linear(layer, generator)

    @property
    def size(self) -> tuple[int, int]:
        """Width and heads; tasks of one size are computed together."""
        return self.down.out_features, self.num_heads

    @property
    def flops(self) -> tuple[float, float, float]:
        """Operations for each text, for each of its tokens, and for each pair of them."""
        per_text = 2.0 * (self.out.weight.numel() + self.head.weight.numel())
        per_token = 2.0 * (self.down.weight.numel() + self.query_key_value.weight.numel())
        return per_text, per_token, 4.0 * self.down.out_features


@dataclass(frozen=True)
class StackedAttention:
    """The attention heads of n tasks of one width as a few matrix products.

    Args:
        num_heads: Of the attention.
        down: (n W, D) and (n W).
        query_key_value: (n, W, 3 W) and (n, 1, 3 W).
        out: (n, W, W) and (n, 1, W).
        head: (n, W, C) and (n, 1, C) in float32; a bias is -inf beyond a task's own outputs.
    """

    num_heads: int
    down: tuple[Tensor, Tensor]
    query_key_value: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]

    @classmethod
    def stack(cls, modules: Sequence[AttentionHead], dtype: torch.dtype | None = None) -> StackedAttention:
        """Stack the parameters of at least one task; they have the same width and number of heads.

        Args:
            modules: The tasks'.
            dtype: Of all but the heads; None for the one they have.
        """
        most = max(module.head.out_features for module in modules)
        missing = [most - module.head.out_features for module in modules]

        def stacked(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
            weights = torch.stack([layer.weight.T for layer in layers])
            biases = torch.stack([layer.bias[None] for layer in layers])
            return weights.to(dtype or weights.dtype), biases.to(dtype or biases.dtype)

        heads = [module.head for module in modules]
        pairs = list(zip(heads, missing, strict=True))
        down = torch.cat([module.down.weight for module in modules])
        down_bias = torch.cat([module.down.bias for module in modules])
        return cls(
            num_heads=modules[0].num_heads,
            down=(down.to(dtype or down.dtype), down_bias.to(dtype or down.dtype)),
            query_key_value=stacked([module.query_key_value for module in modules]),
            out=stacked([module.out for module in modules]),
            head=(
                torch.stack([F.pad(layer.weight.T.float(), (0, count)) for layer, count in pairs]),
                torch.stack([F.pad(layer.bias.float(), (0, count), value=-torch.inf)[None] for layer, count in pairs]),
            ),
        )

    def __call__(self, at_text: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The logits of all tasks.

        Args:
            at_text: (B, T, D) The encoder's outputs at the text.
            attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.

        Returns:
            (B, n, C) in float32; -inf beyond a task's own outputs.
        """
        return torch.cat(list(self._chunks(at_text, attention_mask)), dim=1)

    def _chunks(self, at_text: Tensor, attention_mask: Tensor | None) -> Iterator[Tensor]:
        """(B, tasks, C) of as many tasks at a time as the memory is meant for."""
        num_texts, num_positions, _ = at_text.shape
        num_tasks, width = self.query_key_value[0].shape[:2]
        values = _MAX_GPU_VALUES if at_text.device.type == "cuda" else _MAX_VALUES
        size = max(1, values // (num_texts * num_positions * 3 * width))
        for start in range(0, num_tasks, size):
            yield self._logits(slice(start, min(start + size, num_tasks)), at_text, attention_mask)

    def _logits(self, tasks: slice, at_text: Tensor, attention_mask: Tensor | None) -> Tensor:
        num_texts, num_positions, _ = at_text.shape
        count, width = tasks.stop - tasks.start, self.query_key_value[0].shape[1]
        rows = slice(tasks.start * width, tasks.stop * width)
        low = F.linear(at_text.to(self.down[0].dtype), self.down[0][rows], self.down[1][rows])  # (B, T, n W)
        low = low.view(num_texts * num_positions, count, width).transpose(0, 1)
        joint = torch.baddbmm(self.query_key_value[1][tasks], low, self.query_key_value[0][tasks])
        parts = joint.view(count * num_texts, num_positions, 3, self.num_heads, width // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n B, heads, T, W / heads)
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool()[None, :, None, None].expand(count, -1, self.num_heads, num_positions, -1)
            mask = mask.flatten(0, 1)
        found = F.scaled_dot_product_attention(query, key, value, mask)
        mean = _mean(found.transpose(1, 2).reshape(count, num_texts, num_positions, width), attention_mask)
        # The layer after the attention is linear, so it may as well come after the mean.
        mixed = torch.baddbmm(self.out[1][tasks], mean, self.out[0][tasks])
        with torch.autocast(mixed.device.type, enabled=False):
            return torch.baddbmm(self.head[1][tasks], mixed.float(), self.head[0][tasks]).transpose(0, 1)


def _mean(outputs: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(n, B, W) The mean over a text's own tokens of (n, B, T, W)."""
    if attention_mask is None:
        return outputs.mean(dim=2)
    mask = attention_mask[None, :, :, None].to(outputs.dtype)
    return (outputs * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1)
