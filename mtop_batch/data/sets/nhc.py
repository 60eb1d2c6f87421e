"""The paper's news set, NHC (section 5): binary topic tasks from the headlines of the News Category Dataset.

For each of seven topics up to 2,000 headlines of its category are the positives, and as many drawn from all other
categories the negatives. The paper's eighth task, opinion, was labelled by its authors and is not public: a further
task can be made of any labelled Parquet.

There are three parts: training, evaluation (development), and test. Each headline belongs to one of them before tasks
are drawn (`mtop_batch.data.sets.parts`), so that what one task is tested on is no negative that another learns from.

Draws depend on the seed, the task's name and the set of headlines, not on the order of files and rows.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

from mtop_batch import storage
from mtop_batch.data.sets.parts import PARTS, Part, Shares
from mtop_batch.data.sets.task_files import NO_YES, TaskExamples, check_parts, write_table, write_tasks
from mtop_batch.data.sources import noted_label_names, read_parquet
from mtop_batch.errors import DataError
from mtop_batch.lines import listed
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

# Where there are several, the first of them is taken.
_HEADLINE_COLUMNS = ("headline_norm", "headline")
_TEXT_COLUMNS = (*_HEADLINE_COLUMNS, "text", "sentence")
_POSITIVE = "?positive="
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
_JSON_BLOCK_BYTES = 16 << 20


def build_nhc(
    source: str,
    output: str,
    extra: Mapping[str, str] | None = None,
    *,
    topics: Mapping[str, str] = TOPICS,
    seed: int = 0,
    positives: int = 2000,
    eval_fraction: float = 0.1,
    test_fraction: float = 0.15,
    unlabelled: bool = True,
) -> dict[str, dict[Part, int]]:
    """Make the NHC tasks.

    Writes `<output>/<task>/train.parquet`, `eval.parquet` and `test.parquet`, columns `headline` and `label`, and,
    last, `<output>/tasks.toml`, which a configuration names as its `tasks`. Nothing is written if the data does not
    fit.

    A headline that is null or blank, marked `ambiguous`, or found in several categories is left out; of repeated ones
    one is kept. No headline is in the training part of one task and in the evaluation or test part of any other.

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
        eval_fraction: Share of the headlines that are for evaluation.
        test_fraction: Share of the headlines that are for test; 0 for no test part.
        unlabelled: Write all headlines of the source that are of no evaluation or test part, whatever their category,
            to `<output>/unlabelled/headlines.parquet`, with the columns `id` and `headline`.

    Returns:
        The number of examples in each part of every task, in the order of `tasks.toml`.

    Raises:
        DataError: A column, a topic, or a label is missing, a part is left without, or a file is of another format.
        TaskError: The name of a further task is not allowed, or taken.
        LabelTableError: The storage cannot be reached or refuses; files already written stay.
    """
    extra = extra or {}
    check_task_names([*topics, *extra])
    shares = Shares(eval_fraction, test_fraction, seed)
    found = _read_headlines(source)
    usable = _unique(found.filter(pc.invert(found["ambiguous"])))
    headlines = _Headlines(usable, shares.parts(usable["headline"].to_pylist()))
    tasks = [_topic_task(name, category, headlines, source, shares, positives) for name, category in topics.items()]
    tasks += [_extra_task(name, location, shares) for name, location in extra.items()]
    for task in tasks:
        check_parts(task, shares)
    if unlabelled:
        write_table(storage.join(output, "unlabelled", "headlines.parquet"), _unlabelled(found, shares))
    return write_tasks(output, tasks, "mtop build-nhc")


@dataclass(frozen=True)
class _Headlines:
    """The headlines that tasks are drawn from, with their categories as `label`, and the part of each."""

    table: pa.Table
    parts: npt.NDArray[np.str_]


def _read_headlines(source: str) -> pa.Table:
    """The columns `headline`, `label` (the category, in capitals) and `ambiguous` of all rows."""
    parts = []
    tables = [(source, _read_json(source))] if source.endswith(_JSON_SUFFIXES) else read_parquet(source, _news_columns)
    for name, table in tables:
        columns = _news_columns(name, table.column_names)
        category = pc.utf8_upper(pc.utf8_trim_whitespace(table["category"].cast(pa.string())))
        marked = table["ambiguous"].cast(pa.bool_()) if "ambiguous" in columns else pa.nulls(len(table), pa.bool_())
        ambiguous = pc.fill_null(marked, False)
        headline = table[columns[1]].cast(pa.string())
        parts.append(pa.table({"headline": headline, "label": category, "ambiguous": ambiguous}))
    return pa.concat_tables(parts)


def _news_columns(name: str, present: Sequence[str]) -> list[str]:
    headline = next((column for column in _HEADLINE_COLUMNS if column in present), None)
    if headline is None or "category" not in present:
        missing = "category" if headline else "headline"
        raise DataError(
            f"{name} has no column {missing!r}; columns: {listed(present)}; give the News Category "
            "Dataset as JSON lines or Parquet with 'category' and 'headline'"
        )
    return ["category", headline, *(["ambiguous"] if "ambiguous" in present else [])]


def _read_json(source: str) -> pa.Table:
    """The columns of interest of a file of JSON lines, those that are there."""
    source = storage.absolute(source)
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
    rows = _with_text(rows.filter(rows["label"].is_valid()))
    grouped = rows.group_by("headline").aggregate([("label", "min"), ("label", "count_distinct")])
    grouped = grouped.filter(pc.equal(grouped["label_count_distinct"], 1)).sort_by("headline")
    return pa.table({"headline": grouped["headline"], "label": grouped["label_min"]})


def _with_text(rows: pa.Table) -> pa.Table:
    """The rows with a headline that is neither null nor blank."""
    rows = rows.filter(pc.invert(pc.utf8_is_space(rows["headline"])))
    return rows.filter(pc.not_equal(rows["headline"], ""))


def _unlabelled(found: pa.Table, shares: Shares) -> pa.Table:
    headlines = sorted(pc.unique(_with_text(found)["headline"]).to_pylist())
    parts = shares.parts(headlines)
    kept = [headline for headline, part in zip(headlines, parts, strict=True) if part == "train"]
    ids = [hashlib.blake2b(headline.encode(), digest_size=8).hexdigest() for headline in kept]
    return pa.table({"id": pa.array(ids, pa.string()), "headline": pa.array(kept, pa.string())})


def _topic_task(
    name: str, category: str, headlines: _Headlines, source: str, shares: Shares, positives: int
) -> TaskExamples:
    is_topic = pc.equal(headlines.table["label"], category).to_numpy()
    if is_topic.all() or not is_topic.any():
        found = ", ".join(sorted(pc.unique(headlines.table["label"]).to_pylist())) or "none"
        which = f"category {category!r}" if not is_topic.any() else f"any category but {category!r}"
        raise DataError(f"{source} has no headline of {which}; categories: {found}; give the News Category Dataset")
    rng = _generator(shares.seed, name)
    parts: dict[Part, pa.Table] = {}
    for part in PARTS:
        own, others = (np.flatnonzero((headlines.parts == part) & wanted) for wanted in (is_topic, ~is_topic))
        own = rng.choice(own, min(round(positives * shares.of(part)), len(own)), replace=False)
        others = rng.choice(others, min(len(own), len(others)), replace=False)
        labels = np.repeat([NO_YES[1], NO_YES[0]], [len(own), len(others)])
        rows = np.concatenate([own, others])
        order = rng.permutation(len(rows))
        parts[part] = _examples(headlines.table["headline"].take(rows[order]), labels[order])
    return TaskExamples(_task(name, NO_YES), parts)


def _extra_task(name: str, location: str, shares: Shares) -> TaskExamples:
    path, has_positives, given = location.partition(_POSITIVE)
    parts = []
    for file, table in read_parquet(path, lambda file, present: _extra_columns(name, file, present)):
        text, label = _extra_columns(name, file, table.column_names)
        labels = _as_strings(table[label], noted_label_names(table.schema).get(label), file)
        parts.append(pa.table({"headline": table[text].cast(pa.string()), "label": labels}))
    rows = _unique(pa.concat_tables(parts))
    values = sorted(pc.unique(rows["label"]).to_pylist())
    if has_positives:
        positives = _checked_positives(name, path, given.split(","), values)
    else:
        positives = values[1:] if values in (["0", "1"], ["false", "true"]) else []
    if positives:
        is_positive = pc.is_in(rows["label"], pa.array(positives))
        rows = rows.set_column(1, "label", pc.if_else(is_positive, NO_YES[1], NO_YES[0]))
    if len(pc.unique(rows["label"])) < 2:
        raise DataError(f"{path} has not two labels for task {name!r}; labels: {listed(values)}")
    rows = rows.take(_generator(shares.seed, name).permutation(len(rows)))
    part_of = shares.parts(rows["headline"].to_pylist())
    return TaskExamples(
        _task(name, NO_YES if positives else tuple(values)), {part: rows.filter(part_of == part) for part in PARTS}
    )


def _extra_columns(name: str, file: str, present: Sequence[str]) -> list[str]:
    text = next((column for column in _TEXT_COLUMNS if column in present), None)
    label = next((column for column in ("label", name) if column in present), None)
    if text is None or label is None:
        wanted = f"text column ({', '.join(_TEXT_COLUMNS)})" if text is None else f"label column (label, {name})"
        raise DataError(f"{file} has no {wanted} for task {name!r}; columns: {listed(present)}; rename one")
    return [text, label]


def _as_strings(labels: pa.ChunkedArray, names: Sequence[str] | None, file: str) -> pa.ChunkedArray:
    """Labels as strings: by the names that come with whole numbers, where there are some; -1 is none then."""
    kind = labels.type.value_type if pa.types.is_dictionary(labels.type) else labels.type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise DataError(f"the labels of {file} have type {kind}; allowed are strings, integers and booleans")
    if names is None or not pa.types.is_integer(kind):
        return labels.cast(pa.string())
    known = [str(number) for number in range(len(names))]
    labels = pc.if_else(pc.equal(labels, -1), None, labels).cast(pa.string())
    places = pc.index_in(labels, pa.array(known))
    if places.null_count > labels.null_count:
        raise DataError(f"{file} has labels without a name; those with one: {', '.join(names)}; correct the file")
    return pa.chunked_array([pa.array(names, pa.string()).take(chunk) for chunk in places.chunks], pa.string())


def _checked_positives(name: str, path: str, positives: list[str], values: Sequence[str]) -> list[str]:
    for positive in positives:
        if positive not in values:
            raise DataError(
                f"{path} has no label {positive!r}, which is to be a positive of task {name!r}; "
                f"labels: {listed(values)}"
            )
    return positives


def _task(name: str, labels: tuple[str, ...]) -> Task:
    return Task(name, labels=labels, text=("headline",))


def _examples(headlines: Any, labels: npt.NDArray[np.str_]) -> pa.Table:
    return pa.table({"headline": headlines, "label": pa.array(labels.tolist(), pa.string())})


def _generator(seed: int, name: str) -> np.random.Generator:
    """Draws of a task, whichever other tasks there are."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
