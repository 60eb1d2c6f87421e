"""Texts without labels that a model learns from: a corpus, and the examples' own, each of which has one task's label.

No text that a task is evaluated on is among them, so that what teachers say of it cannot be learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from mtop_batch.data.same_text import Pair, same_text_key
from mtop_batch.data.sources import read_columns
from mtop_batch.data.text_rows import text_column, text_rows


@dataclass(frozen=True)
class UnlabelledTexts:
    """Texts, each once.

    Args:
        texts: One each.
        seconds: The second text of a pair; None for single texts.
        num_read: Texts that were looked at, examples included.
        num_in_evaluation: Of them, those left out because a task is evaluated on them.
    """

    texts: list[str]
    seconds: list[str | None]
    num_read: int
    num_in_evaluation: int

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def seconds_or_none(self) -> list[str | None] | None:
        """The second texts; None if there is no pair at all, as a tokenizer wants it."""
        return self.seconds if any(second is not None for second in self.seconds) else None

    @property
    def digest(self) -> str:
        """Of the texts and their order."""
        return hashlib.sha256(json.dumps([self.texts, self.seconds]).encode()).hexdigest()[:16]


def read_texts(source: str, columns: Sequence[str]) -> Iterable[Pair]:
    """The texts of a source, without rows that have none.

    Args:
        source: As for `mtop_batch.data.sources.read_columns`.
        columns: One text column, or two for pairs.

    Raises:
        DataError: The source does not exist, or lacks a column, or one holds no texts.
        LabelTableError: The storage cannot be reached or refuses.
    """
    for part in read_columns(source, columns):
        texts, problems = zip(*(text_column(part.table[name], name, part.name) for name in columns), strict=True)
        rows = text_rows(texts)
        bad = pc.coalesce(*problems, rows.errors)
        for text, second, reason in zip(rows.texts.to_pylist(), rows.seconds.to_pylist(), bad.to_pylist(), strict=True):
            if reason is None:
                yield text, second


def choose_texts(
    examples: Iterable[Pair], corpus: Iterable[Pair], evaluation: Iterable[Pair], *, max_texts: int, seed: int
) -> UnlabelledTexts:
    """The texts to learn from: a pure function of its arguments.

    Texts count as the same, and as texts of an evaluation, as `same_text_key` says.

    Args:
        examples: The texts of all tasks' training examples. All of them are taken, for they come first.
        corpus: Further ones.
        evaluation: Those of all tasks' evaluation examples.
        max_texts: Most texts; of a larger corpus a random part is taken.
        seed: Of that part.
    """
    left_out = {same_text_key(pair) for pair in evaluation}
    chosen: dict[Pair, Pair] = {}
    num_read = num_left_out = num_examples = 0
    for number, pairs in enumerate((examples, corpus)):
        for pair in pairs:
            num_read += 1
            key = same_text_key(pair)
            if key in left_out:
                num_left_out += 1
            else:
                chosen.setdefault(key, pair)
        num_examples = num_examples if number else len(chosen)
    found = list(chosen.values())
    room = max(max_texts - num_examples, 0)
    if len(found) - num_examples > room:
        rows = np.random.default_rng(seed).choice(len(found) - num_examples, room, replace=False)
        found = found[:num_examples] + [found[num_examples + row] for row in np.sort(rows)]
    return UnlabelledTexts([text for text, _ in found], [second for _, second in found], num_read, num_left_out)
