"""What comes of batches: how it is packed for one copy to the host, and collected there.

Shapes: R rows, B rows of a batch, n wanted tasks that label texts, C labels of the one that has most, L labels of all
of them together, K labels of those that keep the probabilities of all of theirs, D hidden width, W windows of R rows.
Of token tasks only the words of texts go to the host, N of a batch with C' tags of all these tasks together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtop_batch.data.tokens import WordsOfRows
from mtop_batch.errors import BundleError
from mtop_batch.labelling.run.device_copies import ToHost
from mtop_batch.labelling.run.rows import RowIndices
from mtop_batch.model.parts.windows import combine_logits
from mtop_batch.tasks import Task

# A GPU waits while results are put in order, so many of them are by several threads.
_MANY_RESULTS, _ORDERING_THREADS = 2**22, 4


class Packed(NamedTuple):
    """The results of a batch.

    Args:
        results: (2 n + K, B) label ids, scores and probabilities; of windows (L, B) logits.
        vectors: (B, D) If they are wanted.
        words: The words of the batch, if there are token tasks.
        at_words: (N, C') The logarithms of the probabilities of their tags.
    """

    results: ToHost
    vectors: ToHost | None
    words: WordsOfRows | None = None
    at_words: ToHost | None = None


class ResultLayout:
    """Where the results of each task stand among those of a batch.

    Args:
        tasks: n, which label texts.
        device: Where the logits come from.
    """

    def __init__(self, tasks: Sequence[Task], device: torch.device) -> None:
        self.tasks = tasks
        self.width = max((task.num_outputs for task in tasks), default=0)
        self._num_outputs = [task.num_outputs for task in tasks]
        self._is_regression = _flags((task.kind == "regression" for task in tasks), device)
        self._is_multi_label = _flags((task.is_multi_label for task in tasks), device)
        self._has_no_index = self._is_regression | self._is_multi_label
        self._has_multi_label = any(task.is_multi_label for task in tasks)
        kept = np.repeat([task.keeps_probabilities for task in tasks], self._num_outputs).astype(bool)
        self._own_on_host = torch.from_numpy(
            np.flatnonzero(np.arange(self.width) < np.array(self._num_outputs, np.int64)[:, None])
        )
        self._own = self._own_on_host.to(device)
        self._kept = self._own_on_host[torch.from_numpy(kept)].to(device)

    @property
    def num_kept(self) -> int:
        """K"""
        return len(self._kept)

    @property
    def num_labels(self) -> int:
        """L"""
        return len(self._own)

    def labels_and_scores(self, logits: Tensor) -> Tensor:
        """(2 n + K, B) label ids, scores and probabilities in one int32 tensor: one copy brings all to the host."""
        if not self.tasks:
            return torch.empty(0, len(logits), dtype=torch.int32)
        probabilities = torch.softmax(logits, dim=-1)
        if self._has_multi_label:
            probabilities = torch.where(self._is_multi_label[:, None], logits.sigmoid(), probabilities)
        scores, label_ids = probabilities.max(dim=-1)
        scores = torch.where(self._is_regression, logits[..., 0], scores)
        label_ids = label_ids.masked_fill(self._has_no_index, -1).int()
        floats = [scores.t()]
        if self.num_kept:
            floats.append(probabilities.flatten(1).index_select(1, self._kept).t())
        return torch.cat([label_ids.t(), *(of.contiguous().view(torch.int32) for of in floats)])

    def own_logits(self, logits: Tensor) -> Tensor:
        """(L, B) The logits that are there, as int32 for the copy to the host."""
        return logits.flatten(1).index_select(1, self._own).t().contiguous().view(torch.int32)

    def combine(self, of_windows: npt.NDArray[np.float32], num_windows: Tensor) -> Tensor:
        """(R, n, C) The logits of rows from (L, W) those of their windows, of which each row has (R,) so many."""
        logits = torch.full((len(num_windows), len(self.tasks) * self.width), -torch.inf)
        for combine in {task.combine for task in self.tasks}:
            labels = torch.from_numpy(np.repeat([task.combine == combine for task in self.tasks], self._num_outputs))
            combined = combine_logits(torch.from_numpy(of_windows).T[:, labels], num_windows, combine)
            logits[:, self._own_on_host[labels]] = combined
        return logits.view(len(num_windows), len(self.tasks), self.width)

    def by_task(self, kept: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """The (K, R) probabilities of all labels, by task."""
        tasks = [task for task in self.tasks if task.keeps_probabilities]
        stops = np.cumsum([task.num_outputs for task in tasks])
        return {task.name: kept[stop - task.num_outputs : stop] for task, stop in zip(tasks, stops, strict=True)}


class Collected:
    """The results of all batches, task by task: in the order of the batches while they come, by row in the end.

    Args:
        num_tasks: n
        num_kept: K
        vector_size: D; None where vectors are not wanted.
        num_rows: R
        num_labelled: Rows that have tokens.
    """

    def __init__(
        self, num_tasks: int, num_kept: int, vector_size: int | None, num_rows: int, num_labelled: int
    ) -> None:
        # Rows without tokens come behind all others. The rest is written when it comes, so that a device is at work
        # while a large piece of memory is used for the first time.
        self._packed = np.empty((2 * num_tasks + num_kept, num_rows), np.int32)
        self._label_ids, self._floats = self._packed[:num_tasks], self._packed[num_tasks:].view(np.float32)
        self._label_ids[:, num_labelled:] = -1
        self._floats[:, num_labelled:] = np.nan
        self._vectors = None if vector_size is None else np.full((num_rows, vector_size), np.nan, np.float16)
        self._columns = np.full(num_rows, -1)
        self._num_labelled, self._done = num_labelled, 0

    def fetch(self, rows: RowIndices, packed: Packed) -> None:
        """Take the results of these rows.

        Raises:
            BundleError: A score or a vector is not a number.
        """
        results, vectors = packed.results, packed.vectors
        columns = slice(self._done, self._done + len(rows))
        self._packed[:, columns] = results.numpy()
        found: list[npt.NDArray[np.float16] | npt.NDArray[np.float32]] = [self._floats[:, columns]]
        if self._vectors is not None and vectors is not None:
            self._vectors[columns] = vectors.numpy()
            found.append(self._vectors[columns])
        if any(np.isnan(values).any() for values in found):
            raise BundleError(
                "the model's output is not a number for some texts; its weights are damaged: train it again"
            )
        self._columns[rows] = np.arange(columns.start, columns.stop)
        self._done += len(rows)

    def by_row(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float16] | None]:
        """(n, R) label ids and scores, (K, R) probabilities, and (R, D) vectors if they are wanted."""
        empty = self._columns < 0
        self._columns[empty] = np.arange(self._num_labelled, len(empty))
        if self._packed.size < _MANY_RESULTS:
            self._put_in_order(self._packed)
        else:
            with ThreadPoolExecutor(_ORDERING_THREADS) as threads:  # NumPy lets them run side by side
                list(threads.map(self._put_in_order, np.array_split(self._packed, _ORDERING_THREADS)))
        num_tasks = len(self._label_ids)
        vectors = None if self._vectors is None else self._vectors[self._columns]
        return self._label_ids, self._floats[:num_tasks], self._floats[num_tasks:], vectors

    def _put_in_order(self, results: npt.NDArray[np.int32]) -> None:
        """By row, where they lie: with many tasks a copy is large."""
        for of_task in results:
            of_task[:] = of_task.take(self._columns)


def _flags(values: Iterable[bool], device: torch.device) -> Tensor:
    """(n,) bool, also where there are none."""
    return torch.tensor(list(values), dtype=torch.bool, device=device)
