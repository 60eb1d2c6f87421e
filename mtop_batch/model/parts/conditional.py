"""What CA-MTL (Pilault et al., 2021) adds to an encoder, so that its layers know the task.

All of it is made of FiLM, a scale and a shift that a condition z (the task, embedded) gives:

    FiLM(z, x) = (1 + gamma) x + beta   with   [gamma, beta] = W z + b

Shapes: B texts, T text positions, L the longest text, D hidden width, H heads, S positions of a block of attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


class FiLM(nn.Module):
    """A scale and a shift that depend on a condition.

    Args:
        condition_size: Width of z.
        size: Width of x.
    """

    def __init__(self, condition_size: int, size: int) -> None:
        super().__init__()
        self.scale_and_shift = nn.Linear(condition_size, 2 * size)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """(D) z and (..., size) x to (..., size), in the type of x."""
        gamma, beta = self.scale_and_shift(z).to(x.dtype).chunk(2)
        return (1 + gamma) * x + beta


class AttentionBias(nn.Module):
    """Conditional attention: what is added to the scores of all heads of a layer.

    M is block diagonal with N_b = D / L blocks, whose rows are those of FiLM(z, R); R is learned and starts at zero.
    Where L is no multiple of N_b, the last block is cut.

    Args:
        hidden_size: D
        max_tokens: L
    """

    def __init__(self, hidden_size: int, max_tokens: int) -> None:
        super().__init__()
        self.block = math.ceil(max_tokens / max(1, hidden_size // max_tokens))
        self.film = FiLM(hidden_size, self.block)
        self.rows = nn.Parameter(torch.zeros(max_tokens, self.block))

    def forward(self, z: Tensor, num_tokens: int) -> Tensor:
        """(T, T) M at the first T positions."""
        rows = self.film(z, self.rows[:num_tokens])  # (T, S)
        first = torch.arange(num_tokens, device=rows.device) // self.block * self.block
        columns = first[:, None] + torch.arange(self.block, device=rows.device)
        # As wide as whole blocks, before what is beyond the text is cut.
        bias = rows.new_zeros(num_tokens, -(-num_tokens // self.block) * self.block)
        return bias.scatter(1, columns, rows)[:, :num_tokens]


class Bottleneck(nn.Module):
    """Conditional bottleneck: up(down(FiLM(V z + c, x))) with a third of the width and no non-linearity.

    Args:
        hidden_size: D
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.film = FiLM(hidden_size, hidden_size)
        self.down = nn.Linear(hidden_size, hidden_size // 3)
        self.up = nn.Linear(hidden_size // 3, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_film = FiLM(hidden_size, hidden_size)

    def forward(self, z: Tensor, output: Tensor, attended: Tensor) -> Tensor:
        """What becomes of a layer's (B, T, D) output, given what its attention put out: norm(bottleneck + attended)."""
        x = self.film(self.transform(z), output.to(self.down.weight.dtype))
        x = self.up(self.down(x)) + attended
        return conditional_norm(self.norm, self.norm_film, z, x).to(output.dtype)


class ConditionalLayer(nn.Module):
    """What a BERT layer gets of CA-MTL; the layer's own weights stay in the encoder.

    Args:
        hidden_size: D
        max_tokens: L
        norms: Its two layer norms are conditional.
        bottleneck: It ends with a conditional bottleneck.
    """

    def __init__(self, hidden_size: int, max_tokens: int, *, norms: bool, bottleneck: bool) -> None:
        super().__init__()
        self.bias = AttentionBias(hidden_size, max_tokens)
        self.attention_norm = FiLM(hidden_size, hidden_size) if norms else None
        self.output_norm = FiLM(hidden_size, hidden_size) if norms else None
        self.bottleneck = Bottleneck(hidden_size) if bottleneck else None

    def forward(self, layer: Any, z: Tensor, hidden: Tensor, sees: Tensor | None) -> Tensor:
        """Run a layer.

        Args:
            layer: Of a backbone that `has_bert_layers`.
            z: (D) The condition.
            hidden: (B, T, D) The layer's inputs.
            sees: (B, 1, 1, T) Additive mask of padding; None where there is none.

        Returns:
            (B, T, D)
        """
        attention = layer.attention.self
        query, key, value = (
            linear(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for linear in (attention.query, attention.key, attention.value)
        )  # (B, H, T, W)
        bias = self.bias(z, hidden.shape[1]).to(query.dtype)[None, None]
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            bias if sees is None else sees + bias,
            dropout_p=attention.dropout.p if self.training else 0.0,
            scale=attention.scaling,
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        attended = _add_and_norm(layer.attention.output, self.attention_norm, z, mixed, hidden)
        output = _add_and_norm(layer.output, self.output_norm, z, layer.intermediate(attended), attended)
        return output if self.bottleneck is None else self.bottleneck(z, output, attended)


def conditional_norm(norm: nn.LayerNorm, film: FiLM, z: Tensor, x: Tensor) -> Tensor:
    """Conditional layer normalisation, of weight FiLM(z, w) and the norm's own bias."""
    return F.layer_norm(x, norm.normalized_shape, film(z, norm.weight), norm.bias, norm.eps)


def _add_and_norm(sublayer: Any, film: FiLM | None, z: Tensor, x: Tensor, residual: Tensor) -> Tensor:
    """The end of attention, or of the feed-forward part, of a BERT layer."""
    added = sublayer.dropout(sublayer.dense(x)) + residual
    norm: nn.LayerNorm = sublayer.LayerNorm
    return norm(added) if film is None else conditional_norm(norm, film, z, added)


@torch.no_grad()
def draw_normal(module: nn.Module, generator: torch.Generator) -> None:
    """Start linear layers as BERT's authors do: normal kernels of sigma 0.02, zero bias; layer norms do nothing."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * INIT_STD)
            part.bias.zero_()
        elif isinstance(part, nn.LayerNorm):
            part.weight.fill_(1)
            part.bias.zero_()
