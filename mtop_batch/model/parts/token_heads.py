"""Heads of token tasks: a linear function of the encoder's output at each token.

Shapes: B texts, T text positions, D hidden width, C tags of a task.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtop_batch.model.parts.heads import draw_linear


class TokenHead(nn.Module):
    """What a token task has of its own; zero or PyTorch's default until `initialise` or a checkpoint sets it.

    Args:
        num_outputs: C
        hidden_size: D
    """

    def __init__(self, num_outputs: int, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, num_outputs)

    def forward(self, at_text: Tensor) -> Tensor:
        """(B, T, D) outputs at the text to (B, T, C) logits, in float32 whatever the others are in."""
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(at_text.device.type, enabled=False):
            return F.linear(at_text.to(dtype), self.head.weight.to(dtype), self.head.bias.to(dtype))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random: a Glorot-uniform kernel, zero bias."""
        draw_linear(self.head, generator)
