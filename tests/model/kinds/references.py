"""Slow second readings of the papers beside MTOP's: one text, one task, one position after another, float64.

For encoders with BERT's layers. No code is shared with the package but the parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtop_batch.model.kinds.base import MultiTaskModel


def reference_logits(model: MultiTaskModel, input_ids: Tensor, task: str) -> Tensor:
    """The logits of one task for one text without padding: (T,) -> (C,)."""
    twin: Any = copy.deepcopy(model).double()
    with torch.no_grad():
        return READINGS[model.config.model_type](twin, input_ids, f"task_{task}").float()


@dataclass
class Changes:
    """What a method changes in a layer."""

    keys: Sequence[Tensor] = ()
    values: Sequence[Tensor] = ()
    bias: Callable[[int, int], float] | None = None
    norm_weights: list[Tensor] = field(default_factory=list)


def _mt_dnn(model: Any, input_ids: Tensor, task: str) -> Tensor:
    first = _encode(model.backbone, _embed_text(model.backbone, input_ids))[0]
    return _equation_2(model, task, first)


def _single_task(model: Any, input_ids: Tensor, task: str) -> Tensor:
    return _mt_dnn(model.models[task], input_ids, task)


def _p_tuning(model: Any, input_ids: Tensor, task: str) -> Tensor:
    prompts = list(model.task_prompts[task].prompts)
    before = [_embed(model.backbone, prompt, 0) for prompt in prompts]
    hidden = _encode(model.backbone, [*before, *_embed_text(model.backbone, input_ids)])
    mean = sum(hidden[1 : len(prompts)], hidden[0]) / len(prompts)
    return _equation_2(model, task, mean)


def _p_tuning_v2(model: Any, input_ids: Tensor, task: str) -> Tensor:
    changes = []
    for index in range(len(model.backbone.encoder.layer)):
        width = model.backbone.config.hidden_size
        pairs = [prompt[2 * index * width : 2 * (index + 1) * width] for prompt in model.task_prompts[task].prompts]
        changes.append(Changes([pair[:width] for pair in pairs], [pair[width:] for pair in pairs]))
    first = _encode(model.backbone, _embed_text(model.backbone, input_ids), changes)[0]
    return _equation_2(model, task, first)


def _ca_mtl(model: Any, input_ids: Tensor, task: str) -> Tensor:
    vector, parts, layers = model.task_vectors[task], model.conditional, model.backbone.encoder.layer
    z = _affine(parts.transform, vector)
    hidden = [_film(parts.alignment, vector, x) for x in _embed_text(model.backbone, input_ids)]
    for index, layer in enumerate(layers):
        added = parts.layers[index]
        changes = Changes(bias=_block_diagonal(added.bias, z, model.config.max_tokens, len(z)))
        if index >= len(layers) // 2:
            changes.norm_weights = [
                _film(added.attention_norm, z, layer.attention.output.LayerNorm.weight),
                _film(added.output_norm, z, layer.output.LayerNorm.weight),
            ]
        hidden, attended = _layer(layer, hidden, changes)
    bottleneck = parts.layers[-1].bottleneck
    condition = _affine(bottleneck.transform, z)
    narrow = _affine(bottleneck.down, _film(bottleneck.film, condition, hidden[0]))
    weight = _film(bottleneck.norm_film, z, bottleneck.norm.weight)
    return _equation_2(model, task, _norm(bottleneck.norm, _affine(bottleneck.up, narrow) + attended[0], weight))


def _block_diagonal(bias: Any, z: Tensor, max_tokens: int, width: int) -> Callable[[int, int], float]:
    """M, from rows R that begin each in its own block."""
    num_blocks = max(1, width // max_tokens)
    size = math.ceil(max_tokens / num_blocks)

    def value(row: int, column: int) -> float:
        if row // size != column // size:
            return 0.0
        return float(_film(bias.film, z, bias.rows[row])[column % size])

    return value


READINGS: dict[str, Callable[[Any, Tensor, str], Tensor]] = {
    "mt-dnn": _mt_dnn,
    "single-task": _single_task,
    "p-tuning": _p_tuning,
    "p-tuning-v2": _p_tuning_v2,
    "ca-mtl": _ca_mtl,
}


def _equation_2(model: Any, task: str, representation: Tensor) -> Tensor:
    return model.heads[task].weight @ torch.tanh(_affine(model.pooler, representation))


def _embed_text(backbone: Any, input_ids: Tensor) -> list[Tensor]:
    words = backbone.embeddings.word_embeddings.weight[input_ids]
    return [_embed(backbone, word, position) for position, word in enumerate(words)]


def _embed(backbone: Any, vector: Tensor, position: int) -> Tensor:
    table = backbone.embeddings
    padding_index = table.position_embeddings.padding_idx if backbone.config.model_type == "roberta" else None
    place = position if padding_index is None else position + padding_index + 1
    summed = vector + table.position_embeddings.weight[place] + table.token_type_embeddings.weight[0]
    embedded = _norm(table.LayerNorm, summed)
    return _affine(backbone.embeddings_project, embedded) if hasattr(backbone, "embeddings_project") else embedded


def _encode(backbone: Any, hidden: list[Tensor], changes: Sequence[Changes] = ()) -> list[Tensor]:
    for index, layer in enumerate(backbone.encoder.layer):
        hidden, _ = _layer(layer, hidden, changes[index] if changes else Changes())
    return hidden


def _layer(layer: Any, hidden: list[Tensor], changes: Changes) -> tuple[list[Tensor], list[Tensor]]:
    """What a layer makes of all positions, and what its attention does."""
    attention, output = layer.attention.self, layer.attention.output
    keys = [*changes.keys, *(_affine(attention.key, x) for x in hidden)]
    values = [*changes.values, *(_affine(attention.value, x) for x in hidden)]
    size = attention.attention_head_size
    outputs, all_attended = [], []
    weights = changes.norm_weights or [output.LayerNorm.weight, layer.output.LayerNorm.weight]
    for row, x in enumerate(hidden):
        query = _affine(attention.query, x)
        mixed = []
        for head in range(attention.num_attention_heads):
            own = slice(head * size, (head + 1) * size)
            scores = [torch.dot(query[own], key[own]).item() / math.sqrt(size) for key in keys]
            if changes.bias is not None:
                scores = [score + changes.bias(row, column) for column, score in enumerate(scores)]
            total = sum(math.exp(score) for score in scores)
            weighted = [math.exp(score) / total * value[own] for score, value in zip(scores, values, strict=True)]
            mixed.append(torch.stack(weighted).sum(0))
        attended = _norm(output.LayerNorm, _affine(output.dense, torch.cat(mixed)) + x, weights[0])
        wide = _affine(layer.intermediate.dense, attended)
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        outputs.append(_norm(layer.output.LayerNorm, _affine(layer.output.dense, wide) + attended, weights[1]))
        all_attended.append(attended)
    return outputs, all_attended


def _film(film: Any, condition: Tensor, x: Tensor) -> Tensor:
    both = _affine(film.scale_and_shift, condition)
    return (1 + both[: len(x)]) * x + both[len(x) :]


def _affine(layer: Any, x: Tensor) -> Tensor:
    affine: Tensor = layer.weight @ x + layer.bias
    return affine


def _norm(layer: Any, x: Tensor, weight: Tensor | None = None) -> Tensor:
    variance = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / torch.sqrt(variance + layer.eps) * (layer.weight if weight is None else weight) + layer.bias
