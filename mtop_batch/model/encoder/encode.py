"""How a pretrained encoder is run with prompts before the text.

`encode` hides what differs between model families: the width of the input embeddings, where positions start, token
types, and the form of attention masks. What the paper leaves open is settled here: the text keeps the position ids
that it has without prompts, so adding a task neither shifts the text nor shortens it, and every prompt takes the
position id of the first text token; a learned prompt absorbs that constant.

Shapes: B texts, S prompt positions, T text positions, L = S + T, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mtop_batch.model.encoder import ragged
from mtop_batch.model.encoder.kv_cache import (
    Context,
    KeyValues,
    is_readable,
    packed,
    packed_throughout,
    reading,
    record_only,
    recording,
)
from mtop_batch.model.encoder.lora import AdapterStack, adapted
from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.encoder.ragged import Ragged
from mtop_batch.model.parts.prompts import visibility

_SLIDING_KINDS = ("full_attention", "sliding_attention")


def accepts(backbone: PreTrainedModel, argument: str) -> bool:
    """Whether the backbone's forward takes an argument of that name."""
    return argument in inspect.signature(backbone.forward).parameters


def word_embeddings(backbone: PreTrainedModel) -> nn.Embedding:
    """The backbone's table of input embeddings."""
    return cast(nn.Embedding, backbone.get_input_embeddings())


def embedding_size(backbone: PreTrainedModel) -> int:
    """E: the width of prompts. It is not the hidden width where embeddings are factorised (ELECTRA, ALBERT)."""
    return word_embeddings(backbone).embedding_dim


def num_layers(backbone: PreTrainedModel) -> int:
    """Layers of the encoder."""
    return int(backbone.config.num_hidden_layers)


def hidden_size(backbone: PreTrainedModel) -> int:
    """D: the width of the encoder's outputs."""
    return int(backbone.config.hidden_size)


def first_position(backbone: PreTrainedModel) -> int:
    """The position id of the first text token: after the padding index on RoBERTa-like backbones, otherwise 0."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding_index = getattr(table, "padding_idx", None)
    return 0 if padding_index is None else int(padding_index) + 1


def has_token_types(backbone: PreTrainedModel) -> bool:
    """Whether the backbone tells the two texts of a pair apart by token types."""
    return accepts(backbone, "token_type_ids") and getattr(backbone.config, "type_vocab_size", 0) > 1


class Text(NamedTuple):
    """The text part of a batch, as `encode` takes it.

    Args:
        input_ids: (B, T) Padded on the right.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.
        token_type_ids: (B, T) 0 and 1 for the texts of a pair; None on backbones without token types.
        num_tokens: Without padding. Where it is given, or there is no padding, the texts go through an encoder packed
            on devices that can do so (`mtop_batch.model.encoder.ragged`).
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    num_tokens: int | None = None


@dataclass(frozen=True)
class Pass:
    """Isolated prompts that go through the encoder together.

    Args:
        num_prompts: How many there are.
        adapters: Of these prompts; they count from the first of them.
    """

    num_prompts: int
    adapters: Sequence[AdapterStack] = ()


def encode(
    backbone: PreTrainedModel,
    prompts: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    groups: Sequence[int] | None = None,
    *,
    passes: Sequence[Pass] | None = None,
    at_context: bool = True,
    num_tokens: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the encoder over the prompts followed by the text.

    Args:
        backbone: One that `check_backbone` let pass.
        prompts: (S, E) The same for every text of the batch; S may be 0.
        input_ids: (B, T) Padded on the right.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.
        token_type_ids: (B, T) 0 and 1 for the texts of a pair; left out on backbones without token types.
        groups: (S) The group of each prompt (`model.parts.prompts`), those of the context first; None where all
            prompts belong to it.
        passes: How the prompts that do not belong to the context go through the encoder, first ones first; None for
            all at once. Adapters are for backbones whose attention `is_readable`.
        at_context: Whether the outputs at the context are wanted. Where they are not, and the backbone's attention
            `is_readable`, they are not computed: those at its prompts are zero then, and there are none at the text.
        num_tokens: How many ones the attention mask has, as far as that is known (`Text`).

    Returns:
        (B, S, D) outputs at the prompts and (B, T, D) outputs at the text; those at padding mean nothing.
    """
    groups = groups or [0] * len(prompts)
    num_in_context = groups.count(0)
    assert not any(groups[:num_in_context]), "the context's prompts come first"
    text = Text(input_ids, attention_mask, token_type_ids, num_tokens)
    if num_in_context == len(groups):
        return _encode_at_once(backbone, prompts, text, None, ragged_batch(backbone, text, len(prompts)))
    if not is_readable(backbone):
        has_adapters = any(one.adapters for one in passes or ())
        assert not has_adapters, "layers that are run again for their gradients are run without adapters"
        return _encode_at_once(backbone, prompts, text, _on_device(tuple(groups), input_ids.device))
    own, own_groups = prompts[num_in_context:], groups[num_in_context:]
    if not at_context:
        context = encode_context(backbone, prompts[:num_in_context], *text)
        at_own = _read(backbone, own, context, own_groups, passes)
        return nn.functional.pad(at_own, (0, 0, num_in_context, 0)), at_own[:, :0]
    key_values: KeyValues = []
    batch = ragged_batch(backbone, text, num_in_context)
    at_context_prompts, at_text = _encode_at_once(
        backbone, prompts[:num_in_context], text, None, batch, **recording(key_values)
    )
    at_own = _read(backbone, own, _context(key_values, text, num_in_context, batch), own_groups, passes)
    return torch.cat([at_context_prompts, at_own], dim=1), at_text


def _read(
    backbone: PreTrainedModel, prompts: Tensor, context: Context, groups: Sequence[int], passes: Sequence[Pass] | None
) -> Tensor:
    """(B, S, D) Outputs at the S isolated prompts, by one pass after the other."""
    passes = passes or [Pass(len(prompts))]
    assert sum(one.num_prompts for one in passes) == len(prompts), "the passes have all prompts"
    outputs, start = [], 0
    for one in passes:
        own = slice(start, start := start + one.num_prompts)
        outputs.append(encode_reading(backbone, prompts[own], context, groups[own], one.adapters))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def encode_context(
    backbone: PreTrainedModel,
    prompts: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    num_tokens: int | None = None,
) -> Context:
    """Run the encoder over the context alone, for `encode_reading`.

    Args:
        backbone: One whose attention `is_readable`.
        prompts: (S, E) Those of the context.
        input_ids: As for `encode`, like the others.
    """
    text = Text(input_ids, attention_mask, token_type_ids, num_tokens)
    batch = ragged_batch(backbone, text, len(prompts))
    key_values = record_only(
        num_layers(backbone), lambda arguments: _encode_at_once(backbone, prompts, text, None, batch, **arguments)
    )
    return _context(key_values, text, len(prompts), batch)


def encode_reading(
    backbone: PreTrainedModel,
    prompts: Tensor,
    context: Context,
    groups: Sequence[int],
    adapters: Sequence[AdapterStack] = (),
) -> Tensor:
    """Run the encoder over isolated prompts only, which read a context that was run before.

    Args:
        backbone: The one that left the context.
        prompts: (S, E) The same for every text of the batch.
        context: Of B texts.
        groups: (S) The group of each prompt; none is 0.
        adapters: Of these prompts.

    Returns:
        (B, S, D) outputs at the prompts.
    """
    embedded, positions = prompts_of(backbone, prompts, context.batch_size)
    arguments = reading(context.key_values)
    if context.ragged is not None:
        mask = own_mask(groups, embedded)[None, None]
        arguments |= packed_throughout(context.ragged)
    else:
        mask = _additive(_sees_context_and(_see_each_other(groups, prompts.device), context)[:, None], embedded)
    with adapted(backbone, adapters):
        outputs: Tensor = backbone(
            inputs_embeds=embedded,
            attention_mask=dict.fromkeys(_SLIDING_KINDS, mask) if _has_windows(backbone.config) else mask,
            position_ids=positions,
            **arguments,
        ).last_hidden_state
    return outputs


def prompts_of(backbone: PreTrainedModel, prompts: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """(B, S, E) The embeddings of isolated prompts, and (B, S) their positions."""
    embedded = prompts.to(word_embeddings(backbone).weight.dtype).expand(batch_size, -1, -1)
    return embedded, torch.full(embedded.shape[:2], first_position(backbone), device=prompts.device)


def own_mask(groups: Sequence[int], embedded: Tensor) -> Tensor:
    """(S, S) Which prompts of these groups see each other, additive, in the type that embeddings are computed in."""
    return _additive(_see_each_other(groups, embedded.device), embedded)


def _see_each_other(groups: Sequence[int], device: torch.device) -> Tensor:
    """(S, S) bool"""
    own = _on_device(tuple(groups), device)
    return own[:, None] == own[None, :]


def _sees_context_and(sees_own: Tensor, context: Context) -> Tensor:
    """(B, S, C + S) What S prompts see of the context, all of it but padding, and of each other, (S, S)."""
    num_prompts, num_context = len(sees_own), context.key_values[0][0].shape[2]
    sees_own = sees_own.expand(context.batch_size, -1, -1)
    if context.attention_mask is None:
        return torch.cat([sees_own.new_ones(context.batch_size, num_prompts, num_context), sees_own], dim=2)
    return torch.cat([context.attention_mask[:, None].bool().expand(-1, num_prompts, -1), sees_own], dim=2)


@lru_cache(maxsize=64)
def _on_device(groups: tuple[int, ...], device: torch.device) -> Tensor:
    """(S,) The groups of prompts; kept, because what is brought to a GPU waits for all that it has to do."""
    with torch.inference_mode(False):
        return torch.tensor(groups, device=device)


def _context(key_values: KeyValues, text: Text, num_prompts: int, batch: Ragged | None) -> Context:
    mask = text.attention_mask
    return Context(key_values, None if mask is None else _with_prompts(mask, num_prompts), batch)


def ragged_batch(backbone: PreTrainedModel, text: Text, num_prompts: int) -> Ragged | None:
    """How a pass of these texts with so many prompts before each is packed for attention too; None where it is not."""
    mask, (batch_size, num_tokens) = text.attention_mask, text.input_ids.shape
    if backbone.training or not is_readable(backbone) or _has_windows(backbone.config):
        return None
    if not ragged.is_possible(text.input_ids.device, word_embeddings(backbone).weight.dtype):
        return None
    if mask is None:
        return Ragged.of(Packing.of_full(batch_size, num_tokens + num_prompts, text.input_ids.device))
    if text.num_tokens is None:
        return None
    return Ragged.of(Packing.of_size(_with_prompts(mask, num_prompts), text.num_tokens + batch_size * num_prompts))


def _encode_at_once(
    backbone: PreTrainedModel,
    prompts: Tensor,
    text: Text,
    groups: Tensor | None,
    batch: Ragged | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """One pass over everything; groups (S,) take a mask over everything. Training leaves out padding where it can."""
    num_prompts = len(prompts)
    per_position = inputs_of(backbone, prompts, text)
    embedded = per_position["inputs_embeds"]
    mask, packing = None, None
    if batch is not None:
        packing = batch.packing
        arguments |= packed_throughout(batch)
    else:
        mask = _attention_masks(backbone.config, embedded, num_prompts, text.attention_mask, groups)
        if text.attention_mask is not None and backbone.training and is_readable(backbone):
            packing = Packing.of(_with_prompts(text.attention_mask, num_prompts))
            arguments |= {} if packing is None else packed(packing)
    if packing is not None:
        per_position = {name: packing.pack(value) for name, value in per_position.items()}
    outputs = backbone(**per_position, attention_mask=mask, **arguments).last_hidden_state
    if packing is not None:
        outputs = packing.unpack(outputs)
    return outputs[:, :num_prompts], outputs[:, num_prompts:]


def inputs_of(backbone: PreTrainedModel, prompts: Tensor, text: Text) -> dict[str, Tensor]:
    """Arguments of a backbone's forward, (B, L, ...) each: prompts and text as embeddings, positions, token types."""
    num_prompts, (batch_size, num_tokens) = len(prompts), text.input_ids.shape
    embedded = backbone.get_input_embeddings()(text.input_ids)
    prompts = prompts.to(embedded.dtype).expand(batch_size, -1, -1)
    start = first_position(backbone)
    positions = torch.arange(start - num_prompts, start + num_tokens, device=embedded.device).clamp(min=start)
    inputs = {
        "inputs_embeds": torch.cat([prompts, embedded], dim=1) if num_prompts else embedded,
        "position_ids": positions.expand(batch_size, -1),
    }
    if text.token_type_ids is not None and has_token_types(backbone):
        inputs["token_type_ids"] = nn.functional.pad(text.token_type_ids, (num_prompts, 0))
    return inputs


def _with_prompts(attention_mask: Tensor, num_prompts: int) -> Tensor:
    return nn.functional.pad(attention_mask, (num_prompts, 0), value=1)


def _has_windows(config: PreTrainedConfig) -> bool:
    """Whether some layers see a window of the text only (ModernBERT), so that they take a mask of their own."""
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def _attention_masks(
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
    windows = _has_windows(config) and num_prompts > 0
    padded = None if attention_mask is None else _with_prompts(attention_mask, num_prompts)
    if groups is None and not windows:
        if padded is None or _has_windows(config):  # without prompts, windows are left to the backbone
            return padded
        return _additive(padded[:, None, None, :].bool(), embedded)
    num_tokens = embedded.shape[1] - num_prompts
    if groups is None:
        groups = torch.zeros(num_prompts, dtype=torch.long)
    sees = visibility(nn.functional.pad(groups.to(embedded.device), (0, num_tokens)))[None, None]
    if padded is not None:
        sees = sees & padded[:, None, None, :].bool()
    if not windows:
        return _additive(sees, embedded)
    index = torch.arange(-num_prompts, num_tokens, device=embedded.device)
    near = (index[:, None] - index[None, :]).abs() <= config.sliding_window
    near = near | (index[:, None] < 0) | (index[None, :] < 0)
    full, sliding = _SLIDING_KINDS
    return {full: _additive(sees, embedded), sliding: _additive(sees & near, embedded)}


def _additive(sees: Tensor, embedded: Tensor) -> Tensor:
    """0 where a position is seen, else the lowest number of the computation's type (eager attention misreads bool)."""
    device_type = embedded.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else embedded.dtype
    lowest = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, lowest)
