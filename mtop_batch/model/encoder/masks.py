"""Attention masks: what prompts and text see of each other, in the form that a family of encoders takes.

All masks are additive: 0 where a position is seen, else the lowest number of the type that is computed in.

Shapes: B texts, S prompt positions, T text positions, L = S + T, C positions of a context.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mtop_batch.model.encoder.kv_cache import KVCache
from mtop_batch.model.parts.prompts import attention_mask_of

SLIDING_KINDS = ("full_attention", "sliding_attention")


def see_each_other(groups: Sequence[int], device: torch.device) -> Tensor:
    """(S, S) bool"""
    own = group_ids(tuple(groups), device)
    return own[:, None] == own[None, :]


def sees_cache_and(sees_own: Tensor, kv_cache: KVCache) -> Tensor:
    """(B, S, C + S) What S prompts see of the context, all of it but padding, and of each other, (S, S)."""
    num_prompts, num_context = len(sees_own), kv_cache.key_values[0][0].shape[2]
    sees_own = sees_own.expand(kv_cache.batch_size, -1, -1)
    if kv_cache.attention_mask is None:
        return torch.cat([sees_own.new_ones(kv_cache.batch_size, num_prompts, num_context), sees_own], dim=2)
    return torch.cat([kv_cache.attention_mask[:, None].bool().expand(-1, num_prompts, -1), sees_own], dim=2)


@lru_cache(maxsize=64)
def group_ids(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """(S,) The groups of prompts; kept, because what is brought to a GPU waits for all that it has to do."""
    with torch.inference_mode(False):
        return torch.tensor(groups, device=device)


@lru_cache(maxsize=64)
def index_of(places: tuple[int, ...], device: torch.device) -> Tensor:
    """(n,) Places; kept as well."""
    with torch.inference_mode(False):
        return torch.tensor(places, dtype=torch.int64, device=device)


@lru_cache(maxsize=64)
def group_spans(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """(3, S) int32: the group of each prompt, the first prompt of that group, and one behind the last; kept as well."""
    behind = {group: index + 1 for index, group in enumerate(groups)}
    spans = [groups, [groups.index(group) for group in groups], [behind[group] for group in groups]]
    with torch.inference_mode(False):
        return torch.tensor(spans, dtype=torch.int32, device=device)


def with_prompts(attention_mask: Tensor, num_prompts: int) -> Tensor:
    """(B, L) The mask of padding with as many positions before the text."""
    return nn.functional.pad(attention_mask, (num_prompts, 0), value=1)


def has_windows(config: PreTrainedConfig) -> bool:
    """Whether some layers see a window of the text only (ModernBERT), so that they take a mask of their own."""
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def attention_masks(
    config: PreTrainedConfig,
    embedded: Tensor,
    num_prompts: int,
    attention_mask: Tensor | None,
    groups: Tensor | None,
) -> Tensor | dict[str, Tensor] | None:
    """The mask in the simplest form that says it: None, or additive: (B, 1, 1, L) for padding alone, else with L rows.

    A (B, L) mask would do for padding, but transformers looks at its values, which waits for all that a GPU has to do.
    Backbones with sliding windows (ModernBERT) take a mask per kind of layer. There the text keeps its window,
    while prompts see all of the text and are seen from everywhere in it, as far as the groups allow.
    """
    # Without prompts and padding, windows are left to the backbone, which knows nothing of packing.
    windows = has_windows(config) and (num_prompts > 0 or attention_mask is not None)
    padded = None if attention_mask is None else with_prompts(attention_mask, num_prompts)
    if groups is None and not windows:
        return None if padded is None else additive(padded[:, None, None, :].bool(), embedded)
    num_tokens = embedded.shape[1] - num_prompts
    if groups is None:
        groups = torch.zeros(num_prompts, dtype=torch.long)
    sees = attention_mask_of(nn.functional.pad(groups.to(embedded.device), (0, num_tokens)))[None, None]
    if padded is not None:
        sees = sees & padded[:, None, None, :].bool()
    if not windows:
        return additive(sees, embedded)
    index = torch.arange(-num_prompts, num_tokens, device=embedded.device)
    near = (index[:, None] - index[None, :]).abs() <= config.sliding_window
    near = near | (index[:, None] < 0) | (index[None, :] < 0)
    full, sliding = SLIDING_KINDS
    return {full: additive(sees, embedded), sliding: additive(sees & near, embedded)}


def additive(sees: Tensor, embedded: Tensor) -> Tensor:
    """0 where a position is seen, else the lowest number of the computation's type (eager attention misreads bool)."""
    dtype = computed_in(embedded)
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


def computed_in(embedded: Tensor) -> torch.dtype:
    """The type in which an encoder computes with these embeddings."""
    device_type = embedded.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else embedded.dtype
