"""Attention over packed texts, as flash attention has it: no padding, no mask, nothing copied.

Texts lie one behind the other, and offsets say where each starts. A text's positions see those of their own text.
Isolated prompts see their text's keys and values where these lie, and each other by a small product of their own; both
parts are put together exactly by their log-sum-exps, as flash attention does with its blocks (Dao et al. 2022, 3.1).

For NVIDIA GPUs from compute capability 8.0 on, in 16 bits, for inference: there is no dropout in it.

Shapes: B texts, N positions of all texts together, P prompts of a text, H heads, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtop_batch.model.packing import Packing


@dataclass(frozen=True)
class Ragged:
    """How a packed batch is read.

    Args:
        packing: Of the batch.
        offsets: (B + 1,) int32: where each text starts, and N.
    """

    packing: Packing
    offsets: Tensor

    @classmethod
    def of(cls, packing: Packing) -> Ragged:
        """Reads a packed batch."""
        return cls(packing, packing.offsets)

    @property
    def longest(self) -> int:
        """Positions of the longest text, or more."""
        return self.packing.shape[1]


def is_possible(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device can attend in this way."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: tuple[Tensor, Tensor], longest: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Flash attention over packed sequences, scaled by 1 / sqrt(W).

    Args:
        query: (N, H, W)
        key: (M, H, W) Of as many sequences, whose lengths may be others.
        value: (M, H, W)
        offsets: (B + 1,) int32 where the sequences start, of the queries and of the keys.
        longest: Positions of the longest sequence, of the queries and of the keys.

    Returns:
        (N, H, W) outputs and (H, N) float32 log-sum-exps.
    """
    from torch.nn.attention.varlen import (
        AuxRequest,
        varlen_attn,
    )  # absent from builds of torch without CUDA before 2.10

    found: tuple[Tensor, Tensor] = varlen_attn(query, key, value, *offsets, *longest, return_aux=AuxRequest(lse=True))
    return found


def attend(query: Tensor, key: Tensor, value: Tensor, ragged: Ragged, scaling: float | None) -> Tensor:
    """(1, N, H, W) What the positions of packed texts see of their own text; queries, keys, values are (1, H, N, W)."""
    packed = (_packed(_scaled(query, scaling)), _packed(key), _packed(value))
    outputs, _ = varlen_attention(*packed, (ragged.offsets, ragged.offsets), (ragged.longest, ragged.longest))
    return outputs[None]


def attend_from_prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    earlier: tuple[Tensor, Tensor],
    ragged: Ragged,
    own_mask: Tensor,
    scaling: float | None,
) -> Tensor:
    """What isolated prompts see of their text and of each other.

    Args:
        query: (B, H, P, W) Like the keys and values, of the prompts.
        earlier: Keys and values (1, H, N, W) of the packed texts.
        ragged: Of the texts.
        own_mask: (P, P) Additive: 0 where a prompt sees another, else the lowest number of its type.
        scaling: Of the products of queries and keys; None for 1 / sqrt(W).

    Returns:
        (B, P, H, W)
    """
    batch_size, _, num_prompts, width = query.shape
    query = _scaled(query, scaling)
    starts = torch.arange(0, batch_size * num_prompts + 1, num_prompts, dtype=torch.int32, device=query.device)
    at_text, lse = varlen_attention(
        query.transpose(1, 2).flatten(0, 1),
        _packed(earlier[0]),
        _packed(earlier[1]),
        (starts, ragged.offsets),
        (num_prompts, ragged.longest),
    )
    at_text = at_text.unflatten(0, (batch_size, num_prompts)).transpose(1, 2)  # (B, H, P, W)
    lse = lse.unflatten(1, (batch_size, num_prompts)).transpose(0, 1)[..., None]  # (B, H, P, 1)
    scores = torch.matmul(query, key.transpose(2, 3)).float() * width**-0.5 + own_mask
    total = torch.logaddexp(lse, scores.logsumexp(dim=-1, keepdim=True))
    own = torch.matmul((scores - total).exp().to(value.dtype), value)
    return torch.addcmul(own, at_text, (lse - total).exp().to(value.dtype)).transpose(1, 2)


def _packed(each: Tensor) -> Tensor:
    """(1, H, N, W) -> (N, H, W)"""
    return each.transpose(1, 2)[0]


def _scaled(query: Tensor, scaling: float | None) -> Tensor:
    """Queries for which 1 / sqrt(W) is the right scaling."""
    width = query.shape[-1]
    if scaling is None or abs(scaling - width**-0.5) < 1e-6:
        return query
    return query * (scaling * width**0.5)
