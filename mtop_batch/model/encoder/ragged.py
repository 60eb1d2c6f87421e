"""Attention over packed texts, as flash attention has it: no padding, no mask, nothing copied.

Texts lie one behind the other, and offsets say where each starts. A text's positions see those of their own text.
Isolated prompts see their text's keys and values where these lie, and each other, by one kernel; without Triton, by
flash attention and a small product of their own, put together exactly by their log-sum-exps, as flash attention does
with its blocks (Dao et al. 2022, 3.1).

For NVIDIA GPUs from compute capability 8.0 on, in 16 bits, for inference: there is no dropout in it.

Shapes: B texts, N positions of all texts together, P prompts of a text, H heads, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.kernels import has_kernels


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

    outputs, log_sum_exp = varlen_attn(query, key, value, *offsets, *longest, return_aux=AuxRequest(lse=True))
    return outputs, log_sum_exp


def attend(query: Tensor, key: Tensor, value: Tensor, batch: Ragged) -> Tensor:
    """(N, H, W) What the positions of packed texts see of their own text; queries, keys and values are (N, H, W)."""
    outputs, _ = varlen_attention(query, key, value, (batch.offsets, batch.offsets), (batch.longest, batch.longest))
    return outputs


def attend_from_prompts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    earlier: tuple[Tensor, Tensor],
    batch: Ragged,
    spans: Tensor,
) -> Tensor:
    """What isolated prompts see of their text and of each other.

    Args:
        query: (B, P, H, W) Like the keys and values, of the prompts.
        earlier: Keys and values (N, H, W) of the packed texts.
        batch: Of the texts.
        spans: (3, P) The prompts' groups (`mtop_batch.model.encoder.masks.group_spans`); a prompt sees its own group.

    Returns:
        (B, P, H, W)
    """
    if has_kernels(query):
        from mtop_batch.model import triton_kernels

        return triton_kernels.attend_from_prompts(query, key, value, earlier, batch.offsets, spans)
    batch_size, num_prompts = query.shape[:2]
    starts = torch.arange(0, batch_size * num_prompts + 1, num_prompts, dtype=torch.int32, device=query.device)
    longest = num_prompts, batch.longest
    at_text, lse = varlen_attention(query.flatten(0, 1), *earlier, (starts, batch.offsets), longest)
    return _merge(query, key, value, at_text, lse, spans[0])


def _merge(query: Tensor, key: Tensor, value: Tensor, at_text: Tensor, lse: Tensor, groups: Tensor) -> Tensor:
    """What prompts see of each other, merged with what they see of the text, (B P, H, W) and (H, B P) log-sum-exps."""
    batch_size, num_prompts, _, width = query.shape
    lse = lse.unflatten(1, (batch_size, num_prompts)).transpose(0, 1)[..., None]  # (B, H, P, 1)
    scores = torch.matmul(query.transpose(1, 2), key.permute(0, 2, 3, 1)).float() * width**-0.5
    scores = scores.masked_fill(groups[:, None] != groups, -torch.inf)
    total = torch.logaddexp(lse, scores.logsumexp(dim=-1, keepdim=True))
    own = torch.matmul((scores - total).exp().to(value.dtype), value.transpose(1, 2))
    share = (lse - total).exp().transpose(1, 2).to(value.dtype)  # (B, P, H, 1)
    return own.transpose(1, 2) + share * at_text.unflatten(0, (batch_size, num_prompts))


def scaled(query: Tensor, scaling: float | None) -> Tensor:
    """Queries (..., W) for which 1 / sqrt(W) is the right scaling."""
    width = query.shape[-1]
    if scaling is None or abs(scaling - width**-0.5) < 1e-6:
        return query
    return query * (scaling * width**0.5)
