"""The configuration that a selection comes to, for `mtop train`, and the Parquet files of chosen examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.config.toml import pairs
from mtop_batch.data.examples import load_train_and_eval
from mtop_batch.data.sets.task_files import write_table
from mtop_batch.data.sources import read_columns
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.selection.select import Selection


def chosen_config(config: Config, selection: Selection, examples: Mapping[str, str]) -> Config:
    """The configuration with the primary task and what was chosen to help it.

    Args:
        config: With all tasks.
        selection: What was chosen.
        examples: Task -> Parquet file with those of its training examples that were chosen.
    """
    wanted = (selection.primary, *selection.auxiliary)
    rates = dict(zip(wanted, map(float, selection.ratio), strict=True)) if selection.ratio else {}
    tasks = []
    for task in config.task:
        if task.name in wanted:
            changes: dict[str, Any] = {"train": examples[task.name]} if task.name in examples else {}
            changes |= {"rate": rates.get(task.name)} if rates or task.rate is not None else {}
            tasks.append(task.model_copy(update=changes))
    output = f"{config.output.rstrip('/')}-{selection.primary}"
    return config.model_copy(update={"output": output}).with_tasks(tasks)


def write_examples(
    config: Config, selection: Selection, directory: str, text_tokenizer: TextTokenizer
) -> dict[str, str]:
    """Write the chosen examples of each auxiliary task, as they stand in its own data.

    Args:
        config: Says where the tasks' data are.
        selection: What was chosen.
        directory: Where to.
        text_tokenizer: Of the backbone: a text that it finds nothing in is no example.

    Returns:
        Task -> its file; none where all examples were chosen.

    Raises:
        DataError, LabelTableError: The data have changed since, or storage fails.
    """
    files = {}
    for task in config.task:
        if task.name in selection.rows:
            files[task.name] = storage.join(directory, f"{task.name}.parquet")
            write_table(files[task.name], _rows_of(task, selection.rows[task.name], text_tokenizer))
    return files


def write_config(path: str, config: Config, head: str) -> None:
    """Write a configuration as TOML: the keys that were given, and those that a selection changed.

    Args:
        path: Local or on object storage.
        config: What to write.
        head: A line of comment.
    """
    storage.write_bytes(storage.absolute(path), to_toml(config, head).encode())


def to_toml(config: Config, head: str) -> str:
    """A configuration as TOML (`write_config`)."""
    values = config.model_dump(mode="json", exclude_unset=True)
    tables = {key: values.pop(key) for key in ("family", "task") if key in values}
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    top = {key: value for key, value in values.items() if key not in sections}
    parts = [f"# {head}\n{pairs(top)}", *(f"\n[{key}]\n{pairs(value)}" for key, value in sections.items())]
    return "".join([*parts, *(f"\n[[{key}]]\n{pairs(row)}" for key, rows in tables.items() for row in rows)])


def _rows_of(task: TaskConfig, rows: npt.NDArray[np.int64], text_tokenizer: TextTokenizer) -> pa.Table:
    """The rows of the task's source behind so many of its examples."""
    raw, _ = load_train_and_eval(task.definition(), task.train, task.evaluation, task.label, task.label_by)
    places = (task.train,) if isinstance(task.train, str) else task.train
    parts = [part for place in places for part in read_columns(place, [*task.text, task.label])]
    table = pa.concat_tables([part.table for part in parts], promote_options="permissive")
    in_source = np.delete(np.arange(len(table)), [row for row, _ in raw.skipped])
    with_tokens = np.flatnonzero(text_tokenizer.encode(raw.texts, raw.seconds, words=raw.task.is_token).lengths)
    return table.take(in_source[with_tokens[rows]])
