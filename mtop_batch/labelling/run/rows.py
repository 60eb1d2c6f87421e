"""Texts, or windows of texts, on their way into batches.

Shapes: R rows, B rows of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.tokens import Tokens, WordsOfRows

RowIndices = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """A batch of texts or of windows.

    Args:
        inputs: The model's.
        num_tokens: How many tokens and vectors they have.
        words: The words of the batch, if there are token tasks.
    """

    inputs: dict[str, Any]
    num_tokens: int
    words: WordsOfRows | None


class Rows(NamedTuple):
    """R texts, or windows of texts.

    Args:
        tokens: Theirs.
        vectors: What stands beside them, of each input of the model.
    """

    tokens: Tokens
    vectors: tuple[InputVectors, ...] = ()

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(R,) Tokens and vectors of each; none where there are no tokens."""
        lengths = self.tokens.lengths
        return lengths + sum((of.counts * (lengths > 0) for of in self.vectors), np.zeros(len(lengths), np.int64))

    def take(self, rows: npt.NDArray[np.integer]) -> Rows:
        """Some of them."""
        return Rows(self.tokens.take(rows), tuple(of.take(rows) for of in self.vectors))

    def windows(self, max_tokens: int) -> Rows:
        """Their windows, row after row, each with what stands beside its text."""
        texts = np.repeat(np.arange(len(self.tokens)), self.tokens.num_windows(max_tokens))
        return Rows(self.tokens.windows(max_tokens), tuple(of.take(texts) for of in self.vectors))


def places_of_rows(ascending: RowIndices, rows: RowIndices) -> RowIndices:
    """Where these rows stand in a column of row numbers, row after row."""
    starts, stops = (np.searchsorted(ascending, rows, side=side) for side in ("left", "right"))
    counts = stops - starts
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())
