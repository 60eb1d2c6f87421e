"""Attention with a KV cache, for encoders.

The context (the text, and the prompts that it sees) depends on nothing but itself. So it runs alone first, with the
plain attention of any encoder and without a mask over everything, and its keys and values are cached. The prompts of
isolated tasks, a few positions, run after it and attend to the cached keys and values. The outputs are those of one
pass under the mask of `model.parts.prompts.attention_mask_of`, at less cost. No isolated task can change what the
context computes, and the cache can be kept and used again. Where nobody wants the encoder's outputs at the context
itself, its pass ends as soon as the last layer has its keys and values; the rest of that layer is not computed.

It works with the encoders whose attention goes through `transformers.AttentionInterface`, where it is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mtop_batch.model.encoder import ragged
from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.encoder.ragged import Ragged

NAME = "mtop"
KeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class KVCache:
    """The cached keys and values of a context.

    Args:
        key_values: Keys and values of each layer, or of the last ones, both (B, heads, C, width of a head), at the
            context's C positions; or (N, heads, width of a head) at all N positions of packed texts.
        attention_mask: (B, C) 1 for positions, 0 for padding; None where there is no padding.
        ragged: How packed texts are read; None if they are not packed.
    """

    key_values: KeyValues
    attention_mask: Tensor | None
    ragged: Ragged | None = None

    def last(self, num_layers: int) -> KVCache:
        """That of the last layers alone; of all for 0."""
        return replace(self, key_values=self.key_values[-num_layers:])

    @property
    def batch_size(self) -> int:
        """B"""
        if self.ragged is not None:
            return self.ragged.packing.shape[0]
        return int(self.key_values[0][0].shape[0])


def use_kv_cache_attention(backbone: PreTrainedModel) -> None:
    """Give the backbone attention with a KV cache where its family can have it; leave it as it is where not."""
    if backbone.config._attn_implementation == "sdpa" and backbone._can_set_attn_implementation():
        backbone.set_attn_implementation(NAME)


def has_kv_cache(backbone: PreTrainedModel) -> bool:
    """Whether the attention has a KV cache; not while layers are run again for their gradients."""
    recomputes = backbone.training and any(
        getattr(part, "gradient_checkpointing", False) for part in backbone.modules()
    )
    return backbone.config._attn_implementation == NAME and not recomputes


def recording(key_values: KeyValues) -> dict[str, Any]:
    """Arguments of a backbone's forward that make its layers append their keys and values to this list."""
    return {"mtop_record": key_values.append}


def record_only(num_layers: int, forward: Callable[[dict[str, Any]], object]) -> KeyValues:
    """The keys and values of all layers, by a pass that ends when it has them.

    Args:
        num_layers: Of the backbone.
        forward: Called with arguments for the backbone's forward.
    """
    key_values: KeyValues = []

    def record(key_value: tuple[Tensor, Tensor]) -> None:
        key_values.append(key_value)
        if len(key_values) == num_layers:
            raise _Recorded

    with suppress(_Recorded):
        forward({"mtop_record": record})
    return key_values


def packed(packing: Packing) -> dict[str, Any]:
    """Arguments of a backbone's forward for inputs that are packed; masks, keys and values are of the padded batch."""
    return {"mtop_packing": packing}


def packed_throughout(batch: Ragged, spans: Tensor | None = None) -> dict[str, Any]:
    """The same where attention reads packed texts too: no masks, and keys and values are packed.

    Args:
        batch: Of the texts.
        spans: (3, P) The groups of isolated prompts (`mtop_batch.model.encoder.masks.group_spans`), where these read.
    """
    return {"mtop_ragged": batch, "mtop_spans": spans}


class _Recorded(Exception):
    """The keys and values of all layers are cached."""


def reading(key_values: KeyValues) -> dict[str, Any]:
    """Arguments of a backbone's forward that let its layers attend to these before their own."""
    return {"mtop_read": iter(key_values)}


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    mtop_record: Callable[[tuple[Tensor, Tensor]], None] | None = None,
    mtop_read: Iterator[tuple[Tensor, Tensor]] | None = None,
    mtop_packing: Packing | None = None,
    mtop_ragged: Ragged | None = None,
    mtop_spans: Tensor | None = None,
    mtop_head_masks: Callable[[Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if mtop_ragged is not None:
        query = ragged.scaled(query, kwargs.get("scaling"))
        query, key, value = (
            each.transpose(1, 2) for each in (query, key, value)
        )  # (B, P, heads, width); B is 1 if packed
        if mtop_read is not None:
            if mtop_spans is None:
                raise ValueError("isolated prompts need spans that say which of them see each other")
            return ragged.attend_from_prompts(query, key, value, next(mtop_read), mtop_ragged, mtop_spans), None
        if mtop_record is not None:
            mtop_record((key[0], value[0]))
        return ragged.attend(query[0], key[0], value[0], mtop_ragged)[None], None
    if mtop_packing is not None:  # (1, heads, N, width)
        query, key, value = (mtop_packing.unpack(each.transpose(1, 2)).transpose(1, 2) for each in (query, key, value))
    if mtop_record is not None:
        mtop_record((key, value))
    if mtop_read is not None:
        earlier_key, earlier_value = next(mtop_read)
        key, value = torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
    outputs, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if mtop_head_masks is not None:
        outputs = mtop_head_masks(outputs)
    return (outputs if mtop_packing is None else mtop_packing.pack(outputs)), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
