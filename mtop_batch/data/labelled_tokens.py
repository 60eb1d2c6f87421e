"""Labelled texts as a model takes them: R examples, W windows, T tokens of all windows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.label_values import Labels
from mtop_batch.data.tokens import Tokens
from mtop_batch.tasks import NO_TAG

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledTokens:
    """Examples of one task as the model takes them.

    Args:
        tokens: Of W windows, text after text.
        labels: (R,) int64 indices of labels, or float32 values of a regression; (R, C) bool of a multi-label task, and
            of a token task: of which types a text has entities.
        counts: (R,) int64, how many windows each text has; None for one each.
        entities: Of a token task, the entities of each text, also those behind what is read of it.
        tags: (T,) int64, of a token task the tag of each token of all windows, `NO_TAG` where no word begins.
        vectors: Of each input of the model, those beside each text, which stand behind each of its windows.
    """

    tokens: Tokens
    labels: Labels
    counts: IntArray | None = None
    entities: Entities | None = None
    tags: IntArray | None = None
    vectors: tuple[InputVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _starts(self) -> IntArray:
        """(R + 1,) Where the windows of each example begin, and the end of the last."""
        counts = np.ones(len(self), np.int64) if self.counts is None else self.counts
        return np.append(0, counts.cumsum())

    @property
    def lengths(self) -> IntArray:
        """(R,) Tokens and vectors of all windows of each example."""
        lengths: IntArray = self.tokens.offsets[self._starts[1:]] - self.tokens.offsets[self._starts[:-1]]
        for of in self.vectors:
            lengths = lengths + of.counts * np.diff(self._starts)
        return lengths

    @property
    def window_lengths(self) -> IntArray:
        """(W,) Tokens and vectors of each window."""
        every = np.arange(len(self.tokens))
        return sum((of.counts for of in self.vectors_of(every)), self.tokens.lengths)

    def vectors_of(self, windows: npt.NDArray[np.integer]) -> tuple[InputVectors, ...]:
        """What stands behind the tokens of some windows, of each input of the model."""
        if not self.vectors:
            return ()
        texts = windows if self.counts is None else np.searchsorted(self._starts, windows, side="right") - 1
        return tuple(of.take(texts) for of in self.vectors)

    @property
    def without_vectors(self) -> LabelledTokens:
        """The same texts with nothing beside them."""
        return replace(self, vectors=())

    def windows(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
        """The windows of some examples, example after example."""
        if self.counts is None:
            return rows
        counts = self.counts[rows]
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        return np.repeat(self._starts[rows], counts) + within

    def draw_windows(self, rows: npt.NDArray[np.integer], *seeds: int) -> npt.NDArray[np.integer]:
        """(B,) One window of each of B examples, all of an example's alike; a pure function of the arguments."""
        if self.counts is None:
            return rows
        return self._starts[rows] + np.random.default_rng(seeds).integers(self.counts[rows])

    def take(self, rows: npt.NDArray[np.integer]) -> LabelledTokens:
        """Some of them."""
        counts = None if self.counts is None else self.counts[rows]
        entities = None if self.entities is None else self.entities.take(rows)
        windows = self.windows(rows)
        tags = None if self.tags is None else self.tags[self.tokens.positions(windows)]
        vectors = tuple(of.take(rows) for of in self.vectors)
        tokens, labels = self.tokens.take(windows), self.labels[rows]
        return replace(self, tokens=tokens, labels=labels, counts=counts, entities=entities, tags=tags, vectors=vectors)

    def draw(self, most: int | None, *seeds: int) -> LabelledTokens:
        """At most so many, in random order, or all as they are; the first of a larger draw are those of a smaller."""
        if most is None or most >= len(self):
            return self
        return self.take(np.random.default_rng(seeds).permutation(len(self))[:most])

    def targets(self, rows: npt.NDArray[np.integer], windows: npt.NDArray[np.integer]) -> Labels:
        """What the loss compares the model with.

        Args:
            rows: (B,) Examples.
            windows: Those of their windows that the model is given.

        Returns:
            (B,) or (B, C) Their labels; of a token task (windows, T) the tags of the windows, padded.
        """
        if self.tags is None:
            return self.labels[rows]
        lengths = self.tokens.lengths[windows]
        is_token = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.full(is_token.shape, NO_TAG)
        padded[is_token] = self.tags[self.tokens.positions(windows)]
        return padded


@dataclass(frozen=True)
class PairedTexts(LabelledTokens):
    """Pairs of texts without labels: the two of a pair are its windows, and a step is given both."""

    @classmethod
    def of(cls, firsts: Tokens, seconds: Tokens) -> PairedTexts:
        """R pairs.

        Args:
            firsts: The first text of each.
            seconds: The second one.
        """
        count = len(firsts)
        in_turn = np.arange(2 * count).reshape(2, count).T.ravel()
        tokens = Tokens.concat([firsts, seconds]).take(in_turn)
        return cls(tokens, np.zeros(count, np.int64), np.full(count, 2))

    def draw_windows(self, rows: npt.NDArray[np.integer], *seeds: int) -> npt.NDArray[np.integer]:
        """(B, 2) Both texts of each pair."""
        del seeds
        return self.windows(rows).reshape(-1, 2)

    def targets(self, rows: npt.NDArray[np.integer], windows: npt.NDArray[np.integer]) -> Labels:
        """(windows,) Which pair each text is of."""
        del rows
        return np.arange(len(windows)) // 2
