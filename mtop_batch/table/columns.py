"""The label table's columns, and what a predictor says of texts; without torch, for processes that write only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.tasks import Task

LABEL_TYPE = pa.dictionary(pa.int32(), pa.string())
SCORE_TYPE = pa.float32()
VECTOR_COLUMN = "vector"


def task_fields(task: str, kind: str, vector_type: pa.DataType | None = None) -> list[pa.Field]:
    """The columns that a task of this kind has: `<task>_label` (not for regression) and `<task>_score`, or `vector`."""
    if kind == "vector":
        return [pa.field(VECTOR_COLUMN, vector_type or pa.list_(pa.float16()))]
    score = pa.field(f"{task}_score", SCORE_TYPE)
    return [score] if kind == "regression" else [pa.field(f"{task}_label", LABEL_TYPE), score]


def task_columns(task: str, kind: str) -> list[str]:
    """The names of `task_fields`."""
    return [field.name for field in task_fields(task, kind)]


def label_schema(id_type: pa.DataType, kinds: Mapping[str, str], vector_type: pa.DataType | None = None) -> pa.Schema:
    """The columns of a label file or a published file: `id`, those of the tasks of these kinds, `error`."""
    fields = [field for task, kind in kinds.items() for field in task_fields(task, kind, vector_type)]
    return pa.schema([pa.field("id", id_type), *fields, pa.field("error", pa.string())])


def kinds_of(schema: pa.Schema) -> dict[str, str]:
    """The tasks that a file has columns of, in order, with kinds that give these columns: `label_schema` undone."""
    names = schema.names
    tasks = dict.fromkeys(name.removesuffix("_score") for name in names if name.endswith("_score"))
    return {task: "classification" if f"{task}_label" in names else "regression" for task in tasks}


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """The columns that Parquet is to write with dictionaries: few different values."""
    return [field.name for field in schema if pa.types.is_dictionary(field.type) or field.name == "error"]


@dataclass(frozen=True)
class TaskOutputs:
    """What n tasks say of R rows.

    Args:
        label_ids: (n, R) int32, index of the likeliest label; -1 for a regression or a row without tokens.
        scores: (n, R) float32, probability of that label, or the value of a regression; NaN for a row without tokens.
        vectors: (R, D) float16, NaN for a row without tokens; None where they are not wanted.
        num_tokens: Tokens of all rows.
        num_padded_tokens: Tokens and padding that went through the model, prompts aside.
        flops: Operations that the tokens and the prompts take (`mtop_batch.model.flops`).
        seconds: Wall-clock time.
    """

    label_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16] | None = None
    num_tokens: int = 0
    num_padded_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __getitem__(self, rows: slice) -> TaskOutputs:
        """The outputs of some rows; the counts and seconds stay those of the whole."""
        vectors = None if self.vectors is None else self.vectors[rows]
        return replace(self, label_ids=self.label_ids[:, rows], scores=self.scores[:, rows], vectors=vectors)


def label_columns(
    tasks: Sequence[Task], outputs: TaskOutputs, valid: npt.NDArray[np.bool_]
) -> list[tuple[str, pa.Array]]:
    """The label table's columns of each task: `<task>_label` (dictionary of strings) and `<task>_score` (float32).

    And `vector` (list of D float16) if the outputs have vectors. The columns are the outputs' own memory, not copies,
    and those of tasks share one bitmap of what is null.

    Args:
        tasks: The n tasks of the outputs, in their order; a regression has no label column.
        outputs: Of R rows.
        valid: (R,) False for rows whose cells are null.
    """
    # A row has labels of all tasks, and a vector, or none of these.
    missing = np.isnan(outputs.scores[0] if outputs.vectors is None else outputs.vectors[:, 0])
    given = pa.array(valid & ~missing)
    present = given.buffers()[1]
    columns = []
    for task, label_ids, scores in zip(tasks, outputs.label_ids, outputs.scores, strict=True):
        if task.kind != "regression":
            indices = pa.Array.from_buffers(pa.int32(), len(valid), [present, pa.py_buffer(label_ids)])
            labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
            columns.append((f"{task.name}_label", labels))
        values = pa.Array.from_buffers(pa.float32(), len(valid), [present, pa.py_buffer(scores)])
        columns.append((f"{task.name}_score", values))
    if outputs.vectors is not None:
        elements, size = pa.array(outputs.vectors.reshape(-1)), outputs.vectors.shape[1]
        columns.append((VECTOR_COLUMN, pa.FixedSizeListArray.from_arrays(elements, size, mask=pc.invert(given))))
    return columns
