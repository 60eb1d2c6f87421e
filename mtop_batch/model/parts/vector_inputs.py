"""Vectors beside a text, as embeddings in its sequence ("Exceeding the Limits of Visual-Linguistic Multi-Task
Learning", section 3.2).

    x = W_i v + b_i + t

Each input has a linear layer of its own; t is the token type that all vectors have and no token has. The first
token type of the backbone is added to all positions, so t is what theirs differs by.

Shapes: N vectors of an input in a batch, S numbers of a vector, E width of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mtop_batch.model.parts.heads import draw_linear
from mtop_batch.model.parts.prompts import random_prompts
from mtop_batch.tasks import VectorInput

PlacedVectors = Sequence[tuple[Tensor, Tensor]]
"""For each input the vectors of a batch, (N, S), and where they stand in the flattened batch, (N,)."""


class ProjectedInputs(nn.Module):
    """A linear layer for each input, and the token type of all.

    Args:
        inputs: At least one.
        width: E
    """

    def __init__(self, inputs: Sequence[VectorInput], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(spec.size, width) for spec in inputs)
        self.token_type = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random; all draws are those of the generator."""
        for layer in self.layers:
            draw_linear(cast(nn.Linear, layer), generator)
        self.token_type.copy_(random_prompts(self.token_type.shape, generator))

    def forward(self, vectors: PlacedVectors) -> tuple[Tensor, Tensor]:
        """(N, E) embeddings of the vectors of all inputs, and (N,) their places."""
        embedded = [
            layer(values.to(self.token_type.dtype)) + self.token_type
            for layer, (values, _) in zip(self.layers, vectors, strict=True)
        ]
        return torch.cat(embedded), torch.cat([places for _, places in vectors])
