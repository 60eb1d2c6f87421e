"""Labelled texts as they were read. R examples, C labels or types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mtop_batch.data.entities.spans import Entities, Entity
from mtop_batch.data.input_vectors import InputVectors
from mtop_batch.data.label_values import Labels
from mtop_batch.data.same_text import Pair
from mtop_batch.tasks import LabelBy, Task


@dataclass(frozen=True)
class RawExamples:
    """Labelled texts of one task.

    Args:
        task: Whose they are.
        source: Where they were read.
        training: They are to learn from.
        texts: One per example.
        seconds: The second text of each example, None where it has one alone; None if the task has one text column.
        labels: (R,) int64 indices of labels, or float32 values of a regression; (R, C) bool of a multi-label task, and
            of a token task: of which types a text has entities.
        skipped: Rows that are no examples: their number in the source, over all its files, and the reason.
        label_by: How the label column was read (`data.label_values`).
        entities: Of a token task, the entities of each text.
        vectors: What stands beside each text, of each input of the model.
    """

    task: Task
    source: str
    training: bool
    texts: list[str]
    seconds: list[str | None] | None
    labels: Labels
    skipped: list[tuple[int, str]]
    label_by: LabelBy | None = None
    entities: Entities | None = None
    vectors: tuple[InputVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def pairs(self) -> Iterator[Pair]:
        """Each example's text and its second one, if it has one."""
        return zip(self.texts, self.seconds or [None] * len(self), strict=True)

    def label_names(self) -> list[str]:
        """Each example's label, or the value of a regression, as text."""
        if self.task.kind == "regression":
            return [f"{value:g}" for value in self.labels]
        if self.entities is not None:
            pairs = [*self.pairs()]
            return [entity_names(self.task, pair, self.entities.row(row)) for row, pair in enumerate(pairs)]
        if self.task.is_multi_label:
            return [", ".join(self.task.labels[index] for index in np.flatnonzero(row)) for row in self.labels]
        return [self.task.labels[index] for index in self.labels.tolist()]

    def take(self, rows: npt.NDArray[np.integer]) -> RawExamples:
        """Some of them."""
        seconds = None if self.seconds is None else [self.seconds[row] for row in rows]
        entities = None if self.entities is None else self.entities.take(rows)
        texts = [self.texts[row] for row in rows]
        vectors = tuple(of.take(rows) for of in self.vectors)
        return replace(self, texts=texts, seconds=seconds, labels=self.labels[rows], entities=entities, vectors=vectors)


def entity_names(task: Task, texts: Pair, entities: Sequence[Entity]) -> str:
    """The entities of a text for people, with their types."""
    return "; ".join(f"{(texts[side] or '')[start:end]} ({task.labels[label]})" for side, start, end, label in entities)
