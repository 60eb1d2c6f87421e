"""The layers of BERT-like encoders as plain functions over packed positions: what makes a GPU fast.

The same weights and results as the encoder's own modules (BERT, RoBERTa, ELECTRA and their like), with less around the
matrix products: queries, keys and values by one product, GELU at the end of the product before it, and of the last
layer only what somebody reads. Compiling all else of a layer for all sizes of batches (`torch.compile`, dynamic shapes)
was slower than its kernels as they come: 0.89 of the documents/s on an H200.

Shapes: B texts, N positions of all texts together, P prompts of a text, D hidden width, H heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation

from mtop_batch.model.encoder import ragged
from mtop_batch.model.encoder.encode import Pass, encode_with_kv_cache
from mtop_batch.model.encoder.families import Branch
from mtop_batch.model.encoder.inputs import Text, embed, has_bert_layers, inputs_of, prompts_of
from mtop_batch.model.encoder.kv_cache import KeyValues, KVCache
from mtop_batch.model.encoder.lora import FamilyLoRA, MergedWeights, as_family
from mtop_batch.model.encoder.masks import group_spans
from mtop_batch.model.encoder.ragged import Ragged, varlen_attention
from mtop_batch.model.kernels import has_kernels

# The exact one, and ways to write the one by tanh.
_GELUS = (GELUActivation, GELUTanh, NewGELUActivation, FastGELUActivation)


class _Affine(NamedTuple):
    """A product's or a normalisation's weight and bias."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, *modules: Any, merged: MergedWeights = MappingProxyType({})) -> _Affine:
        """Of modules that read the same inputs: their outputs one behind the other; some with LoRA in their weights."""
        weights = [merged.get(module, module.weight).detach() for module in modules]
        if len(modules) == 1:
            return cls(weights[0], modules[0].bias.detach())
        return cls(torch.cat(weights), torch.cat([module.bias.detach() for module in modules]))


class _Layer(NamedTuple):
    """The weights of a layer: queries, keys and values; output of attention; feed-forward; norms after both."""

    qkv: _Affine
    out: _Affine
    out_norm: _Affine
    up: _Affine
    down: _Affine
    down_norm: _Affine

    @classmethod
    def of(cls, layer: Any, merged: MergedWeights = MappingProxyType({})) -> _Layer:
        """Of a layer of BERT, with LoRA in the weights of its linear layers."""
        attention = layer.attention.self
        return cls(
            qkv=_Affine.of(attention.query, attention.key, attention.value, merged=merged),
            out=_Affine.of(layer.attention.output.dense, merged=merged),
            out_norm=_Affine.of(layer.attention.output.LayerNorm),
            up=_Affine.of(layer.intermediate.dense, merged=merged),
            down=_Affine.of(layer.output.dense, merged=merged),
            down_norm=_Affine.of(layer.output.LayerNorm),
        )


def _finish(
    hidden: Tensor,
    mixed: Tensor,
    out: _Affine,
    out_norm: _Affine,
    up: _Affine,
    down: _Affine,
    down_norm: _Affine,
    *,
    activation: Callable[[Tensor], Tensor],
    eps: float,
) -> Tensor:
    """(M, D) What a layer makes of its inputs and of what attention gave, both (M, D)."""
    hidden = _add_norm(hidden, F.linear(mixed, *out), out_norm, eps)
    return _add_norm(hidden, F.linear(_activated(hidden, up, activation), *down), down_norm, eps)


def _activated(hidden: Tensor, up: _Affine, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """(M, I) The product of the width I between a layer's two, and the activation.

    On a GPU in 16 bits the exact GELU becomes the one by tanh, off by 0.0005 at most, which cuBLAS has at the end of
    its product: 8 to 10 % more documents/s on an H100. bf16 itself is off by more. Of 81,016 labels 63 differ from fp32
    with isolated prompts and 128 with joint ones; with the exact GELU 66 and 125 did.
    """
    if isinstance(activation, _GELUS) and _has_gelu_in_product(hidden):
        return torch._addmm_activation(up.bias, hidden, up.weight.t(), use_gelu=True)
    return activation(F.linear(hidden, *up))


def _has_gelu_in_product(hidden: Tensor) -> bool:
    """Whether a product of these inputs can end with GELU."""
    return hidden.device.type == "cuda" and hidden.dtype in (torch.float16, torch.bfloat16)


def _add_norm(hidden: Tensor, added: Tensor, norm: _Affine, eps: float) -> Tensor:
    """(M, D) The norm of the sum of two."""
    if has_kernels(hidden):
        from mtop_batch.model import triton_kernels

        return triton_kernels.add_norm(hidden, added, *norm, eps)
    return F.layer_norm(hidden + added, hidden.shape[-1:], *norm, eps)


@dataclass(frozen=True)
class FusedLayers:
    """The layers of an encoder.

    Args:
        layers: Their weights.
        num_heads: H
        scaling: Of the products of queries and keys.
        finish: All of a layer but attention.
    """

    layers: tuple[_Layer, ...]
    num_heads: int
    scaling: float
    finish: Callable[..., Tensor]

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> FusedLayers | None:
        """The layers of a backbone as its weights are now; None for families whose layers are others."""
        if not has_bert_layers(backbone):
            return None
        encoder: Any = backbone.encoder
        modules = encoder.layer
        attention = modules[0].attention.self
        layers = tuple(map(_Layer.of, modules))
        activation, eps = modules[0].intermediate.intermediate_act_fn, backbone.config.layer_norm_eps
        finish = partial(_finish, activation=activation, eps=eps)
        return cls(layers, attention.num_attention_heads, attention.scaling, finish)

    def of_family(self, backbone: PreTrainedModel, family: FamilyLoRA, merged: MergedWeights) -> FusedLayers:
        """The layers as a family has them: the lower ones are these, and LoRA is in the weights of the last ones."""
        encoder: Any = backbone.encoder
        start = len(self.layers) - family.num_layers
        upper = (_Layer.of(layer, merged) for layer in encoder.layer[start:])
        return replace(self, layers=(*self.layers[:start], *upper))

    def between(self, start: int, stop: int) -> FusedLayers:
        """Some of the layers."""
        return replace(self, layers=self.layers[start:stop])

    def over_texts(self, hidden: Tensor, batch: Ragged, num_first: int | None) -> tuple[Tensor, KeyValues]:
        """Run over packed texts.

        Args:
            hidden: (N, D) The texts' embeddings.
            batch: How they are packed.
            num_first: At how many first positions of each text the outputs are wanted; None for all.

        Returns:
            Outputs, (B, num_first, D) or for None (N, D), and the keys and values (N, H, W) of each layer.
        """
        key_values: KeyValues = []
        *earlier, last = self.layers
        for layer in earlier:
            query, key, value = self._project(hidden, layer.qkv, 3)
            key_values.append((key, value))
            mixed = ragged.attend(ragged.scaled(query, self.scaling), key, value, batch)
            hidden = self.finish(hidden, mixed.flatten(1), *layer[1:])
        if num_first is None:
            query, key, value = self._project(hidden, last.qkv, 3)
            mixed = ragged.attend(ragged.scaled(query, self.scaling), key, value, batch)
            return self.finish(hidden, mixed.flatten(1), *last[1:]), [*key_values, (key, value)]
        width = hidden.shape[1]
        key, value = self._project(hidden, _Affine(last.qkv.weight[width:], last.qkv.bias[width:]), 2)
        key_values.append((key, value))
        batch_size = batch.packing.shape[0]
        if not num_first:
            return hidden.new_empty(batch_size, 0, width), key_values
        first = (batch.offsets[:-1, None] + torch.arange(num_first, device=hidden.device)).flatten()
        hidden = hidden.index_select(0, first)
        (query,) = self._project(hidden, _Affine(last.qkv.weight[:width], last.qkv.bias[:width]), 1)
        starts = torch.arange(0, len(hidden) + 1, num_first, dtype=torch.int32, device=hidden.device)
        query, longest = ragged.scaled(query, self.scaling), (num_first, batch.longest)
        mixed, _ = varlen_attention(query, key, value, (starts, batch.offsets), longest)
        return self.finish(hidden, mixed.flatten(1), *last[1:]).unflatten(0, (batch_size, num_first)), key_values

    def over_prompts(self, hidden: Tensor, key_values: KeyValues, batch: Ragged, spans: Tensor) -> Tensor:
        """Run over isolated prompts, which read texts.

        Args:
            hidden: (B, P, D) The prompts' embeddings.
            key_values: From `over_texts`, of the last layers, which are all that the prompts go through.
            batch: How the texts are packed.
            spans: (3, P) The prompts' groups (`mtop_batch.model.encoder.masks.group_spans`).

        Returns:
            (B, P, D) outputs at the prompts.
        """
        size = hidden.shape[:2]
        hidden = hidden.flatten(0, 1)
        for layer, earlier in zip(self.layers[-len(key_values) :], key_values, strict=True):
            query, key, value = (each.unflatten(0, size) for each in self._project(hidden, layer.qkv, 3))
            query = ragged.scaled(query, self.scaling)
            mixed = ragged.attend_from_prompts(query, key, value, earlier, batch, spans)
            hidden = self.finish(hidden, mixed.reshape(hidden.shape), *layer[1:])
        return hidden.unflatten(0, size)

    def _project(self, hidden: Tensor, affine: _Affine, num: int) -> tuple[Tensor, ...]:
        """(M, H, W) Each of the `num` parts that a product has."""
        return F.linear(hidden, *affine).view(len(hidden), num, self.num_heads, -1).unbind(1)


def encode_fused(
    backbone: PreTrainedModel,
    fused: FusedLayers,
    prompts: Tensor,
    text: Text,
    batch: Ragged,
    groups: Sequence[int],
    passes: Sequence[Pass],
    *,
    at_text: bool,
) -> tuple[Tensor, Tensor]:
    """What `mtop_batch.model.encoder.encode` does.

    Args:
        backbone: Whose layers `fused` are.
        fused: Its layers.
        prompts: (S, E)
        text: The texts.
        batch: How they are packed, with the prompts of the context before each.
        groups: (S) The group of each prompt.
        passes: How the prompts that do not belong to the context go through the encoder.
        at_text: Whether the outputs at the text are wanted.

    Returns:
        (B, S, D) outputs at the prompts, and (B, T, D) outputs at the text, or (B, 0, D) if they are not wanted.
    """
    num_in_context = groups.count(0)
    inputs = inputs_of(backbone, prompts[:num_in_context], text)
    hidden = embed(backbone, {name: batch.packing.pack(value) for name, value in inputs.items()})[0]
    outputs, key_values = fused.over_texts(hidden, batch, None if at_text else num_in_context)
    if at_text:
        outputs = batch.packing.unpack(outputs[None])
    own = prompts[num_in_context:], groups[num_in_context:], passes
    found = [outputs[:, :num_in_context], *_read(backbone, fused, key_values, batch, *own)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1), outputs[:, num_in_context:]


def encode_branches_fused(
    backbone: PreTrainedModel,
    layers: Sequence[FusedLayers],
    context: Tensor,
    text: Text,
    batch: Ragged,
    branches: Sequence[Branch],
) -> list[tuple[Tensor, Tensor]]:
    """What `mtop_batch.model.encoder.families.encode_branches` does.

    Args:
        backbone: Whose layers these are.
        layers: As each branch has them.
        context: (C, E) The prompts that the text sees.
        text: The texts.
        batch: How they are packed, with the prompts of the context before each.
        branches: What is wanted.
    """
    num_layers, num_in_context = len(layers[0].layers), len(context)
    inputs = inputs_of(backbone, context, text)
    hidden = embed(backbone, {name: batch.packing.pack(value) for name, value in inputs.items()})[0]
    starts = [min(branch.first_layer(num_layers), num_layers - 1) for branch in branches]
    inputs_of_layers, lower, done = {}, [], 0
    for start in sorted(set(starts)):
        if start > done:
            hidden, key_values = layers[0].between(done, start).over_texts(hidden, batch, None)
            lower += key_values
        inputs_of_layers[start], done = hidden, start
    found = []
    for branch, own, start in zip(branches, layers, starts, strict=True):
        num_first = None if branch.at_text else num_in_context
        outputs, upper = own.between(start, num_layers).over_texts(inputs_of_layers[start], batch, num_first)
        if branch.at_text:
            outputs = batch.packing.unpack(outputs[None])
        prompts = branch.prompts, branch.groups, branch.passes
        with as_family(backbone, branch.family, branch.merged):
            at_own = list(_read(backbone, own, [*lower[:start], *upper], batch, *prompts))
        at_prompts = torch.cat([outputs[:, :num_in_context], *at_own], dim=1)
        found.append((at_prompts, outputs[:, num_in_context:]))
    return found


def _read(
    backbone: PreTrainedModel,
    fused: FusedLayers,
    key_values: KeyValues,
    batch: Ragged,
    prompts: Tensor,
    groups: Sequence[int],
    passes: Sequence[Pass],
) -> Iterator[Tensor]:
    """(B, S, D) Outputs at the S isolated prompts, pass by pass."""
    start = 0
    for one in passes:
        own = slice(start, start := start + one.num_prompts)
        if one.lora:  # they work on the encoder's own modules
            kv_cache = KVCache(key_values, None, batch).last(one.num_layers)
            yield encode_with_kv_cache(backbone, prompts[own], kv_cache, groups[own], one.lora)
            continue
        embedded, positions = prompts_of(backbone, prompts[own], batch.packing.shape[0])
        spans = group_spans(tuple(groups[own]), embedded.device)
        embedded = embed(backbone, {"inputs_embeds": embedded, "position_ids": positions})
        yield fused.over_prompts(embedded, key_values[-one.num_layers :], batch, spans)
