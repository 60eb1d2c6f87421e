"""Entities of texts, as characters of a text column: those that are given and those that are found.

Shapes: R rows, E entities of all rows together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Entity = tuple[int, int, int, int]
"""The text it is in (0 or 1), where it begins in it, the character after it, and the index of its type."""


@dataclass(frozen=True)
class Entities:
    """The entities of R rows, row after row.

    Args:
        values: (E, 4) int32, each an `Entity`; those of a row by place.
        scores: (E,) float32, how sure each is; 1 for those that are given.
        offsets: (R + 1,) int64; those of row i are `values[offsets[i]:offsets[i + 1]]`.
    """

    values: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[Entity]]) -> Entities:
        """Those that are given for each row, in any order."""
        found = [sorted(row) for row in rows]
        values = np.array([entity for row in found for entity in row], np.int32).reshape(-1, 4)
        offsets = np.append(0, np.cumsum([len(row) for row in found])).astype(np.int64)
        return cls(values, np.ones(len(values), np.float32), offsets)

    @classmethod
    def concat(cls, parts: Sequence[Entities]) -> Entities:
        """All rows of all parts, in order."""
        counts = [np.diff(part.offsets) for part in parts]
        return cls(
            np.concatenate([np.empty((0, 4), np.int32), *(part.values for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.scores for part in parts)]),
            np.append(0, np.concatenate([np.empty(0, np.int64), *counts]).cumsum()),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> list[Entity]:
        """The entities of a row."""
        return [tuple(entity) for entity in self.values[self.offsets[index] : self.offsets[index + 1]].tolist()]

    def rows(self) -> npt.NDArray[np.int64]:
        """(E,) The row of each."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, rows: npt.NDArray[np.integer]) -> Entities:
        """Those of some rows, in this order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.append(0, counts.cumsum())
        places = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Entities(self.values[places], self.scores[places], offsets)

    def has_type(self, num_types: int) -> npt.NDArray[np.bool_]:
        """(R, types) Which types each row has entities of."""
        found = np.zeros((len(self), num_types), bool)
        found[self.rows(), self.values[:, 3]] = True
        return found


@dataclass(frozen=True)
class EntityCounts:
    """Entities counted: given, found, and both, which are those with the same type, text and characters."""

    given: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """Of those that are found, the share that are right; NaN where none is found."""
        return self.right / self.found if self.found else float("nan")

    @property
    def recall(self) -> float:
        """Of those that are given, the share that are found; NaN where none is given."""
        return self.right / self.given if self.given else float("nan")

    @property
    def f1(self) -> float:
        """Of these two, as `seqeval` has it in its strict mode (micro average); 0 where neither is anything."""
        return 2 * self.right / (self.given + self.found) if self.given + self.found else 0.0


def count_entities(given: Entities, found: Entities, num_types: int) -> list[EntityCounts]:
    """The counts of all types together, and then of each.

    Args:
        given: Of R rows.
        found: Of the same rows.
        num_types: How many types there are.
    """
    keys = [_keys(of) for of in (given, found)]
    by_type = [Counter(key[-1] for key in of) for of in (*keys, keys[0] & keys[1])]
    total = EntityCounts(len(keys[0]), len(keys[1]), len(keys[0] & keys[1]))
    return [total, *(EntityCounts(*(of[index] for of in by_type)) for index in range(num_types))]


def num_right(given: Entities, found: Entities) -> npt.NDArray[np.int64]:
    """(R,) How many of the entities that are found in each row are right."""
    right = sorted(_keys(given) & _keys(found))
    return np.bincount(np.array([key[0] for key in right], np.int64), minlength=len(given))


def _keys(entities: Entities) -> set[tuple[int, ...]]:
    """Each entity with the row that it is in."""
    return set(map(tuple, np.column_stack([entities.rows(), entities.values]).tolist()))
