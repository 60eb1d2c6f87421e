"""Labels from stored vectors: no text is read and no encoder runs.

Shapes: R rows, D hidden width, n probes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import torch

from mtop_batch.labelling.definition import VECTOR, Definition
from mtop_batch.labelling.footer import DamagedLabelFile
from mtop_batch.labelling.label_files import VECTOR_COLUMN, read_label_file
from mtop_batch.labelling.plan import Unit
from mtop_batch.labelling.predictor import TaskOutputs, labels_and_scores
from mtop_batch.model.bundle import load_probes
from mtop_batch.model.vectors import StackedProbes
from mtop_batch.tasks import Task

_ROWS_AT_ONCE = 1_024


class ProbePredictor:
    """Labels vectors as `Predictor` labels texts, on the CPU.

    Args:
        tasks: Probes.
        stacked: Their weights, in the same order.
    """

    def __init__(self, tasks: Sequence[Task], stacked: StackedProbes) -> None:
        self.tasks = list(tasks)
        self._stacked = stacked

    @classmethod
    def load(cls, uri: str, tasks: Sequence[Task]) -> ProbePredictor:
        """A predictor of these probes of the bundle at `uri`; the encoder is not loaded.

        Raises:
            BundleError: The bundle is missing or damaged.
        """
        return cls(tasks, load_probes(uri, [task.name for task in tasks]))

    def of(self, tasks: Collection[str]) -> ProbePredictor:
        """The same for some of the tasks only."""
        places = [place for place, task in enumerate(self.tasks) if task.name in tasks]
        stacked = StackedProbes(self._stacked.weight[places], self._stacked.bias[places])
        return ProbePredictor([self.tasks[place] for place in places], stacked)

    def predict(self, vectors: pa.ChunkedArray) -> TaskOutputs:
        """Label R vectors; a null one gets label -1 and score NaN."""
        started = time.perf_counter()
        values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in vectors.drop_null().chunks]
        matrix = np.concatenate([np.empty(0, np.float16), *values]).reshape(-1, self._stacked.weight.shape[2])
        present = np.flatnonzero(vectors.is_valid().to_numpy())
        label_ids = np.full((len(vectors), len(self.tasks)), -1, np.int32)
        scores = np.full(label_ids.shape, np.nan, np.float32)
        is_regression = torch.zeros(len(self.tasks), dtype=torch.bool)
        for start in range(0, len(matrix), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            packed = labels_and_scores(self._stacked(torch.from_numpy(matrix[rows])), is_regression)
            label_ids[present[rows]], scores[present[rows]] = packed.numpy()
        return TaskOutputs(label_ids, scores, seconds=time.perf_counter() - started)


def read_vectors(labels: str, unit: Unit, definition: Definition) -> pa.Table:
    """The columns `id`, `vector` and `error` of a unit whose vectors are stored.

    Raises:
        DamagedLabelFile: A label file is not what it was when the unit was planned.
        LabelTableError: The storage does not answer.
    """
    parts = []
    for place in unit.vectors:
        footer, table = read_label_file(labels, place.label_set, place.path, ["id", VECTOR_COLUMN, "error"])
        if (footer.source, footer.fingerprints.get(VECTOR)) != (unit.source, definition.vector):
            raise DamagedLabelFile(
                f"{place.label_set}/{place.path} was replaced while the run was going on; run the same command again"
            )
        parts.append(table.slice(place.rows[0] - footer.rows[0], place.rows[1] - place.rows[0]))
    return pa.concat_tables(parts)
