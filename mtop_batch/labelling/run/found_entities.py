"""What token tasks find in texts, batch by batch: from the logits of their words to entities.

Shapes: N words of a batch, R rows, K tags of all token tasks together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.entities.tags import find_entities
from mtop_batch.data.tokens import WordsOfRows
from mtop_batch.errors import BundleError
from mtop_batch.tasks import Task

RowIndices = npt.NDArray[np.int64]


def word_log_probabilities(at_tokens: Mapping[str, Tensor], tasks: Sequence[Task], places: Tensor) -> Tensor:
    """(N, K) Of the tags of each word, for all token tasks.

    Args:
        at_tokens: (B, T, C) logits of each token task, by its name.
        tasks: The token tasks, at least one.
        places: (N,) The token of each word among all B T tokens.
    """
    logits = [at_tokens[task.name].flatten(0, 1).index_select(0, places) for task in tasks]
    return torch.cat([of_task.float().log_softmax(dim=-1) for of_task in logits], dim=1).contiguous()


class FoundEntities:
    """The entities of R rows, which come in any order.

    Args:
        tasks: Token tasks.
        num_rows: R
    """

    def __init__(self, tasks: Sequence[Task], num_rows: int) -> None:
        self._tasks, self._num_rows = tasks, num_rows
        self._rows: list[RowIndices] = []
        self._found: dict[str, list[Entities]] = {task.name: [] for task in tasks}
        self.least = np.full((len(tasks), num_rows), np.nan, np.float32)
        """(tasks, R) The least probability of a word's tag; NaN for rows that did not come."""

    def fetch(
        self, rows: RowIndices, words: WordsOfRows, counts: RowIndices, log_probabilities: npt.NDArray[np.float32]
    ) -> None:
        """Take the results of these rows.

        Args:
            rows: Which.
            words: Of their windows, row after row.
            counts: How many windows each row has.
            log_probabilities: (N, K) As `word_log_probabilities` has them.

        Raises:
            BundleError: One of them is not a number.
        """
        if np.isnan(log_probabilities).any():
            raise BundleError(
                "the model's output is not a number for some words; its weights are damaged: train it again"
            )
        chosen, texts = words.of_texts(counts)
        start = 0
        for place, task in enumerate(self._tasks):
            own = log_probabilities[chosen, start : start + task.num_outputs]
            start += task.num_outputs
            found, self.least[place, rows] = find_entities(words.words[chosen], texts, own, len(rows))
            self._found[task.name].append(found)
        self._rows.append(rows)

    def by_row(self) -> dict[str, Entities]:
        """The entities of all rows, by task; a row that did not come has none."""
        came = np.concatenate([np.empty(0, np.int64), *self._rows])
        others = np.setdiff1d(np.arange(self._num_rows), came)
        places = np.argsort(np.concatenate([came, others]))
        without = Entities.from_rows([[]] * len(others))
        return {name: Entities.concat([*found, without]).take(places) for name, found in self._found.items()}
