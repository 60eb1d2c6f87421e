"""A slow second reading of the paper for ELECTRA: one text, one task, one position after another, no masks, float64.

It knows two streams. The context (shared prompts, joint tasks' prompts, text) attends to itself. The prompts of an
isolated task attend to the context and to themselves, through linear layers that its lora adds to. The prompts of
a prompt group are there once, and each of its tasks reads them. No code is shared with the package but the parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mtop_batch.model.kinds.mtop import MTOPModel

Added = dict[Any, Tensor]
NOTHING: Added = {}


def reference_logits(model: MTOPModel, input_ids: Tensor, task: str, token_types: Tensor | None = None) -> Tensor:
    """The logits of one task for one text without padding: (T,) -> (C,)."""
    twin: Any = MTOPModel(model.config).double()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        return _logits(twin, input_ids, task, token_types).float()


def _logits(model: Any, input_ids: Tensor, task: str, token_types: Tensor | None) -> Tensor:
    embeddings = model.backbone.embeddings
    types = torch.zeros_like(input_ids) if token_types is None else token_types
    words = embeddings.word_embeddings.weight[input_ids]
    context = [] if model.shared_prompts is None else [_embed(model, p, 0, 0) for p in model.shared_prompts]
    isolated: list[Tensor] = []
    own_rows: list[int] = []
    rows_of: dict[tuple[str, str], list[int]] = {}
    for entry in model.config.tasks:
        name, group = entry["task"]["name"], entry.get("prompt_group")
        if group is None:
            prompts = [_embed(model, p, 0, 0) for p in model.task_modules[f"task_{name}"].prompts]
        else:
            prompts = [_embed(model, p, 0, 0) for p in model.prompt_groups[f"group_{group}"].prompts]
        if entry["isolated"]:
            isolated = prompts if name == task else isolated
            continue
        key = ("task", name) if group is None else ("group", group)
        if key not in rows_of:
            rows_of[key] = list(range(len(context), len(context) + len(prompts)))
            context += prompts
        own_rows = rows_of[key] if name == task else own_rows
    context += [_embed(model, word, i, int(types[i])) for i, word in enumerate(words)]
    module = model.task_modules[f"task_{task}"]
    added = {} if module.lora is None else _added(model, module.lora)
    for block in model.backbone.encoder.layer:
        seen = [(x, NOTHING) for x in context]
        keys = seen + [(x, added) for x in isolated]
        context, isolated = (
            [_block(block, x, NOTHING, seen) for x in context],
            [_block(block, x, added, keys) for x in isolated],
        )
    own = isolated or [context[row] for row in own_rows]
    mean = torch.stack(own).mean(0)
    if model.config.pooler_rank:
        kernel, bias = module.pooler.up.weight @ module.pooler.down.weight, module.pooler.up.bias
    else:
        kernel, bias = module.pooler.weight, module.pooler.bias
    return module.head.weight @ torch.tanh(kernel @ mean + bias)


def _embed(model: Any, vector: Tensor, position: int, token_type: int) -> Tensor:
    table = model.backbone.embeddings
    summed = vector + table.position_embeddings.weight[position] + table.token_type_embeddings.weight[token_type]
    return _affine(model.backbone.embeddings_project, _norm(table.LayerNorm, summed), NOTHING)


def _added(model: Any, lora: Any) -> Added:
    """What the lora adds to the weight of each layer, which stand in the order in which ELECTRA names its layers."""
    layers = [
        layer
        for block in model.backbone.encoder.layer
        for layer in (
            block.attention.self.query,
            block.attention.self.key,
            block.attention.self.value,
            block.attention.output.dense,
            block.intermediate.dense,
            block.output.dense,
        )
    ]
    return {layer: up @ down for layer, up, down in zip(layers, lora.B, lora.A, strict=True)}


def _block(block: Any, query: Tensor, added: Added, keys: list[tuple[Tensor, Added]]) -> Tensor:
    attention = block.attention.self
    size = attention.attention_head_size
    mixed = []
    for head in range(attention.num_attention_heads):
        rows = slice(head * size, (head + 1) * size)
        q = _affine(attention.query, query, added)[rows]
        scores = [torch.dot(q, _affine(attention.key, *k)[rows]).item() / math.sqrt(size) for k in keys]
        total = sum(math.exp(score) for score in scores)
        values = [_affine(attention.value, *k)[rows] for k in keys]
        weighted = [math.exp(s) / total * value for s, value in zip(scores, values, strict=True)]
        mixed.append(torch.stack(weighted).sum(0))
    output = block.attention.output
    attended = _norm(output.LayerNorm, _affine(output.dense, torch.cat(mixed), added) + query)
    wide = _affine(block.intermediate.dense, attended, added)
    wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
    return _norm(block.output.LayerNorm, _affine(block.output.dense, wide, added) + attended)


def _affine(layer: Any, x: Tensor, added: Added) -> Tensor:
    weight = layer.weight + added[layer] if layer in added else layer.weight
    affine: Tensor = weight @ x + layer.bias
    return affine


def _norm(layer: Any, x: Tensor) -> Tensor:
    variance = ((x - x.mean()) ** 2).mean()
    return (x - x.mean()) / torch.sqrt(variance + layer.eps) * layer.weight + layer.bias
