"""How a pretrained encoder is run with prompts before the text.

`encode` hides what differs between model families: their inputs (`encoder/inputs`), attention masks (`encoder/masks`),
whether they can have a KV cache, and whether a device can attend over packed texts.

Shapes: B texts, S prompt positions, T text positions, L = S + T, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder import ragged
from mtop_batch.model.encoder.inputs import (
    Text,
    inputs_of,
    no_prompts,
    num_layers,
    only_last_layers,
    prompts_of,
    word_embeddings,
)
from mtop_batch.model.encoder.kv_cache import (
    KeyValues,
    KVCache,
    has_kv_cache,
    packed,
    packed_throughout,
    reading,
    record_only,
    recording,
)
from mtop_batch.model.encoder.lora import LoRAStack, with_lora
from mtop_batch.model.encoder.masks import (
    SLIDING_KINDS,
    additive,
    attention_masks,
    computed_in,
    group_ids,
    group_spans,
    has_windows,
    see_each_other,
    sees_cache_and,
    with_prompts,
)
from mtop_batch.model.encoder.packing import Packing
from mtop_batch.model.encoder.ragged import Ragged

# On a CPU the passes of MiniLM over 16 headlines take 0.9 of the time in fp32 and 0.8 in bf16 if the prompts are among
# them; from twice as many positions on they take longer than two passes, of which that of the text ends early.
_FEW_POSITIONS = 640


@dataclass(frozen=True)
class Pass:
    """Isolated prompts that go through the encoder together.

    Args:
        num_prompts: How many there are.
        lora: Of these prompts, counted from the first of them.
        num_layers: The last so many layers are all that they go through; 0 for all layers.
    """

    num_prompts: int
    lora: Sequence[LoRAStack] = ()
    num_layers: int = 0


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
    vectors: Tensor | None = None,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the encoder over the prompts followed by the text.

    Args:
        backbone: One that `check_backbone` accepted.
        prompts: (S, E) The same for every text of the batch; S may be 0.
        input_ids: (B, T) Padded on the right.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.
        token_type_ids: (B, T) 0 and 1 for the texts of a pair; left out on backbones without token types.
        groups: (S) The group of each prompt (`model.parts.prompts`), those of the context first; None where all
            prompts belong to it.
        passes: How the prompts that do not belong to the context go through the encoder, first ones first; None for
            all at once. LoRA and late prompts are for backbones with a KV cache (`has_kv_cache`).
        at_context: Whether the outputs at the context are wanted. Where they are not, and the backbone
            `has_kv_cache`, they are not computed: those at its prompts are zero then, and there are none at the text.
        num_tokens: How many ones the attention mask has, as far as that is known (`Text`).
        vectors: (N, E) What stands in place of tokens (`Text`).
        places: (N,) Where.

    Returns:
        (B, S, D) outputs at the prompts and (B, T, D) outputs at the text; those at padding mean nothing.
    """
    groups = groups or [0] * len(prompts)
    num_in_context = groups.count(0)
    if any(groups[:num_in_context]):
        raise ValueError(f"groups = {groups}: the prompts of the context (group 0) must come first")
    text = Text(input_ids, attention_mask, token_type_ids, num_tokens, vectors, places)
    if num_in_context == len(groups):
        return encode_at_once(backbone, prompts, text, None, ragged_batch(backbone, text, len(prompts)))
    needs_cache = any(one.lora or one.num_layers for one in passes or ())
    if needs_cache and not has_kv_cache(backbone):
        raise ConfigError(
            f"{type(backbone).__name__} has no KV cache, which LoRA and late prompts need: turn off gradient "
            "checkpointing, or set add_tasks.lora_rank = 0 and model.prompt_layers = 0"
        )
    num_positions = input_ids.numel() + len(input_ids) * len(prompts)
    if not has_kv_cache(backbone) or (_is_bound_by_launches(backbone, num_positions) and not needs_cache):
        return encode_at_once(backbone, prompts, text, group_ids(tuple(groups), input_ids.device))
    own, own_groups = prompts[num_in_context:], groups[num_in_context:]
    if not at_context:
        kv_cache = encode_kv_cache(backbone, prompts[:num_in_context], *text)
        at_own = read_kv_cache(backbone, own, kv_cache, own_groups, passes)
        return nn.functional.pad(at_own, (0, 0, num_in_context, 0)), at_own[:, :0]
    key_values: KeyValues = []
    batch = ragged_batch(backbone, text, num_in_context)
    at_context_prompts, at_text = encode_at_once(
        backbone, prompts[:num_in_context], text, None, batch, **recording(key_values)
    )
    at_own = read_kv_cache(backbone, own, kv_cache_of(key_values, text, num_in_context, batch), own_groups, passes)
    return torch.cat([at_context_prompts, at_own], dim=1), at_text


def read_kv_cache(
    backbone: PreTrainedModel, prompts: Tensor, kv_cache: KVCache, groups: Sequence[int], passes: Sequence[Pass] | None
) -> Tensor:
    """(B, S, D) Outputs at the S isolated prompts, by one pass after the other."""
    passes = passes or [Pass(len(prompts))]
    if sum(one.num_prompts for one in passes) != len(prompts):
        raise ValueError(f"the passes have {sum(one.num_prompts for one in passes)} prompts of {len(prompts)}")
    outputs, start = [], 0
    for one in passes:
        own = slice(start, start := start + one.num_prompts)
        cache = kv_cache.last(one.num_layers)
        outputs.append(encode_with_kv_cache(backbone, prompts[own], cache, groups[own], one.lora))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def encode_kv_cache(
    backbone: PreTrainedModel,
    prompts: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    num_tokens: int | None = None,
    vectors: Tensor | None = None,
    places: Tensor | None = None,
) -> KVCache:
    """Run the encoder over the context alone and cache its keys and values, for `encode_with_kv_cache`.

    Args:
        backbone: One with a KV cache (`has_kv_cache`).
        prompts: (S, E) Those of the context.
        input_ids: As for `encode`, like the others.
    """
    text = Text(input_ids, attention_mask, token_type_ids, num_tokens, vectors, places)
    batch = ragged_batch(backbone, text, len(prompts))
    key_values = record_only(
        num_layers(backbone), lambda arguments: encode_at_once(backbone, prompts, text, None, batch, **arguments)
    )
    return kv_cache_of(key_values, text, len(prompts), batch)


def encode_with_kv_cache(
    backbone: PreTrainedModel,
    prompts: Tensor,
    kv_cache: KVCache,
    groups: Sequence[int],
    lora: Sequence[LoRAStack] = (),
) -> Tensor:
    """Run the encoder over isolated prompts only, which attend to the cached keys and values of a context.

    They go through the last layers, as many as the cache has.

    Args:
        backbone: The one that the cache comes from.
        prompts: (S, E) The same for every text of the batch.
        kv_cache: Of B texts.
        groups: (S) The group of each prompt; none is 0.
        lora: Of these prompts.

    Returns:
        (B, S, D) outputs at the prompts.
    """
    embedded, positions = prompts_of(backbone, prompts, kv_cache.batch_size)
    arguments, mask = reading(kv_cache.key_values), None
    if kv_cache.ragged is not None:
        arguments |= packed_throughout(kv_cache.ragged, group_spans(tuple(groups), prompts.device))
    else:
        mask = additive(sees_cache_and(see_each_other(groups, prompts.device), kv_cache)[:, None], embedded)
    with with_lora(backbone, lora), only_last_layers(backbone, len(kv_cache.key_values)):
        outputs: Tensor = backbone(
            inputs_embeds=embedded,
            attention_mask=dict.fromkeys(SLIDING_KINDS, mask) if has_windows(backbone.config) else mask,
            position_ids=positions,
            **arguments,
        ).last_hidden_state
    return outputs


def encode_with_prefix(backbone: PreTrainedModel, prefix: KeyValues, text: Text) -> Tensor:
    """Run the encoder over texts whose positions see a prefix of keys and values in every layer too.

    Args:
        backbone: One with a KV cache (`has_kv_cache`), all of whose layers see the whole text.
        prefix: Keys and values of each layer, (1, heads, P, width of a head), the same for every text of the batch.
        text: Of B texts.

    Returns:
        (B, T, D) outputs at the text; those at padding mean nothing.

    Raises:
        ConfigError: The backbone runs its layers again for their gradients, when the prefix has been read.
    """
    if not has_kv_cache(backbone):
        raise ConfigError(
            f"{type(backbone).__name__} has no KV cache, which a prefix needs: turn off gradient checkpointing"
        )
    per_position = inputs_of(backbone, no_prompts(backbone), text)
    embedded = per_position["inputs_embeds"]
    own = [(_of_batch(key, embedded), _of_batch(value, embedded)) for key, value in prefix]
    mask = None
    if text.attention_mask is not None:
        sees = with_prompts(text.attention_mask, prefix[0][0].shape[2])
        mask = additive(sees[:, None, None, :].bool(), embedded)
    packing = _training_packing(backbone, text, num_prompts=0)
    return _outputs(backbone, per_position, mask, packing, reading(own) | ({} if packing is None else packed(packing)))


def _of_batch(tensor: Tensor, embedded: Tensor) -> Tensor:
    """(1, ...) to (B, ...), in the type that embeddings (B, ...) are computed in."""
    return tensor.to(computed_in(embedded)).expand(len(embedded), *tensor.shape[1:])


def kv_cache_of(key_values: KeyValues, text: Text, num_prompts: int, batch: Ragged | None) -> KVCache:
    """The keys and values of a context: of these texts, with so many prompts before each."""
    mask = text.attention_mask
    return KVCache(key_values, None if mask is None else with_prompts(mask, num_prompts), batch)


def ragged_batch(backbone: PreTrainedModel, text: Text, num_prompts: int) -> Ragged | None:
    """How a pass of these texts with so many prompts before each is packed for attention too; None where it is not."""
    mask, (batch_size, num_tokens) = text.attention_mask, text.input_ids.shape
    if backbone.training or not has_kv_cache(backbone) or has_windows(backbone.config):
        return None
    if not ragged.is_possible(text.input_ids.device, word_embeddings(backbone).weight.dtype):
        return None
    if mask is None:
        return Ragged.of(Packing.of_full(batch_size, num_tokens + num_prompts, text.input_ids.device))
    if text.num_tokens is None:
        return None
    return Ragged.of(Packing.of_size(with_prompts(mask, num_prompts), text.num_tokens + batch_size * num_prompts))


def _is_bound_by_launches(backbone: PreTrainedModel, num_positions: int) -> bool:
    """Whether the number of operations counts, not their size: in training on a GPU, or at few positions.

    On a GPU a step of a usual batch takes as long as the host takes to launch its kernels. So text and prompts go
    through the encoder together, under a mask that keeps them apart. On a CPU there is little to compute for the text
    of an encoder that does not train: it has no gradient, unless the prompts are beside it.
    """
    if not backbone.training or _launches_kernels(backbone):
        return backbone.training
    return num_positions <= _FEW_POSITIONS and any(weight.requires_grad for weight in backbone.parameters())


def _launches_kernels(backbone: PreTrainedModel) -> bool:
    return backbone.device.type == "cuda"


def _leaves_out_padding(backbone: PreTrainedModel) -> bool:
    return backbone.training and has_kv_cache(backbone) and not _launches_kernels(backbone)


def encode_at_once(
    backbone: PreTrainedModel,
    prompts: Tensor,
    text: Text,
    groups: Tensor | None,
    batch: Ragged | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """One pass over everything; groups (S,) take a mask over everything. On CPUs training leaves out padding."""
    num_prompts = len(prompts)
    per_position = inputs_of(backbone, prompts, text)
    embedded = per_position["inputs_embeds"]
    mask, packing = None, None
    if batch is not None:
        packing = batch.packing
        arguments |= packed_throughout(batch)
    else:
        mask = attention_masks(backbone.config, embedded, num_prompts, text.attention_mask, groups)
        packing = _training_packing(backbone, text, num_prompts)
        arguments |= {} if packing is None else packed(packing)
    outputs = _outputs(backbone, per_position, mask, packing, arguments)
    return outputs[:, :num_prompts], outputs[:, num_prompts:]


def _training_packing(backbone: PreTrainedModel, text: Text, num_prompts: int) -> Packing | None:
    """How training leaves out the padding of these texts with so many prompts before each; None where it does not."""
    if text.attention_mask is None or not _leaves_out_padding(backbone):
        return None
    return Packing.of(with_prompts(text.attention_mask, num_prompts))


def _outputs(
    backbone: PreTrainedModel,
    per_position: dict[str, Tensor],
    mask: Tensor | dict[str, Tensor] | None,
    packing: Packing | None,
    arguments: dict[str, Any],
) -> Tensor:
    """(B, L, D) The backbone's outputs for arguments (B, L, ...) of its forward and others."""
    if packing is not None:
        per_position = {name: packing.pack(value) for name, value in per_position.items()}
    outputs: Tensor = backbone(**per_position, attention_mask=mask, **arguments).last_hidden_state
    return outputs if packing is None else packing.unpack(outputs)
