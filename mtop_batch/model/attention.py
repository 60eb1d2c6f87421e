"""Attention that can read the keys and values of an earlier pass.

The context (the text, and the prompts that it sees) depends on nothing but itself. So it is run alone first, with the
plain attention of any encoder and without a mask over everything, and leaves the keys and values of each layer. The
prompts of isolated tasks, a few positions, run after it and read these. The outputs are those of one pass under the
mask of `mtop_batch.model.prompts.visibility`, at less cost; no isolated task can change what the context computes; and
what the context left can be kept and read again.

Works with the encoders whose attention goes through `transformers.AttentionInterface`, which is how it gets in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "mtop"
KeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Context:
    """What a pass over the context leaves for the prompts that read it.

    Args:
        key_values: Keys and values of each layer, both (B, heads, C, width of a head), at the context's C positions.
        attention_mask: (B, C) 1 for positions, 0 for padding; None where there is no padding.
    """

    key_values: KeyValues
    attention_mask: Tensor | None

    def __post_init__(self) -> None:
        assert self.key_values, "an encoder has layers"

    @property
    def batch_size(self) -> int:
        """B"""
        return int(self.key_values[0][0].shape[0])


def use_readable_attention(backbone: PreTrainedModel) -> None:
    """Let the backbone's attention go through here where its family can; it stays as it is where it cannot."""
    if backbone.config._attn_implementation == "sdpa" and backbone._can_set_attn_implementation():
        backbone.set_attn_implementation(NAME)


def is_readable(backbone: PreTrainedModel) -> bool:
    """Whether a pass can leave its keys and values; not while layers are run again for their gradients."""
    recomputes = backbone.training and getattr(backbone, "is_gradient_checkpointing", False)
    return backbone.config._attn_implementation == NAME and not recomputes


def recording(key_values: KeyValues) -> dict[str, Any]:
    """Arguments of a backbone's forward that make its layers append their keys and values here."""
    return {"mtop_recorded": key_values}


def reading(key_values: KeyValues) -> dict[str, Any]:
    """Arguments of a backbone's forward that let its layers see these before their own."""
    return {"mtop_read": iter(key_values)}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mtop_recorded: KeyValues | None = None,
    mtop_read: Iterator[tuple[Tensor, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if mtop_recorded is not None:
        mtop_recorded.append((key, value))
    if mtop_read is not None:
        earlier_key, earlier_value = next(mtop_read)
        key, value = torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
