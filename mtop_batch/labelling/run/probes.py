"""Labels from stored vectors: no text is read, no encoder runs, and torch is not imported.

Shapes: R rows, D hidden width, n probes, C labels of the probe that has most.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtop_batch.errors import LabelTableError
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.model.bundle.files import load_probes
from mtop_batch.table.columns import VECTOR_COLUMN
from mtop_batch.table.outputs import TaskOutputs
from mtop_batch.table.store import read_label_file
from mtop_batch.tasks import Task

_ROWS_AT_ONCE = 1_024


class ProbePredictor:
    """Labels vectors as `Predictor` labels texts, on the CPU.

    Args:
        tasks: Tasks that read the vector, at least one.
        probes: Their `weight` (own labels, D) and `bias` (own labels), float32, in the same order.
    """

    def __init__(self, tasks: Sequence[Task], probes: Sequence[Mapping[str, npt.NDArray[np.float32]]]) -> None:
        self.tasks = list(tasks)
        self._probes = list(probes)
        self._multi_label = np.array([task.is_multi_label for task in tasks])
        self._regressions = np.flatnonzero([task.kind == "regression" for task in tasks])
        scales = [(self.tasks[place].std, self.tasks[place].mean) for place in self._regressions]
        self._scales = np.array(scales, np.float32).reshape(-1, 2)
        num_labels, self._vector_size = max(task.num_outputs for task in tasks), probes[0]["weight"].shape[1]
        # As one matrix product: zero, and a bias of -inf, beyond a probe's own labels.
        self._weight = np.zeros((len(tasks), num_labels, self._vector_size), np.float32)
        self._bias = np.full((len(tasks), num_labels), -np.inf, np.float32)
        for index, probe in enumerate(probes):
            self._weight[index, : len(probe["bias"])] = probe["weight"]
            self._bias[index, : len(probe["bias"])] = probe["bias"]

    @classmethod
    def load(cls, uri: str, tasks: Sequence[Task]) -> ProbePredictor:
        """A predictor of these probes of the bundle at `uri`; the encoder is not loaded.

        Raises:
            BundleError: The bundle is missing or damaged.
        """
        return cls(tasks, load_probes(uri, [task.name for task in tasks]))

    def of(self, tasks: Collection[str]) -> ProbePredictor:
        """The same for some of the tasks only."""
        names = set(tasks)
        wanted = [place for place, task in enumerate(self.tasks) if task.name in names]
        return ProbePredictor([self.tasks[place] for place in wanted], [self._probes[place] for place in wanted])

    def predict(self, vectors: pa.ChunkedArray) -> TaskOutputs:
        """Label R vectors; a null one gets label -1 and score NaN."""
        started = time.perf_counter()
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in vectors.drop_null().chunks]
        matrix = np.concatenate([np.empty(0, np.float16), *values]).reshape(-1, self._vector_size)
        given = np.flatnonzero(vectors.is_valid().to_numpy())
        label_ids = np.full((len(self.tasks), len(vectors)), -1, np.int32)
        scores = np.full(label_ids.shape, np.nan, np.float32)
        kept = {place: task for place, task in enumerate(self.tasks) if task.keeps_probabilities}
        found = {task.name: np.full((task.num_outputs, len(vectors)), np.nan, np.float32) for task in kept.values()}
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            logits = self._logits(matrix[rows])
            label_ids[:, given[rows]] = logits.argmax(axis=1)
            # The likeliest label's probability: exp(0) over the sum.
            scores[:, given[rows]] = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
            values = logits[self._regressions, 0] * self._scales[:, :1] + self._scales[:, 1:]
            scores[np.ix_(self._regressions, given[rows])] = values
            for place, task in kept.items():
                probabilities = _probabilities(task, logits[place, : task.num_outputs])
                found[task.name][:, given[rows]] = probabilities
                scores[place, given[rows]] = probabilities.max(axis=0)
        label_ids[self._regressions] = label_ids[self._multi_label] = -1
        return TaskOutputs(label_ids, scores, probabilities=found, seconds=time.perf_counter() - started)

    def _logits(self, matrix: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
        """(n, C, rows) logits of (rows, D) vectors; -inf beyond a probe's own labels."""
        products = self._weight.reshape(-1, self._vector_size) @ matrix.T.astype(np.float32)
        logits: npt.NDArray[np.float32] = products.reshape(*self._bias.shape, -1) + self._bias[..., None]
        return logits


def _probabilities(task: Task, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(C, rows) The probabilities of a task's labels."""
    if task.is_multi_label:
        # The sigmoid, without an overflow whatever the sign.
        part = np.exp(-np.abs(logits))
        return np.where(logits < 0, part, 1).astype(np.float32) / (1 + part)
    exponentials = np.exp(logits - logits.max(axis=0))
    shares: npt.NDArray[np.float32] = exponentials / exponentials.sum(axis=0)
    return shares


def read_vectors(labels: str, unit: Unit) -> pa.Table:
    """The columns `id`, `vector` and `error` of a unit whose vectors are stored.

    Raises:
        DamagedLabelFile: The label file is damaged.
        LabelTableError: The storage does not answer, or the unit has no vectors.
    """
    if unit.vectors is None:
        raise LabelTableError(f"{unit}: its vectors are not stored")
    return read_label_file(labels, unit.vectors, ["id", VECTOR_COLUMN, "error"])[1]
