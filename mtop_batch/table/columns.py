"""The label table's columns: their types, their names, and which of them a task has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.tasks import Task

LABEL_TYPE = pa.dictionary(pa.int32(), pa.string())
LABELS_TYPE = pa.list_(pa.string())
SCORE_TYPE = pa.float32()
ENTITY_TYPE = pa.struct(
    [
        ("column", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("label", pa.string()),
        ("score", SCORE_TYPE),
    ]
)
"""An entity: characters of a text column, from `start` to the one before `end`."""
ENTITIES_TYPE = pa.list_(ENTITY_TYPE)
SECOND = "second"
"""The column of entities in a second text that is given to a task on single texts."""
VECTOR_COLUMN = "vector"
LABELS_KEY = b"labels"
"""In the metadata of a field `<task>_scores`: the labels in the order of the scores, as JSON."""
UNCALIBRATED = "uncalibrated"
# How Parquet calls the elements of a list in a column, where it is asked to write them with a dictionary.
_ELEMENTS = ".list.element"


@dataclass(frozen=True)
class OutputKind:
    """What comes out of a task, and so which columns it has.

    Args:
        kind: The task's, or "vector".
        scored: The labels of its column `<task>_scores`, in order; none where there is no such column.
        uncalibrated: How many numbers its column `<task>_uncalibrated` has for each text: the probabilities that the
            model puts out, where another decision cannot be made from the other columns; of two labels that of the
            last one. Label files have it, and never the published table; 0 where there is none.
    """

    kind: str
    scored: tuple[str, ...] = ()
    uncalibrated: int = 0

    @classmethod
    def of(cls, task: Task) -> OutputKind:
        """That of a task, as readers see it."""
        return cls(task.kind, task.labels if task.scores == "all" else ())

    @classmethod
    def stored(cls, task: Task) -> OutputKind:
        """That of a task in label files: what `of` says, and what another decision is made from."""
        is_calibrated = task.decision.temperature != 1
        if task.scores == "all":
            num_kept = len(task.labels) if is_calibrated else 0
        else:
            num_kept = int(task.is_binary and (is_calibrated or task.decision.abstain_below > 0))
        return replace(cls.of(task), uncalibrated=num_kept)

    @property
    def published(self) -> OutputKind:
        """What of it readers see."""
        return replace(self, uncalibrated=0) if self.uncalibrated else self

    def can_be_decided(self, task: Task) -> bool:
        """Whether label files with these columns have all probabilities that a decision of the task is made from."""
        return bool(self.uncalibrated or self.scored or task.is_binary)

    def fields(self, task: str, vector_type: pa.DataType | None = None) -> list[pa.Field]:
        """The columns of the task of this name.

        `<task>_label` (not for regression; of a token task a list of `ENTITY_TYPE`) and `<task>_score`, then
        `<task>_scores` if scores of all labels are wanted, and in label files `<task>_uncalibrated`; or `vector`.
        """
        if self.kind == "vector":
            return [pa.field(VECTOR_COLUMN, vector_type or pa.list_(pa.float16()))]
        if self.kind == "multi-label":
            fields = [pa.field(f"{task}_label", LABELS_TYPE), pa.field(f"{task}_score", pa.list_(SCORE_TYPE))]
        elif self.kind == "token":
            fields = [pa.field(f"{task}_label", ENTITIES_TYPE), pa.field(f"{task}_score", SCORE_TYPE)]
        else:
            fields = [pa.field(f"{task}_score", SCORE_TYPE)]
            if self.kind != "regression":
                fields.insert(0, pa.field(f"{task}_label", LABEL_TYPE))
        if self.scored:
            labels = {LABELS_KEY: json.dumps(self.scored, ensure_ascii=False).encode()}
            fields.append(pa.field(f"{task}_scores", pa.list_(SCORE_TYPE, len(self.scored)), metadata=labels))
        if self.uncalibrated:
            kept = pa.list_(SCORE_TYPE, self.uncalibrated) if self.scored else SCORE_TYPE
            fields.append(pa.field(f"{task}_{UNCALIBRATED}", kept))
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
        elif f"{task}_label" in names and schema.field(f"{task}_label").type == ENTITIES_TYPE:
            kind = "token"
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


def given_labels(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column `<task>_label` as labels of articles: of a token task the types of which an article has entities."""
    if labels.type != ENTITIES_TYPE:
        return labels
    chunks = [pa.array([], LABELS_TYPE)]
    for chunk in labels.chunks:
        lengths = pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
        types = pc.struct_field(pc.list_flatten(chunk), "label").dictionary_encode()
        row_and_type = np.stack([np.repeat(np.arange(len(chunk)), lengths), types.indices.to_numpy()])
        rows, found = np.unique(row_and_type, axis=1)
        offsets = np.searchsorted(rows, np.arange(len(chunk) + 1)).astype(np.int32)
        names = types.dictionary.take(pa.array(found))
        chunks.append(pa.ListArray.from_arrays(pa.array(offsets), names, LABELS_TYPE, mask=chunk.is_null()))
    return pa.chunked_array(chunks)


def label_counts(labels: pa.ChunkedArray) -> dict[str, int]:
    """Articles per label of a column of `given_labels`."""
    values = pc.list_flatten(labels) if pa.types.is_list(labels.type) else labels.drop_null()
    return {str(entry["values"]): entry["counts"] for entry in pc.value_counts(values).to_pylist()}


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """The columns that Parquet is to write with dictionaries: few different values."""
    names = [field.name for field in schema if pa.types.is_dictionary(field.type) or field.name == "error"]
    names += [f"{field.name}{_ELEMENTS}" for field in schema if field.type == LABELS_TYPE]
    entities = [field.name for field in schema if field.type == ENTITIES_TYPE]
    return [*names, *(f"{name}{_ELEMENTS}.{member}" for name in entities for member in ("column", "label"))]
