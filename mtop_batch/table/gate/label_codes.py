"""The labels and scores of a task's columns as arrays that can be counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.table.columns import ENTITIES_TYPE, given_labels

NO_LABEL = "(no label)"
"""Stands for the label of an article that a task is too unsure of (`Decision.abstain_below`)."""

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GivenLabels:
    """The labels of articles that have any number of them: L labels of R articles.

    Args:
        is_there: (R,) Whether an article has a set of labels, which may be empty.
        rows: (L,) The article of each label.
        codes: (L,) The label's number.
        scores: (L,) Its score.
    """

    is_there: Flags
    rows: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    scores: Floats

    @classmethod
    def of(cls, table: pa.Table, task: str, names: dict[str, int]) -> GivenLabels:
        """Those of a task; `names` gets the labels that it lacks."""
        labels, scores = table[f"{task}_label"], table[f"{task}_score"]
        is_there = scores.is_valid().to_numpy()
        if labels.type == ENTITIES_TYPE:  # there is one score for all of them
            labels = given_labels(labels)
            lengths = pc.list_value_length(labels).fill_null(0).to_numpy()
            rows = np.repeat(np.arange(len(table)), lengths)
            numbers = scores.cast(pa.float64()).to_numpy()[rows]
            return cls(is_there, rows, codes_of(pc.list_flatten(labels), names), numbers)
        # One that the task is too unsure of has scores, but no labels.
        scores = pc.if_else(labels.is_valid(), scores, pa.scalar(None, scores.type))
        lengths = pc.list_value_length(labels).fill_null(0).to_numpy()
        codes = codes_of(pc.list_flatten(labels), names)
        numbers = pc.list_flatten(scores).cast(pa.float64()).to_numpy()
        return cls(is_there, np.repeat(np.arange(len(table)), lengths), codes, numbers)

    @classmethod
    def nothing(cls, num_rows: int) -> GivenLabels:
        """Of articles that have no sets of labels."""
        nothing = np.empty(0, np.int64)
        return cls(np.zeros(num_rows, bool), nothing, nothing, np.empty(0))

    def text(self, row: int, known: Sequence[str]) -> str:
        """The labels of an article, for people."""
        first, stop = np.searchsorted(self.rows, [row, row + 1])
        return ", ".join(known[code] for code in self.codes[first:stop])


def numbers_of(table: pa.Table, column: str) -> Floats:
    """A column of numbers, NaN where it is null or not there."""
    if column not in table.schema.names:
        return np.full(len(table), np.nan)
    return table[column].cast(pa.float64()).to_numpy()


def named_labels(table: pa.Table, task: str) -> pa.ChunkedArray:
    """The labels, with a name where there is a score and no label."""
    labels = table[f"{task}_label"]
    labels = labels.cast(pa.string()) if labels.null_count else labels
    return (
        pc.if_else(table[f"{task}_score"].is_valid(), labels.fill_null(NO_LABEL), None) if labels.null_count else labels
    )


def codes_of(column: pa.ChunkedArray, names: dict[str, int]) -> npt.NDArray[np.int64]:
    """The labels' numbers in `names`, which gets those that it lacks; -1 for null."""
    codes = []
    for chunk in column.chunks:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        numbers = [names.setdefault(str(name), len(names)) for name in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
        codes.append(np.array([*numbers, -1], np.int64)[indices])
    return np.concatenate(codes) if codes else np.empty(0, np.int64)
