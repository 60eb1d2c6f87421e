"""Entities beside texts, as tasks with a training, an evaluation and a test part, of data that is divided already.

    <entities>/train.parquet, dev.parquet, test.parquet      lists of words and of their tags
    <texts>/tasks.toml                                       as other commands write it

No example is copied: `tasks.toml` names the files where they lie. Tasks that an encoder is to learn from before stand
in `sources.toml` beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from mtop_batch import storage
from mtop_batch.config.load import load_tasks, validate
from mtop_batch.config.task import TaskConfig
from mtop_batch.config.toml import pairs
from mtop_batch.data.examples import few_warnings, load_examples
from mtop_batch.data.sets.parts import Part
from mtop_batch.data.sources import read_columns
from mtop_batch.errors import DataError
from mtop_batch.lines import did_you_mean, listed
from mtop_batch.tasks import check_task_names

SOURCES_FILE = "sources.toml"
_COLUMNS = {"text": "tokens", "label": "tags"}
_FILES: Mapping[Part, tuple[str, ...]] = {"train": ("train",), "eval": ("dev", "eval", "validation"), "test": ("test",)}
_OUTSIDE = "O"


@few_warnings()
def build_families(
    entities: Mapping[str, str],
    texts: Sequence[str],
    output: str,
    *,
    tasks: Collection[str] = (),
    sources: Sequence[str] = (),
) -> dict[str, dict[Part, int]]:
    """Join token tasks and tasks on texts to one data set.

    Writes `<output>/sources.toml` if there are source tasks, and last `<output>/tasks.toml`. Nothing is written if an
    example cannot be used.

    Args:
        entities: Name of a token task -> a directory or prefix with its parts. Columns are `tokens` and `tags` unless
            `?text=COLUMN&label=COLUMN` behind it names others.
        texts: Files of tasks.
        output: A directory or prefix.
        tasks: Which tasks to take of these files; none for all.
        sources: Files of source tasks, of which all are taken.

    Returns:
        The number of examples in each part of every task, the source tasks aside.

    Raises:
        ConfigError, TaskError: A file is none of tasks, or two tasks have the same name.
        DataError: There is no task, a part is missing, or its examples cannot be used.
        LabelTableError: The storage cannot be reached or refuses.
    """
    found = [token_task(name, location) for name, location in entities.items()]
    found += _chosen([task for file in texts for task in load_tasks(file)], tasks)
    if not found:
        raise DataError("no task is given; name at least one directory of a token task, or a file of tasks")
    check_task_names(task.name for task in found)
    counts = {task.name: _counts(task) for task in found}
    learned_before = [task for file in sources for task in load_tasks(file, evaluates=False)]
    check_task_names(task.name for task in learned_before)
    if learned_before:
        _write(output, SOURCES_FILE, learned_before)
    _write(output, "tasks.toml", found)
    return counts


def token_task(name: str, location: str) -> TaskConfig:
    """The token task of a directory; its types are those of the training part's tags.

    Raises:
        DataError: A part or a column is missing, or there is no entity.
        TaskError: The name cannot be a task's.
    """
    place, _, query = location.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - set(_COLUMNS)):
        raise DataError(f"task {name!r}: {unknown[0]!r} is not an option of {location}; allowed: text, label")
    columns = {**_COLUMNS, **options}
    files = {str(part): _file(name, place, part) for part in _FILES}
    types = _types(files["train"], columns["label"])
    if not types:
        raise DataError(f"task {name!r}: {files['train']} has no entity; give sentences that have some")
    table: dict[str, Any] = {"name": name, "kind": "token", "labels": types}
    table |= {"text": [columns["text"]], "label": columns["label"], **files}
    values = {"output": "none", "backbone": {"name": "none"}, "task": [table]}
    return validate(values, location).task[0]


def _file(task: str, place: str, part: Part) -> str:
    """The file of a part."""
    names = [storage.join(place, f"{name}.parquet") for name in _FILES[part]]
    for name in names:
        if storage.is_file(storage.absolute(name)):
            return name
    allowed = " or ".join(f"{name}.parquet" for name in _FILES[part])
    raise DataError(f"task {task!r}: {place} has no {allowed}; give a directory with train, dev and test")


def _types(file: str, column: str) -> list[str]:
    """The types of all tags, which are strings or numbers with names."""
    found: set[str] = set()
    for part in read_columns(file, [column]):
        names = part.label_names.get(column)
        tags = {tag for row in part.table[column].to_pylist() for tag in row or ()}
        found |= set(names) if names is not None else {str(tag) for tag in tags}
    return sorted({tag[2:] for tag in found if tag != _OUTSIDE and len(tag) > 2})


def _chosen(tasks: Sequence[TaskConfig], names: Collection[str]) -> list[TaskConfig]:
    known = [task.name for task in tasks]
    for name in names:
        if name not in known:
            raise DataError(f"there is no task {name!r}; {did_you_mean(name, known)}tasks: {listed(known)}")
    return [task for task in tasks if not names or task.name in names]


def _counts(task: TaskConfig) -> dict[Part, int]:
    """The number of examples in each part of a task, all of which can be used."""
    if task.test is None:
        raise DataError(f"task {task.name!r} has no test part, which results are about; add test = PATH to it")
    parts: dict[Part, Any] = {"train": task.train, "eval": task.evaluation, "test": task.test}
    return {
        part: len(load_examples(task.definition(), where, task.label, training=part == "train", label_by=task.label_by))
        for part, where in parts.items()
    }


def _write(output: str, name: str, tasks: Sequence[TaskConfig]) -> None:
    rows = (pairs(task.model_dump(mode="json", exclude_unset=True)) for task in tasks)
    text = "# Made by `mtop build-families`.\n" + "".join(f"\n[[task]]\n{row}" for row in rows)
    storage.write_bytes(storage.join(storage.absolute(output), name), text.encode())
