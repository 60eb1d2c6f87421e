"""Masks of attention heads: how much a loss depends on each head of an encoder (Michel et al., 2019).

What every head puts out is multiplied by a mask of 1, which changes nothing. The gradient of a loss with respect to the
mask says how the loss would change with a little less of the head.

Shapes: B texts, T positions, L layers, H heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.kv_cache import NAME


class HeadMasks:
    """The masks of one pass, a layer after the other as the text goes through them."""

    def __init__(self) -> None:
        self._masks: list[Tensor] = []

    def apply(self, outputs: Tensor) -> Tensor:
        """(B, T, H, W) What the heads of the next layer put out, through its masks; each text has its own."""
        mask = outputs.new_ones(len(outputs), 1, outputs.shape[2], 1, requires_grad=True)
        self._masks.append(mask)
        return outputs * mask

    def gradients(self, loss: Tensor) -> Tensor:
        """(B, L, H) The gradient of a loss with respect to the masks, in float32.

        Args:
            loss: () The sum over the texts: then a text's masks have the gradient of its own loss.
        """
        found = torch.autograd.grad(loss, self._masks)
        return torch.stack([gradient.flatten(1).float() for gradient in found], dim=1)


@contextmanager
def head_masks(backbone: PreTrainedModel) -> Iterator[HeadMasks]:
    """While the block runs, the next pass of the encoder goes through masks. One pass, with gradients turned on.

    Raises:
        ConfigError: As `check_heads`.
    """
    check_heads(backbone)
    masks = HeadMasks()

    def hook(_: nn.Module, arguments: Any, keywords: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, {**keywords, "mtop_head_masks": masks.apply}

    handle = backbone.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield masks
    finally:
        handle.remove()


def check_heads(backbone: PreTrainedModel) -> None:
    """Refuse an encoder whose heads cannot be masked: its attention is another than ours, or it has none.

    Raises:
        ConfigError: Says which attention it has.
    """
    if (attention := backbone.config._attn_implementation) != NAME:
        raise ConfigError(
            f"the heads of {type(backbone).__name__} cannot be measured: its attention is {attention!r}, whose outputs "
            "are not to be had head by head; choose an encoder such as BERT, ELECTRA, RoBERTa or ModernBERT"
        )
