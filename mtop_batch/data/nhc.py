"""The paper's news set, NHC (section 5): binary topic tasks from the headlines of the News Category Dataset.

For each of seven topics up to 2,000 headlines of its category are the positives, and as many drawn from all other
categories the negatives; a random 80 % is for training, the rest for evaluation. The paper's eighth task, opinion, was
labelled by its authors and is not public: a further task can be made of any labelled Parquet.

Draws depend on the seed, the task's name and the set of headlines, not on the order of files and rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.data.sources import read_parquet
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task, check_task_names

TOPICS: Mapping[str, str] = {
    "politics": "POLITICS",
    "wellness": "WELLNESS",
    "entertainment": "ENTERTAINMENT",
    "travel": "TRAVEL",
    "style_and_beauty": "STYLE & BEAUTY",
    "parenting": "PARENTING",
    "healthy_living": "HEALTHY LIVING",
}
NO_YES = ("no", "yes")

# Where there are several, the first of them is taken.
_HEADLINE_COLUMNS = ("headline_norm", "headline")
_TEXT_COLUMNS = (*_HEADLINE_COLUMNS, "text", "sentence")
_POSITIVE = "?positive="
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_JSON_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Counts:
    """How many examples a task has."""

    train: int
    eval: int


@dataclass(frozen=True)
class _LabelledTask:
    """A task and its examples in random order; the first `num_train` are for training."""

    task: Task
    examples: pa.Table
    num_train: int


def build_nhc(
    source: str,
    output: str,
    extra: Mapping[str, str] | None = None,
    *,
    topics: Mapping[str, str] = TOPICS,
    seed: int = 0,
    positives: int = 2000,
    eval_fraction: float = 0.2,
) -> dict[str, Counts]:
    """Make the NHC tasks.

    Writes `<output>/<task>/train.parquet` and `eval.parquet`, columns `headline` and `label`, and, last,
    `<output>/tasks.toml`, which a configuration names as its `tasks`. Nothing is written if the data does not fit.

    A headline that is null or blank, marked `ambiguous`, or found in several categories is left out; of repeated ones
    one is kept. So no headline is in both the training and the evaluation set of a task.

    Args:
        source: The News Category Dataset: its published JSON lines (`.json`, `.jsonl`), or Parquet (a file or a
            directory) with the columns `category` and `headline_norm`, or else `headline`.
        output: A directory or prefix. If it is relative, so are the paths in `tasks.toml`.
        extra: Further tasks: name -> `PATH` or `PATH?positive=VALUE,VALUE`. The Parquet at PATH has a text column
            (`headline_norm`, `headline`, `text` or `sentence`) and a label column (`label`, or one called as the task).
            With positives named, a row is "yes" if its label is one of them and otherwise "no":
            `{"opinion": "sentences.parquet?positive=mixed,opinion"}`. Without, each value is a label of its own, but
            false and true, or 0 and 1, become "no" and "yes". Rows without text or label are left out.
        topics: Task -> its category in capitals; the paper's by default.
        seed: Of all draws.
        positives: Most positives of a topic.
        eval_fraction: Share of the evaluation set.

    Returns:
        The number of examples of every task, in the order of `tasks.toml`.

    Raises:
        DataError: A column, a topic, or a label is missing, or a file is of another format.
        TaskError: The name of a further task is not allowed, or taken.
        LabelTableError: The storage cannot be reached or refuses; files already written stay.
    """
    extra = extra or {}
    check_task_names([*topics, *extra])
    headlines = _unique(_read_headlines(source))
    tasks = [_topic_task(name, category, headlines, source, seed, positives) for name, category in topics.items()]
    tasks += [_extra_task(name, location, seed) for name, location in extra.items()]
    split = [_LabelledTask(task, table, round(len(table) * (1 - eval_fraction))) for task, table in tasks]
    for item in split:
        _write_parquet(_path(output, item.task, "train"), item.examples[: item.num_train])
        _write_parquet(_path(output, item.task, "eval"), item.examples[item.num_train :])
    toml = "# Made by `mtop build-nhc`.\n" + "".join(_toml(output, item.task) for item in split)
    storage.write_bytes(storage.join(output, "tasks.toml"), toml.encode())
    return {item.task.name: Counts(item.num_train, len(item.examples) - item.num_train) for item in split}


def _read_headlines(source: str) -> pa.Table:
    """The columns `headline` and `label` (the category, in capitals) of all rows that may be used."""
    parts = []
    tables = [(source, _read_json(source))] if source.endswith(_JSON_SUFFIXES) else read_parquet(source, _news_columns)
    for name, table in tables:
        columns = _news_columns(name, table.column_names)
        category = pc.utf8_upper(pc.utf8_trim_whitespace(table["category"].cast(pa.string())))
        usable = pa.table({"headline": table[columns[1]].cast(pa.string()), "label": category})
        if "ambiguous" in columns:
            usable = usable.filter(pc.invert(pc.fill_null(table["ambiguous"].cast(pa.bool_()), False)))
        parts.append(usable)
    return pa.concat_tables(parts)


def _news_columns(name: str, present: Sequence[str]) -> list[str]:
    headline = next((column for column in _HEADLINE_COLUMNS if column in present), None)
    if headline is None or "category" not in present:
        missing = "category" if headline else "headline"
        raise DataError(
            f"{name} has no column {missing!r}; columns: {', '.join(present) or 'none'}; give the News Category "
            "Dataset as JSON lines or Parquet with 'category' and 'headline'"
        )
    return ["category", headline, *(["ambiguous"] if "ambiguous" in present else [])]


def _read_json(source: str) -> pa.Table:
    """The columns of interest of a file of JSON lines, those that are there."""
    if not storage.is_file(source):
        raise DataError(f"there is no file {source!r}; give the News Category Dataset as JSON lines or Parquet")
    strings = [(name, pa.string()) for name in ("category", *_HEADLINE_COLUMNS)]
    schema = pa.schema([*strings, ("ambiguous", pa.bool_())])
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    fs, path = storage.filesystem(source)
    try:
        with fs.open_input_file(path) as stream:
            table = pa_json.read_json(stream, pa_json.ReadOptions(block_size=_JSON_BLOCK_BYTES), options)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source} cannot be read as JSON lines, one object per line: {reason}") from error
    return table.select([name for name in table.column_names if table[name].null_count < len(table)])


def _unique(rows: pa.Table) -> pa.Table:
    """Each headline once, in order of the alphabet; without those that are blank or have several labels."""
    rows = rows.filter(pc.and_kleene(rows["label"].is_valid(), pc.invert(pc.utf8_is_space(rows["headline"]))))
    rows = rows.filter(pc.not_equal(rows["headline"], ""))
    grouped = rows.group_by("headline").aggregate([("label", "min"), ("label", "count_distinct")])
    grouped = grouped.filter(pc.equal(grouped["label_count_distinct"], 1)).sort_by("headline")
    return pa.table({"headline": grouped["headline"], "label": grouped["label_min"]})


def _topic_task(
    name: str, category: str, headlines: pa.Table, source: str, seed: int, positives: int
) -> tuple[Task, pa.Table]:
    is_topic = pc.equal(headlines["label"], category).to_numpy()
    own, others = np.flatnonzero(is_topic), np.flatnonzero(~is_topic)
    if not len(own) or not len(others):
        found = ", ".join(sorted(pc.unique(headlines["label"]).to_pylist())) or "none"
        which = f"category {category!r}" if not len(own) else f"any category but {category!r}"
        raise DataError(f"{source} has no headline of {which}; categories: {found}; give the News Category Dataset")
    rng = _generator(seed, name)
    own = rng.choice(own, min(positives, len(own)), replace=False)
    others = rng.choice(others, min(len(own), len(others)), replace=False)
    labels = np.repeat([NO_YES[1], NO_YES[0]], [len(own), len(others)])
    rows = np.concatenate([own, others])
    order = rng.permutation(len(rows))
    return _task(name, NO_YES), _examples(headlines["headline"].take(rows[order]), labels[order])


def _extra_task(name: str, location: str, seed: int) -> tuple[Task, pa.Table]:
    path, has_positives, listed = location.partition(_POSITIVE)
    parts = []
    for file, table in read_parquet(path, lambda file, present: _extra_columns(name, file, present)):
        text, label = _extra_columns(name, file, table.column_names)
        parts.append(pa.table({"headline": table[text].cast(pa.string()), "label": _as_strings(table[label], file)}))
    rows = _unique(pa.concat_tables(parts))
    values = sorted(pc.unique(rows["label"]).to_pylist())
    if has_positives:
        positives = _checked_positives(name, path, listed.split(","), values)
    else:
        positives = values[1:] if values in (["0", "1"], ["false", "true"]) else []
    if positives:
        is_positive = pc.is_in(rows["label"], pa.array(positives))
        rows = rows.set_column(1, "label", pc.if_else(is_positive, NO_YES[1], NO_YES[0]))
    if len(pc.unique(rows["label"])) < 2:
        raise DataError(f"{path} has not two labels for task {name!r}; labels: {', '.join(values) or 'none'}")
    order = _generator(seed, name).permutation(len(rows))
    return _task(name, NO_YES if positives else tuple(values)), rows.take(order)


def _extra_columns(name: str, file: str, present: Sequence[str]) -> list[str]:
    text = next((column for column in _TEXT_COLUMNS if column in present), None)
    label = next((column for column in ("label", name) if column in present), None)
    if text is None or label is None:
        wanted = f"text column ({', '.join(_TEXT_COLUMNS)})" if text is None else f"label column (label, {name})"
        raise DataError(f"{file} has no {wanted} for task {name!r}; columns: {', '.join(present)}; rename one")
    return [text, label]


def _as_strings(labels: pa.ChunkedArray, file: str) -> pa.ChunkedArray:
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise DataError(f"the labels of {file} have type {kind}; allowed are strings, integers and booleans")
    return labels.cast(pa.string())


def _checked_positives(name: str, path: str, positives: list[str], values: Sequence[str]) -> list[str]:
    for positive in positives:
        if positive not in values:
            raise DataError(
                f"{path} has no label {positive!r}, which is to be a positive of task {name!r}; "
                f"labels: {', '.join(values) or 'none'}"
            )
    return positives


def _task(name: str, labels: tuple[str, ...]) -> Task:
    return Task(name, labels=labels, text=("headline",))


def _examples(headlines: Any, labels: npt.NDArray[np.str_]) -> pa.Table:
    return pa.table({"headline": headlines, "label": pa.array(labels.tolist(), pa.string())})


def _generator(seed: int, name: str) -> np.random.Generator:
    """Draws of a task, whichever other tasks there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _path(output: str, task: Task, split: str) -> str:
    return storage.join(output, task.name, f"{split}.parquet")


def _write_parquet(uri: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())


def _toml(output: str, task: Task) -> str:
    values = {
        "name": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "metric": task.metric,
        "text": list(task.text),
        "label": "label",
        "train": _path(output, task, "train"),
        "eval": _path(output, task, "eval"),
    }
    # Strings and lists of them are written alike in JSON and TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()]
    return "\n[[task]]\n" + "".join(lines)
