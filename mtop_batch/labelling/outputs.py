"""What a predictor says of texts, and the label table's columns of it; without torch, for processes that write only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtop_batch.tasks import Task


@dataclass(frozen=True)
class TaskOutputs:
    """What n tasks say of R rows.

    Args:
        label_ids: (R, n) int32, index of the likeliest label; -1 for a regression or a row without tokens.
        scores: (R, n) float32, probability of that label, or the value of a regression; NaN for a row without tokens.
        num_tokens: Tokens of all rows.
        num_padded_tokens: Tokens and padding that went through the model, prompts aside.
        seconds: Wall-clock time.
    """

    label_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    num_tokens: int = 0
    num_padded_tokens: int = 0
    seconds: float = 0.0

    def __getitem__(self, rows: slice) -> TaskOutputs:
        """The outputs of some rows; the counts and seconds stay those of the whole."""
        return replace(self, label_ids=self.label_ids[rows], scores=self.scores[rows])


def label_columns(
    tasks: Sequence[Task], outputs: TaskOutputs, valid: npt.NDArray[np.bool_]
) -> list[tuple[str, pa.Array]]:
    """The label table's columns of each task: `<task>_label` (dictionary of strings) and `<task>_score` (float32).

    Args:
        tasks: The n tasks of the outputs, in their order; a regression has no label column.
        outputs: Of R rows.
        valid: (R,) False for rows whose cells are null.
    """
    columns = []
    for index, task in enumerate(tasks):
        label_ids, scores = outputs.label_ids[:, index], outputs.scores[:, index]
        missing = ~valid | np.isnan(scores)
        if task.kind == "classification":
            indices = pa.array(label_ids, pa.int32(), mask=missing)
            labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
            columns.append((f"{task.name}_label", labels))
        columns.append((f"{task.name}_score", pa.array(scores, pa.float32(), mask=missing)))
    return columns
