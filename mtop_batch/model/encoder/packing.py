"""Padded batches without the work at their padding.

In a batch of texts as they come, a third of the positions are padding. All of an encoder but its attention treats each
position alone, so those layers run on the real positions of all texts, one behind the other. Attention alone sees the
texts apart: padded in training on CPUs, packed as they are in inference on GPUs (`encoder/ragged`). The outputs at real
positions are those of the padded batch.

Shapes: B texts, L positions, N real ones of all texts together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch stand.

    Args:
        index: (N,) Their places in the batch as one row of B L positions; None if all are real.
        lengths: (B,) How many each text has.
        shape: (B, L)
    """

    index: Tensor | None
    lengths: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing | None:
        """The packing of a batch; None if it has no padding.

        Args:
            attention_mask: (B, L) 1 for real positions, 0 for padding. Its values are looked at, which waits for all
                that a GPU has to do.
        """
        index = attention_mask.flatten().nonzero()[:, 0]
        batch_size, length = attention_mask.shape
        if len(index) == batch_size * length:
            return None
        return cls(index, attention_mask.sum(dim=1), (batch_size, length))

    @classmethod
    def of_size(cls, attention_mask: Tensor, num_positions: int) -> Packing:
        """The packing of a batch whose number of real positions is known, so that nothing waits for the mask's values.

        Args:
            attention_mask: (B, L) 1 for real positions, 0 for padding on the right.
            num_positions: N
        """
        batch_size, length = attention_mask.shape
        lengths = attention_mask.sum(dim=1)
        starts = torch.arange(batch_size, device=lengths.device) * length - (lengths.cumsum(0) - lengths)
        index = torch.arange(num_positions, device=lengths.device)
        index = index + starts.repeat_interleave(lengths, output_size=num_positions)
        return cls(index, lengths, (batch_size, length))

    @classmethod
    def of_full(cls, batch_size: int, length: int, device: torch.device) -> Packing:
        """The packing of a batch without padding."""
        return cls(None, torch.full((batch_size,), length, device=device), (batch_size, length))

    @property
    def offsets(self) -> Tensor:
        """(B + 1,) int32: where each text starts among the N positions, and N."""
        return F.pad(self.lengths.cumsum(0), (1, 0)).int()

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (1, N, ...) What stands at real positions."""
        flat = padded.flatten(0, 1)
        return (flat if self.index is None else flat.index_select(0, self.index))[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (B, L, ...) Zero at padding."""
        batch_size, length = self.shape
        if self.index is None:
            return packed.view(batch_size, length, *packed.shape[2:])
        padded = packed.new_zeros(batch_size * length, *packed.shape[2:])
        return padded.index_copy(0, self.index, packed[0]).view(batch_size, length, *packed.shape[2:])
