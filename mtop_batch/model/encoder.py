"""How a pretrained encoder is run with prompts before the text.

`encode` hides what differs between model families: the width of the input embeddings, where positions start, token
types, and the form of attention masks. What the paper leaves open is settled here: the text keeps the position ids
that it has without prompts, so adding a task neither shifts the text nor shortens it, and every prompt takes the
position id of the first text token; a learned prompt absorbs that constant.

Shapes: B texts, S prompt positions, T text positions, L = S + T, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

import inspect
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from mtop_batch.model.prompts import visibility


def accepts(backbone: PreTrainedModel, argument: str) -> bool:
    """Whether the backbone's forward takes an argument of that name."""
    return argument in inspect.signature(backbone.forward).parameters


def word_embeddings(backbone: PreTrainedModel) -> nn.Embedding:
    """The backbone's table of input embeddings."""
    return cast(nn.Embedding, backbone.get_input_embeddings())


def embedding_size(backbone: PreTrainedModel) -> int:
    """E: the width of prompts. It is not the hidden width where embeddings are factorised (ELECTRA, ALBERT)."""
    return word_embeddings(backbone).embedding_dim


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


def encode(
    backbone: PreTrainedModel,
    prompts: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the encoder over the prompts followed by the text.

    Args:
        backbone: One that `check_backbone` let pass.
        prompts: (S, E) The same for every text of the batch; S may be 0.
        input_ids: (B, T) Padded on the right.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.
        token_type_ids: (B, T) 0 and 1 for the texts of a pair; left out on backbones without token types.
        groups: (S,) The group of each prompt (`mtop_batch.model.prompts`); None where all see all.

    Returns:
        (B, S, D) outputs at the prompts and (B, T, D) outputs at the text; those at padding mean nothing.
    """
    num_prompts, (batch_size, num_tokens) = len(prompts), input_ids.shape
    embedded = backbone.get_input_embeddings()(input_ids)
    prompts = prompts.to(embedded.dtype).expand(batch_size, -1, -1)
    start = first_position(backbone)
    positions = torch.arange(start - num_prompts, start + num_tokens, device=input_ids.device).clamp(min=start)
    extra: dict[str, Tensor] = {}
    if token_type_ids is not None and has_token_types(backbone):
        extra["token_type_ids"] = nn.functional.pad(token_type_ids, (num_prompts, 0))
    outputs = backbone(
        inputs_embeds=torch.cat([prompts, embedded], dim=1),
        attention_mask=_attention_masks(backbone.config, embedded, num_prompts, attention_mask, groups),
        position_ids=positions.expand(batch_size, -1),
        **extra,
    ).last_hidden_state
    return outputs[:, :num_prompts], outputs[:, num_prompts:]


def _attention_masks(
    config: PreTrainedConfig,
    embedded: Tensor,
    num_prompts: int,
    attention_mask: Tensor | None,
    groups: Tensor | None,
) -> Tensor | dict[str, Tensor] | None:
    """The mask in the simplest form that says it: None, (B, L) for padding alone, or additive (B or 1, 1, L, L).

    Backbones with sliding windows (ModernBERT) take a mask per kind of layer. There the text keeps its window,
    while prompts see all of the text and are seen from everywhere in it, as far as the groups allow.
    """
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    padded = None if attention_mask is None else nn.functional.pad(attention_mask, (num_prompts, 0), value=1)
    if groups is None and not sliding:
        return padded
    num_tokens = embedded.shape[1]
    if groups is None:
        groups = torch.zeros(num_prompts, dtype=torch.long)
    sees = visibility(nn.functional.pad(groups.to(embedded.device), (0, num_tokens)))[None, None]
    if padded is not None:
        sees = sees & padded[:, None, None, :].bool()
    if not sliding:
        return _additive(sees, embedded)
    index = torch.arange(-num_prompts, num_tokens, device=embedded.device)
    near = (index[:, None] - index[None, :]).abs() <= config.sliding_window
    near = near | (index[:, None] < 0) | (index[None, :] < 0)
    return {"full_attention": _additive(sees, embedded), "sliding_attention": _additive(sees & near, embedded)}


def _additive(sees: Tensor, embedded: Tensor) -> Tensor:
    """0 where a position is seen, else the lowest number of the computation's type (eager attention misreads bool)."""
    device_type = embedded.device.type
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else embedded.dtype
    lowest = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, lowest)
