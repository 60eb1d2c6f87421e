"""Padded batches without the work at their padding.

In a batch of texts as they come, a third of the positions are padding. All of an encoder but its attention treats each
position alone, so those layers run on the real positions of all texts, one behind the other; attention alone sees the
texts apart, padded. The outputs at real positions are those of the padded batch.

Shapes: B texts, L positions, N real ones of all texts together.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch stand.

    Args:
        index: (N,) Their places in the batch as one row of B L positions.
        shape: (B, L)
    """

    index: Tensor
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
        return None if len(index) == batch_size * length else cls(index, (batch_size, length))

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (1, N, ...) What stands at real positions."""
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (B, L, ...) Zero at padding."""
        batch_size, length = self.shape
        padded = packed.new_zeros(batch_size * length, *packed.shape[2:])
        return padded.index_copy(0, self.index, packed[0]).view(batch_size, length, *packed.shape[2:])
