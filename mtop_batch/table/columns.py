"""The label table's columns, and what a predictor says of texts; without torch, for processes that write only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.decisions import decide
from mtop_batch.tasks import Task

LABEL_TYPE = pa.dictionary(pa.int32(), pa.string())
LABELS_TYPE = pa.list_(pa.string())
SCORE_TYPE = pa.float32()
VECTOR_COLUMN = "vector"
LABELS_KEY = b"labels"
"""In the metadata of a field `<task>_scores`: the labels in the order of the scores, as JSON."""
# How Parquet calls the elements of a list in a column, where it is asked to write them with a dictionary.
_ELEMENTS = ".list.element"


@dataclass(frozen=True)
class OutputKind:
    """What comes out of a task, and so which columns it has.

    Args:
        kind: The task's, or "vector".
        scored: The labels of its column `<task>_scores`, in order; none where there is no such column.
    """

    kind: str
    scored: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task) -> OutputKind:
        """That of a task."""
        return cls(task.kind, task.labels if task.scores == "all" else ())

    def fields(self, task: str, vector_type: pa.DataType | None = None) -> list[pa.Field]:
        """The columns of the task of this name.

        `<task>_label` (not for regression) and `<task>_score`, then `<task>_scores` if scores of all labels are wanted;
        or `vector`.
        """
        if self.kind == "vector":
            return [pa.field(VECTOR_COLUMN, vector_type or pa.list_(pa.float16()))]
        if self.kind == "multi-label":
            fields = [pa.field(f"{task}_label", LABELS_TYPE), pa.field(f"{task}_score", pa.list_(SCORE_TYPE))]
        else:
            fields = [pa.field(f"{task}_score", SCORE_TYPE)]
            if self.kind != "regression":
                fields.insert(0, pa.field(f"{task}_label", LABEL_TYPE))
        if self.scored:
            labels = {LABELS_KEY: json.dumps(self.scored, ensure_ascii=False).encode()}
            fields.append(pa.field(f"{task}_scores", pa.list_(SCORE_TYPE, len(self.scored)), metadata=labels))
        return fields

    def names(self, task: str) -> list[str]:
        """The names of `fields`."""
        return [field.name for field in self.fields(task)]

    def with_scores_of(self, other: OutputKind | None) -> OutputKind:
        """The same, and the other's scores of all labels where this one has none."""
        return self if self.scored or other is None else replace(self, scored=other.scored)


def label_schema(
    id_type: pa.DataType, kinds: Mapping[str, OutputKind], vector_type: pa.DataType | None = None
) -> pa.Schema:
    """The columns of a label file or a published file: `id`, those of the tasks, `error`."""
    fields = [field for task, kind in kinds.items() for field in kind.fields(task, vector_type)]
    return pa.schema([pa.field("id", id_type), *fields, pa.field("error", pa.string())])


def kinds_of(schema: pa.Schema) -> dict[str, OutputKind]:
    """The tasks that a file has columns of, in order, with what gives these columns: `label_schema` undone."""
    names = set(schema.names)
    tasks = dict.fromkeys(name.removesuffix("_score") for name in schema.names if name.endswith("_score"))
    found = {}
    for task in tasks:
        kind = "regression" if f"{task}_label" not in names else "classification"
        if pa.types.is_list(schema.field(f"{task}_score").type):
            kind = "multi-label"
        scored = scored_labels(schema.field(f"{task}_scores")) if f"{task}_scores" in names else ()
        found[task] = OutputKind(kind, scored)
    return found


def scored_labels(scores: pa.Field) -> tuple[str, ...]:
    """The labels of a column `<task>_scores`, in the order of its scores."""
    return tuple(json.loads((scores.metadata or {}).get(LABELS_KEY, b"[]")))


def with_labels_of(scores: pa.ChunkedArray, given: pa.Field, wanted: pa.Field) -> pa.ChunkedArray:
    """A column `<task>_scores` with the labels of another definition of the task: null for those that it did not have.

    Args:
        scores: The column.
        given: Its field.
        wanted: That of the column it is to become.
    """
    old, new = scored_labels(given), scored_labels(wanted)
    if old == new:
        return scores
    if len(old) != given.type.list_size:  # whoever wrote the file has lost their names
        return pa.chunked_array([pa.nulls(len(scores), wanted.type)])
    places = [old.index(label) if label in old else len(old) for label in new]
    chunks = [pa.array([], wanted.type)]
    for chunk in scores.chunks:
        values = np.full((len(chunk), len(old) + 1), np.nan, np.float32)
        is_there = chunk.is_valid().to_numpy(zero_copy_only=False)
        values[is_there, :-1] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(old))
        elements = pa.array(values[:, places].reshape(-1), from_pandas=True)
        chunks.append(pa.FixedSizeListArray.from_arrays(elements, len(new), mask=chunk.is_null()))
    return pa.chunked_array(chunks)


def label_counts(labels: pa.ChunkedArray) -> dict[str, int]:
    """Articles per label of a column `<task>_label`."""
    values = pc.list_flatten(labels) if pa.types.is_list(labels.type) else labels.drop_null()
    return {str(entry["values"]): entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """The columns that Parquet is to write with dictionaries: few different values."""
    names = [field.name for field in schema if pa.types.is_dictionary(field.type) or field.name == "error"]
    return [*names, *(f"{field.name}{_ELEMENTS}" for field in schema if field.type == LABELS_TYPE)]


@dataclass(frozen=True)
class TaskOutputs:
    """What n tasks say of R rows.

    Args:
        label_ids: (n, R) int32, index of the likeliest label; -1 for a regression, a multi-label task, or a row without
            tokens.
        scores: (n, R) float32, probability of the likeliest label, or the value of a regression; NaN for a row without
            tokens.
        vectors: (R, D) float16, NaN for a row without tokens; None where they are not wanted.
        probabilities: (C, R) float32 for each task that keeps them, of its C labels; NaN for a row without tokens.
        num_tokens: Tokens of all rows.
        num_padded_tokens: Tokens and padding that went through the model, prompts aside.
        flops: Operations that the tokens and the prompts take (`mtop_batch.model.flops`).
        seconds: Wall-clock time.
    """

    label_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16] | None = None
    probabilities: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    num_tokens: int = 0
    num_padded_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __getitem__(self, rows: slice) -> TaskOutputs:
        """The outputs of some rows; the counts and seconds stay those of the whole."""
        vectors = None if self.vectors is None else self.vectors[rows]
        probabilities = {task: values[:, rows] for task, values in self.probabilities.items()}
        return replace(
            self,
            label_ids=self.label_ids[:, rows],
            scores=self.scores[:, rows],
            vectors=vectors,
            probabilities=probabilities,
        )


def label_columns(
    tasks: Sequence[Task], outputs: TaskOutputs, valid: npt.NDArray[np.bool_]
) -> list[tuple[str, pa.Array]]:
    """The label table's columns of each task, those of `OutputKind.fields`, and `vector` if the outputs have vectors.

    The columns of tasks that keep no probabilities are the outputs' own memory, not copies, and share one bitmap of
    what is null.

    Args:
        tasks: The n tasks of the outputs, in their order.
        outputs: Of R rows.
        valid: (R,) False for rows whose cells are null.
    """
    # A row has labels of all tasks, and a vector, or none of these.
    missing = np.isnan(outputs.scores[0] if outputs.vectors is None else outputs.vectors[:, 0])
    given = pa.array(valid & ~missing)
    present = given.buffers()[1]
    columns = []
    for task, label_ids, scores in zip(tasks, outputs.label_ids, outputs.scores, strict=True):
        if task.keeps_probabilities:
            probabilities = np.ascontiguousarray(outputs.probabilities[task.name].T)
        if task.is_multi_label:
            labels, of_labels = _given_labels(task, probabilities, given)
            columns += [(f"{task.name}_label", labels), (f"{task.name}_score", of_labels)]
        else:
            if task.kind != "regression":
                indices = pa.Array.from_buffers(pa.int32(), len(valid), [present, pa.py_buffer(label_ids)])
                labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
                columns.append((f"{task.name}_label", labels))
            values = pa.Array.from_buffers(pa.float32(), len(valid), [present, pa.py_buffer(scores)])
            columns.append((f"{task.name}_score", values))
        if task.scores == "all":
            elements = pa.array(probabilities.reshape(-1))
            all_scores = pa.FixedSizeListArray.from_arrays(elements, len(task.labels), mask=pc.invert(given))
            columns.append((f"{task.name}_scores", all_scores))
    if outputs.vectors is not None:
        elements, size = pa.array(outputs.vectors.reshape(-1)), outputs.vectors.shape[1]
        columns.append((VECTOR_COLUMN, pa.FixedSizeListArray.from_arrays(elements, size, mask=pc.invert(given))))
    return columns


def _given_labels(
    task: Task, probabilities: npt.NDArray[np.float32], given: pa.BooleanArray
) -> tuple[pa.Array, pa.Array]:
    """The labels that each text is given, in the order of the task's, and their probabilities.

    Args:
        task: A multi-label task.
        probabilities: (R, C)
        given: (R,) False for rows whose cells are null.
    """
    has_label = decide(task, probabilities) & given.to_numpy(zero_copy_only=False)[:, None]
    offsets = pa.array(np.concatenate([[0], has_label.sum(axis=1).cumsum()]), pa.int32())
    labels = pa.array(task.labels, pa.string()).take(pa.array(np.nonzero(has_label)[1]))
    lists = (
        pa.ListArray.from_arrays(offsets, values, mask=pc.invert(given))
        for values in (labels, pa.array(probabilities[has_label]))
    )
    first, second = lists
    return first, second
