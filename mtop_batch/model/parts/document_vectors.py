"""Document vectors, and the probes that read them.

A text's vector is the mean of the encoder's outputs at its own tokens, special tokens included, scaled to length 1 and
rounded to half precision: for backbones such as MiniLM what sentence-transformers makes of a text, so it serves for
search as well. The prompts of the context stand before the text as always; those of isolated tasks cannot change it.

A probe is a task without prompts: a linear function of the vector. It reads the rounded vector, in float32 whatever
the precision of the encoder, so a label computed from a stored vector is the one that the forward pass gives.

Shapes: B texts, T text positions, D hidden width, n probes, C labels of the probe that has most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def document_vectors(text_outputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """The vectors of texts: v = m / |m| with m the mean over the text's tokens.

    Args:
        text_outputs: (B, T, D) The encoder's outputs at the text.
        attention_mask: (B, T) 1 for tokens, 0 for padding; None where there is no padding.

    Returns:
        (B, D) float16, of length 1 but for the rounding.
    """
    with torch.autocast(text_outputs.device.type, enabled=False):
        outputs = text_outputs.float()
        if attention_mask is None:
            mean = outputs.mean(dim=1)
        else:
            mask = attention_mask[..., None].to(outputs.dtype)
            mean = (outputs * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return F.normalize(mean, dim=-1).half()


class Probe(nn.Module):
    """A task's linear function of the document vector; zero until it is loaded.

    Args:
        num_outputs: C
        hidden_size: D
    """

    def __init__(self, num_outputs: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_outputs, hidden_size))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) vectors to (B, C) logits in float32."""
        return StackedProbes.stack([self.state_dict(keep_vars=True)])(vectors)[:, 0]


@dataclass(frozen=True)
class StackedProbes:
    """The weights of n probes as one matrix product.

    Args:
        weight: (n, C, D) float32; zero beyond a probe's own labels.
        bias: (n, C) float32; -inf beyond a probe's own labels.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def stack(cls, probes: Sequence[Mapping[str, Tensor]]) -> StackedProbes:
        """Stack the tensors `weight` and `bias` of at least one probe."""
        most = max(len(probe["bias"]) for probe in probes)
        missing = [most - len(probe["bias"]) for probe in probes]
        return cls(
            torch.stack([F.pad(p["weight"].float(), (0, 0, 0, m)) for p, m in zip(probes, missing, strict=True)]),
            torch.stack(
                [F.pad(p["bias"].float(), (0, m), value=-torch.inf) for p, m in zip(probes, missing, strict=True)]
            ),
        )

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B, D) vectors to (B, n, C) logits in float32; -inf beyond a probe's own labels."""
        with torch.autocast(vectors.device.type, enabled=False):
            num_probes, num_labels, hidden_size = self.weight.shape
            logits = F.linear(vectors.float(), self.weight.view(-1, hidden_size), self.bias.view(-1))
            return logits.view(-1, num_probes, num_labels)


def join_logits(parts: Sequence[Tensor], order: Tensor | None) -> Tensor:
    """Put the logits of tasks of different kinds side by side.

    Args:
        parts: Each (B, n_i, C_i), at least one.
        order: (n,) For each task of the result, its place in all parts one after the other; None for as they come.

    Returns:
        (B, n, C); -inf beyond a task's own labels.
    """
    most = max(part.shape[2] for part in parts)
    padded = [F.pad(part, (0, most - part.shape[2]), value=-torch.inf) for part in parts]
    joined = padded[0] if len(parts) == 1 else torch.cat(padded, dim=1)
    return joined if order is None else joined.index_select(1, order)
