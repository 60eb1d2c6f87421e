"""What goes into a pretrained encoder, whatever its family: embeddings, positions, token types.

Prompts stand before the text. The text keeps the position ids that it has without prompts, so adding a task neither
shifts the text nor shortens it, and every prompt takes the position id of the first text token; a learned prompt
absorbs that constant. The paper leaves this open. Vectors that stand beside a text (`model.parts.vector_inputs`) come
behind it, in the places of tokens; all of them take that position id too, for they have no order.

Shapes: B texts, S prompt positions, T text positions, L = S + T, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def accepts(backbone: PreTrainedModel, argument: str) -> bool:
    """Whether the backbone's forward takes an argument of that name."""
    return argument in inspect.signature(backbone.forward).parameters


def word_embeddings(backbone: PreTrainedModel) -> nn.Embedding:
    """The backbone's table of input embeddings."""
    return cast(nn.Embedding, backbone.get_input_embeddings())


def embedding_size(backbone: PreTrainedModel) -> int:
    """E: the width of prompts. It is not the hidden width where embeddings are factorised (ELECTRA, ALBERT)."""
    return word_embeddings(backbone).embedding_dim


def no_prompts(backbone: PreTrainedModel) -> Tensor:
    """(0, E)"""
    return word_embeddings(backbone).weight.new_empty(0, embedding_size(backbone))


def encoder_layers(backbone: PreTrainedModel) -> nn.ModuleList:
    """The encoder's stack of layers, lowest first; without its embeddings."""
    stacks = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


@contextmanager
def only_last_layers(backbone: PreTrainedModel, number: int) -> Iterator[None]:
    """While the block runs, the encoder has its last layers alone, above its embeddings."""
    stack = encoder_layers(backbone)
    if number == num_layers(backbone):
        yield
        return
    parent, name = next(
        (module, name) for module in backbone.modules() for name, child in module.named_children() if child is stack
    )
    setattr(parent, name, stack[len(stack) - number :])
    try:
        yield
    finally:
        setattr(parent, name, stack)


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


def has_bert_layers(backbone: PreTrainedModel) -> bool:
    """Whether the layers of the backbone are those of BERT, under the same names."""
    return backbone.config.model_type in _BERT_LIKE


class Text(NamedTuple):
    """The text part of a batch, as `encode` takes it.

    Args:
        input_ids: (B, T) Padded on the right.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.
        token_type_ids: (B, T) 0 and 1 for the texts of a pair; None on backbones without token types.
        num_tokens: Without padding. Where it is given, or there is no padding, the texts go through an encoder packed
            on devices that can do so (`mtop_batch.model.encoder.ragged`).
        vectors: (N, E) What stands in place of embedded tokens; None for nothing.
        places: (N,) Where in the flattened batch; ids and token types are 0 there.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    num_tokens: int | None = None
    vectors: Tensor | None = None
    places: Tensor | None = None


def inputs_of(backbone: PreTrainedModel, prompts: Tensor, text: Text) -> dict[str, Tensor]:
    """Arguments of a backbone's forward, (B, L, ...) each: prompts and text as embeddings, positions, token types."""
    num_prompts, (batch_size, num_tokens) = len(prompts), text.input_ids.shape
    embedded = backbone.get_input_embeddings()(text.input_ids)
    prompts = prompts.to(embedded.dtype).expand(batch_size, -1, -1)
    start = first_position(backbone)
    positions = torch.arange(start - num_prompts, start + num_tokens, device=embedded.device).clamp(min=start)
    positions = positions.expand(batch_size, -1)
    if text.vectors is not None and text.places is not None:
        vectors = text.vectors.to(embedded.dtype)
        embedded = embedded.flatten(0, 1).index_copy(0, text.places, vectors).view_as(embedded)
        own = positions[:, num_prompts:].flatten().index_fill(0, text.places, start).view(batch_size, num_tokens)
        positions = torch.cat([positions[:, :num_prompts], own], dim=1)
    inputs = {
        "inputs_embeds": torch.cat([prompts, embedded], dim=1) if num_prompts else embedded,
        "position_ids": positions,
    }
    if text.token_type_ids is not None and has_token_types(backbone):
        inputs["token_type_ids"] = nn.functional.pad(text.token_type_ids, (num_prompts, 0))
    return inputs


def prompts_of(backbone: PreTrainedModel, prompts: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """(B, S, E) The embeddings of isolated prompts, and (B, S) their positions."""
    embedded = prompts.to(word_embeddings(backbone).weight.dtype).expand(batch_size, -1, -1)
    return embedded, torch.full(embedded.shape[:2], first_position(backbone), device=prompts.device)


def embed(backbone: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """(..., D) What goes into the first of a backbone's BERT layers, from arguments of its forward."""
    bert: Any = backbone
    embedded: Tensor = bert.embeddings(**inputs)
    project: nn.Module | None = getattr(bert, "embeddings_project", None)
    return embedded if project is None else project(embedded)
