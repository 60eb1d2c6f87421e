"""The label table's columns, and what a predictor says of texts; without torch, for processes that write only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.entities.spans import Entities
from mtop_batch.decisions.decide import Decided, Floats, both_of, decide, last_of
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
        entities: Of the rows, for each token task; its label ids are -1, and its scores those of the least sure word.
        num_tokens: Tokens of all rows.
        num_padded_tokens: Tokens and padding that went through the model, prompts aside.
        flops: Operations that the tokens and the prompts take (`mtop_batch.model.flops`).
        seconds: Wall-clock time.
    """

    label_ids: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16] | None = None
    probabilities: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    entities: Mapping[str, Entities] = field(default_factory=dict)
    num_tokens: int = 0
    num_padded_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    def __getitem__(self, rows: slice) -> TaskOutputs:
        """The outputs of some rows; the counts and seconds stay those of the whole."""
        vectors = None if self.vectors is None else self.vectors[rows]
        probabilities = {task: values[:, rows] for task, values in self.probabilities.items()}
        entities = {task: of.take(np.arange(len(of))[rows]) for task, of in self.entities.items()}
        return replace(
            self,
            entities=entities,
            label_ids=self.label_ids[:, rows],
            scores=self.scores[:, rows],
            vectors=vectors,
            probabilities=probabilities,
        )


def base_probabilities(tasks: Sequence[Task], outputs: TaskOutputs) -> dict[str, Floats]:
    """(R, C) By task, what decisions are made from; of multi-label tasks, and of those that decide in their own way."""
    found = {}
    for place, task in enumerate(tasks):
        if not task.has_labels_of_texts or not (task.has_decision or task.is_multi_label):
            continue
        found[task.name] = np.ascontiguousarray(_of_all_labels(task, outputs, place))
    return found


def _of_all_labels(task: Task, outputs: TaskOutputs, place: int) -> Floats:
    """(R, C) The probabilities that the model puts out for the labels of the task at a place of the outputs."""
    if task.is_binary:
        return both_of(last_of(outputs.label_ids[place], outputs.scores[place]))
    return outputs.probabilities[task.name].T


def decide_outputs(tasks: Sequence[Task], outputs: TaskOutputs) -> dict[str, Decided]:
    """What is decided of R rows, by task, of those tasks that decide in a way of their own or are multi-label."""
    base = base_probabilities(tasks, outputs)
    return decide([task for task in tasks if task.name in base], base)


def label_columns(
    tasks: Sequence[Task],
    outputs: TaskOutputs,
    valid: npt.NDArray[np.bool_],
    decided: Mapping[str, Decided] | None = None,
    text_columns: Sequence[str] | None = None,
) -> list[tuple[str, pa.Array]]:
    """The label table's columns of each task, those of `OutputKind.stored`, and `vector` if the outputs have vectors.

    The columns of tasks that decide as every task does, and keep no probabilities, are the outputs' own memory, not
    copies, and share one bitmap of what is null.

    Args:
        tasks: The n tasks of the outputs, in their order.
        outputs: Of R rows.
        valid: (R,) False for rows whose cells are null.
        decided: What `decide_outputs` says of them, if that is known.
        text_columns: That entities are in; None for those of their task.

    Raises:
        TaskError: A rule names a task that is not there.
    """
    decided = decide_outputs(tasks, outputs) if decided is None else decided
    # A row has labels of all tasks, and a vector, or none of these.
    missing = np.isnan(outputs.scores[0] if outputs.vectors is None else outputs.vectors[:, 0])
    given = pa.array(valid & ~missing)
    present = given.buffers()[1]
    columns = []
    for place, task in enumerate(tasks):
        label_ids, scores = outputs.label_ids[place], outputs.scores[place]
        if task.name in decided:
            columns += _decided_columns(task, decided[task.name], given)
        else:
            if task.is_token:
                columns.append(
                    (f"{task.name}_label", _entity_lists(task, outputs.entities[task.name], given, text_columns))
                )
            elif task.kind != "regression":
                indices = pa.Array.from_buffers(pa.int32(), len(valid), [present, pa.py_buffer(label_ids)])
                labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
                columns.append((f"{task.name}_label", labels))
            values = pa.Array.from_buffers(pa.float32(), len(valid), [present, pa.py_buffer(scores)])
            columns.append((f"{task.name}_score", values))
        if task.scores == "all":
            is_decided = task.name in decided
            all_scores = decided[task.name].probabilities if is_decided else _of_all_labels(task, outputs, place)
            columns.append((f"{task.name}_scores", _fixed_lists(all_scores, given)))
        if OutputKind.stored(task).uncalibrated:
            is_one = task.scores != "all"
            kept = (
                _numbers(last_of(label_ids, scores), given)
                if is_one
                else _fixed_lists(_of_all_labels(task, outputs, place), given)
            )
            columns.append((f"{task.name}_{UNCALIBRATED}", kept))
    if outputs.vectors is not None:
        columns.append((VECTOR_COLUMN, _fixed_lists(outputs.vectors, given)))
    return columns


def decidable_columns(task: str) -> list[str]:
    """The columns of a label file that `stored_outputs` reads, as far as the file has them."""
    return [f"{task}_{what}" for what in ("label", "score", "scores", UNCALIBRATED)]


def stored_outputs(tasks: Sequence[Task], stored: Mapping[str, pa.ChunkedArray], num_rows: int) -> TaskOutputs:
    """What the model has put out, from the columns of label files; `label_columns` undone.

    Args:
        tasks: Classifications and multi-label tasks, of each of which `OutputKind.can_be_decided` holds.
        stored: The columns of label files, of the tasks as they were decided then.
        num_rows: R
    """
    label_ids = np.full((len(tasks), num_rows), -1, np.int32)
    scores = np.full(label_ids.shape, np.nan, np.float32)
    probabilities = {}
    for place, task in enumerate(tasks):
        kept = stored.get(f"{task.name}_{UNCALIBRATED}")
        kept = stored.get(f"{task.name}_scores") if kept is None else kept
        if kept is not None and not pa.types.is_floating(kept.type):
            found = probabilities[task.name] = _matrix(kept, len(task.labels)).T
            is_there = ~np.isnan(found[0])
            label_ids[place, is_there] = found[:, is_there].argmax(axis=0)
            scores[place] = found.max(axis=0)
        else:
            last = _floats(stored[f"{task.name}_score"]) if kept is None else _floats(kept)
            if kept is None:  # then the score is that of the label
                is_last = pc.equal(stored[f"{task.name}_label"].cast(pa.string()), task.labels[1])
                last = np.where(is_last.fill_null(False).to_numpy(), last, 1 - last)
            is_there = ~np.isnan(last)
            label_ids[place, is_there] = last[is_there] > 1 - last[is_there]
            scores[place] = np.maximum(last, 1 - last)
        if task.is_multi_label:
            label_ids[place] = -1
    return TaskOutputs(label_ids, scores, probabilities=probabilities)


def _decided_columns(task: Task, decided: Decided, given: pa.BooleanArray) -> list[tuple[str, pa.Array]]:
    """`<task>_label` and `<task>_score`.

    Args:
        task: A task that has labels.
        decided: What is decided of R rows.
        given: (R,) False for rows whose cells are null.
    """
    is_there = given.to_numpy(zero_copy_only=False)
    labelled = is_there & ~decided.abstained
    if task.is_multi_label:
        names = pa.array(task.labels, pa.string())
        labels = _lists(decided.given, labelled, lambda has: names.take(pa.array(np.nonzero(has)[1])))
        scores = _lists(decided.given, is_there, lambda has: pa.array(decided.probabilities[has], SCORE_TYPE))
        return [(f"{task.name}_label", labels), (f"{task.name}_score", scores)]
    label_ids = decided.given.argmax(axis=1).astype(np.int32)
    of_labels = np.take_along_axis(decided.probabilities, label_ids[:, None], axis=1)[:, 0]
    indices = pa.array(label_ids, mask=~labelled)
    labels = pa.DictionaryArray.from_arrays(indices, pa.array(task.labels, pa.string()))
    return [(f"{task.name}_label", labels), (f"{task.name}_score", _numbers(of_labels, given))]


def _lists(
    given: npt.NDArray[np.bool_], is_there: npt.NDArray[np.bool_], values: Callable[[npt.NDArray[np.bool_]], pa.Array]
) -> pa.ListArray:
    """(R,) Lists of what there is for each of the (R, C) labels that are given; null where a row has no list."""
    has_label = given & is_there[:, None]
    offsets = pa.array(np.concatenate([[0], has_label.sum(axis=1).cumsum()]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values(has_label), mask=pa.array(~is_there))


def _entity_lists(
    task: Task, entities: Entities, given: pa.BooleanArray, text_columns: Sequence[str] | None
) -> pa.ListArray:
    """(R,) Lists of entities; null where nothing is given."""
    column, start, end, label = (pa.array(np.ascontiguousarray(values)) for values in entities.values.T)
    columns, labels = (pa.array(names, pa.string()) for names in (text_columns or (*task.text, SECOND), task.labels))
    members = [columns.take(column), start, end, labels.take(label), pa.array(entities.scores)]
    values = pa.StructArray.from_arrays(members, fields=list(ENTITY_TYPE))
    offsets = pa.array(entities.offsets, pa.int32())
    return pa.ListArray.from_arrays(offsets, values, ENTITIES_TYPE, mask=pc.invert(given))


def _numbers(values: Floats, given: pa.BooleanArray) -> pa.Array:
    """(R,) As a column, null where nothing is given."""
    return pa.array(values, SCORE_TYPE, mask=pc.invert(given).to_numpy(zero_copy_only=False))


def _fixed_lists(values: npt.NDArray[np.floating[Any]], given: pa.BooleanArray) -> pa.Array:
    """(R, C) As a column of lists, null where nothing is given."""
    elements = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(elements, values.shape[1], mask=pc.invert(given))


def _floats(values: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """(R,) NaN for null."""
    return np.asarray(values.combine_chunks().to_numpy(zero_copy_only=False), np.float32)


def _matrix(lists: pa.ChunkedArray, width: int) -> npt.NDArray[np.float32]:
    """(R, width) NaN for null."""
    found = np.full((len(lists), width), np.nan, np.float32)
    rows = lists.is_valid().to_numpy()
    found[rows] = pc.list_flatten(lists).to_numpy().reshape(-1, width)
    return found
