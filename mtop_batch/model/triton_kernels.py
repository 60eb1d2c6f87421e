"""GPU kernels for what lies between an encoder's matrix products, each of which reads and writes its tensors once.

Imported where Triton is there (`mtop_batch.model.kernels`). All sums are in float32 whatever the type of the tensors.

Shapes: M positions, D hidden width, B texts, N positions of all texts together, P prompts of a text, H heads, W width
of a head, n tasks, C outputs of the task with the most.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The fastest on an H100. Threads, in groups of 32, that work together; reads that are under way at a time.
NORM_WARPS, PROMPT_WARPS, PROMPT_STAGES = 4, 2, 2
# Positions of a text, and texts, that are taken at a time.
TEXT_BLOCK, HEAD_BLOCK = 64, 64
LOG2_E = tl.constexpr(1.4426950408889634)


def add_norm(hidden: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(M, D) Layer norm of the sum of two, which is not rounded in between."""
    hidden, added = hidden.contiguous(), added.contiguous()
    outputs = torch.empty_like(hidden)
    width = hidden.shape[1]
    block = triton.next_power_of_2(width)
    _launch(_add_norm, len(hidden))(
        hidden, added, weight, bias, outputs, eps, WIDTH=width, BLOCK=block, num_warps=NORM_WARPS
    )
    return outputs


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(hidden, added, weight, bias, outputs, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    x = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - tl.sum(x, axis=0) / WIDTH, 0.0)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(outputs + place, (x * w + b).to(outputs.dtype.element_ty), mask=inside)


def attend_from_prompts(
    query: Tensor, key: Tensor, value: Tensor, earlier: tuple[Tensor, Tensor], offsets: Tensor, spans: Tensor
) -> Tensor:
    """What prompts see of their text and of their own group, scaled by 1 / sqrt(W).

    Args:
        query: (B, P, H, W) Like the keys and values, of the prompts.
        earlier: Keys and values (N, H, W) of the packed texts.
        offsets: (B + 1,) int32: where each text starts, and N.
        spans: (3, P) int32: the group of each prompt, the first prompt of that group, and one behind the last.

    Returns:
        (B, P, H, W)
    """
    batch_size, num_prompts, num_heads, width = query.shape
    query, key, value, text_key, text_value = map(_with_rows, (query, key, value, *earlier))
    outputs = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    block = min(64, max(16, triton.next_power_of_2(num_prompts)))
    tiles = triton.cdiv(num_prompts, block)
    _launch(_attend_from_prompts, batch_size * num_heads * tiles)(
        query,
        key,
        value,
        text_key,
        text_value,
        offsets,
        spans,
        outputs,
        query.stride()[:3],
        key.stride()[:3],
        value.stride()[:3],
        text_key.stride()[:2],
        text_value.stride()[:2],
        num_prompts,
        tiles,
        num_heads,
        width**-0.5,
        WIDTH=width,
        WIDTH_BLOCK=max(16, triton.next_power_of_2(width)),
        BLOCK=block,
        TEXT_BLOCK=min(TEXT_BLOCK, 4096 // block),
        num_warps=PROMPT_WARPS,
        num_stages=PROMPT_STAGES,
    )
    return outputs


@triton.jit
def _see(query, key, value, seen, scale, highest, total, mixed):  # type: ignore[no-untyped-def]
    """Take in a block of keys and values as flash attention does; returns the new state."""
    scores = tl.where(seen, tl.dot(query, tl.trans(key)) * scale, -float("inf"))
    new = tl.maximum(highest, tl.max(scores, axis=1))
    known = tl.where(new == -float("inf"), 0.0, new)  # a row that has seen nothing yet
    shares = tl.exp2(scores - known[:, None])
    decay = tl.exp2(highest - known)
    mixed = mixed * decay[:, None] + tl.dot(shares.to(value.dtype), value)
    return new, total * decay + tl.sum(shares, axis=1), mixed


@triton.jit  # type: ignore[untyped-decorator]
def _attend_from_prompts(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    text_key,
    text_value,
    offsets,
    spans,
    outputs,
    query_strides,
    key_strides,
    value_strides,
    text_key_strides,
    text_value_strides,
    num_prompts,
    tiles,
    num_heads,
    scale,
    WIDTH: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    TEXT_BLOCK: tl.constexpr,
):
    tile = tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles) % num_heads
    text = (tl.program_id(0) // tiles // num_heads).to(tl.int64)
    scale = scale * LOG2_E
    row = tile * BLOCK + tl.arange(0, BLOCK)
    is_prompt = row < num_prompts
    column = tl.arange(0, WIDTH_BLOCK)
    in_head = column < WIDTH
    query += text * query_strides[0] + head * query_strides[2]
    q = tl.load(
        query + row[:, None] * query_strides[1] + column[None, :],
        mask=is_prompt[:, None] & in_head[None, :],
        other=0.0,
    )
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, WIDTH_BLOCK], tl.float32)
    start = tl.load(offsets + text)
    stop = tl.load(offsets + text + 1)
    for first in range(start, stop, TEXT_BLOCK):
        position = first + tl.arange(0, TEXT_BLOCK)
        inside = position < stop
        place = position.to(tl.int64)[:, None]
        mask = inside[:, None] & in_head[None, :]
        k = tl.load(
            text_key + place * text_key_strides[0] + head * text_key_strides[1] + column[None, :], mask=mask, other=0.0
        )
        v = tl.load(
            text_value + place * text_value_strides[0] + head * text_value_strides[1] + column[None, :],
            mask=mask,
            other=0.0,
        )
        highest, total, mixed = _see(q, k, v, inside[None, :], scale, highest, total, mixed)
    group = tl.load(spans + row, mask=is_prompt, other=-1)
    low = tl.min(tl.load(spans + num_prompts + row, mask=is_prompt, other=num_prompts), axis=0)
    high = tl.max(tl.load(spans + 2 * num_prompts + row, mask=is_prompt, other=0), axis=0)
    key += text * key_strides[0] + head * key_strides[2]
    value += text * value_strides[0] + head * value_strides[2]
    for first in range(low, high, BLOCK):
        other = first + tl.arange(0, BLOCK)
        exists = other < num_prompts
        mask = exists[:, None] & in_head[None, :]
        k = tl.load(key + other[:, None] * key_strides[1] + column[None, :], mask=mask, other=0.0)
        v = tl.load(value + other[:, None] * value_strides[1] + column[None, :], mask=mask, other=0.0)
        seen = group[:, None] == tl.load(spans + other, mask=exists, other=-2)[None, :]
        highest, total, mixed = _see(q, k, v, seen, scale, highest, total, mixed)
    place = ((text * num_prompts + row[:, None]) * num_heads + head) * WIDTH + column[None, :]
    mixed = mixed / total[:, None]
    tl.store(outputs + place, mixed.to(outputs.dtype.element_ty), mask=is_prompt[:, None] & in_head[None, :])


def head_logits(products: Tensor, bias: Tensor, head: Tensor) -> Tensor:
    """head tanh(products + bias) of n tasks.

    Args:
        products: (n, D, B) Of the poolers' kernels and what their tasks read.
        bias: (n, D)
        head: (n, C, D) float32

    Returns:
        (n, C, B) float32
    """
    num_tasks, width, num_texts = products.shape
    num_outputs = head.shape[1]
    products, bias, head = products.contiguous(), bias.contiguous(), head.contiguous()
    logits = torch.empty(num_tasks, num_outputs, num_texts, device=products.device)
    tiles = triton.cdiv(num_texts, HEAD_BLOCK)
    _launch(_head_logits, num_tasks * tiles)(
        products,
        bias,
        head,
        logits,
        num_texts,
        tiles,
        num_outputs,
        WIDTH=width,
        BLOCK=32,
        TEXTS=HEAD_BLOCK,
        OUTPUTS=max(16, triton.next_power_of_2(num_outputs)),
        num_warps=4,
    )
    return logits


@triton.jit  # type: ignore[untyped-decorator]
def _head_logits(  # type: ignore[no-untyped-def]
    products,
    bias,
    head,
    logits,
    num_texts,
    tiles,
    num_outputs,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TEXTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    text = (tl.program_id(0) % tiles) * TEXTS + tl.arange(0, TEXTS)
    task = (tl.program_id(0) // tiles).to(tl.int64)
    is_text = text < num_texts
    output = tl.arange(0, OUTPUTS)
    is_output = output < num_outputs
    found = tl.zeros([OUTPUTS, TEXTS], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        row = first + tl.arange(0, BLOCK)
        inside = row < WIDTH
        x = tl.load(
            products + (task * WIDTH + row[:, None]) * num_texts + text[None, :],
            mask=inside[:, None] & is_text[None, :],
            other=0.0,
        ).to(tl.float32)
        x += tl.load(bias + task * WIDTH + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        x = 1 - 2 / (tl.exp(2 * x) + 1)  # tanh
        h = tl.load(
            head + (task * num_outputs + output[:, None]) * WIDTH + row[None, :],
            mask=is_output[:, None] & inside[None, :],
            other=0.0,
        )
        found = tl.dot(h, x, found, input_precision="tf32x3")
    place = (task * num_outputs + output[:, None]) * num_texts + text[None, :]
    tl.store(logits + place, found, mask=is_output[:, None] & is_text[None, :])


def _launch(kernel: Any, num_programs: int) -> Any:
    return kernel[(num_programs,)]


def _with_rows(tensor: Tensor) -> Tensor:
    """The tensor, copied unless the values of a head lie one behind the other."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
