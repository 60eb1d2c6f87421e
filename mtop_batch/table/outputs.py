"""What tasks say of rows, and the columns that it becomes; without torch, for processes that write only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.entities.spans import Entities
from mtop_batch.decisions.decide import Decided, Floats, both_of, decide, last_of
from mtop_batch.table.columns import (
    ENTITIES_TYPE,
    ENTITY_TYPE,
    SCORE_TYPE,
    SECOND,
    UNCALIBRATED,
    VECTOR_COLUMN,
    OutputKind,
)
from mtop_batch.tasks import Task


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
