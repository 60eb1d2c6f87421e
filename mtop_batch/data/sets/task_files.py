"""The files of data sets made for training: each task's parts as Parquet, and the `tasks.toml` that names them.

<output>/<task>/train.parquet, eval.parquet, test.parquet
<output>/tasks.toml                                          written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.config.toml import pairs
from mtop_batch.data.sets.parts import PARTS, Part, Shares
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task

NO_YES = ("no", "yes")


@dataclass(frozen=True)
class TaskExamples:
    """A task and the examples of its parts, each with the task's text columns and `label`; a part may have none."""

    task: Task
    parts: Mapping[Part, pa.Table]


def check_parts(examples: TaskExamples, shares: Shares) -> None:
    """Refuse a task with a part that has no example, or a training part without one of the labels.

    Raises:
        DataError: Names the task and the part.
    """
    name = examples.task.name
    for part in PARTS:
        if shares.of(part) > 0 and not len(examples.parts[part]):
            raise DataError(f"task {name!r} has no example in its {part} part; give more data, or another seed")
    found = pc.unique(examples.parts["train"]["label"]).to_pylist()
    without = [label for label in examples.task.labels if label not in found]
    if without:
        raise DataError(f"task {name!r} has no training example of {without[0]!r}; give more data, or another seed")


def write_tasks(output: str, tasks: Sequence[TaskExamples], made_by: str) -> dict[str, dict[Part, int]]:
    """Write all files of the tasks.

    Args:
        output: A directory or prefix. If it is relative, so are the paths in `tasks.toml`.
        tasks: In the order of `tasks.toml`.
        made_by: The command, for the head of `tasks.toml`.

    Returns:
        The number of examples in each part of every task.

    Raises:
        LabelTableError: The storage cannot be reached or refuses; files already written stay.
    """
    for item in tasks:
        for part in _parts(item):
            write_table(_path(output, item.task, part), item.parts[part])
    toml = f"# Made by `{made_by}`.\n" + "".join(_toml(output, item) for item in tasks)
    storage.write_bytes(storage.join(storage.absolute(output), "tasks.toml"), toml.encode())
    return {item.task.name: {part: len(item.parts[part]) for part in _parts(item)} for item in tasks}


def write_table(uri: str, table: pa.Table) -> None:
    """Write a table as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(storage.absolute(uri), sink.getvalue())


def _parts(item: TaskExamples) -> list[Part]:
    return [part for part in PARTS if len(item.parts[part])]


def _path(output: str, task: Task, part: Part) -> str:
    return storage.join(output, task.name, f"{part}.parquet")


def _toml(output: str, item: TaskExamples) -> str:
    task = item.task
    values: dict[str, Any] = {
        "name": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "metric": task.metric,
        "text": list(task.text),
        "label": "label",
        **{part: _path(output, task, part) for part in _parts(item)},
    }
    return "\n[[task]]\n" + pairs(values)
