"""The GLUE benchmark (Wang et al., 2018) as tasks with a training, an evaluation (development) and a test part.

The labels of GLUE's test sets are not public, so its development sets are the test parts here, and a part of each
training set is for evaluation. Where a training set is not at hand, another corpus stands in for it under a name of its
own: what is measured on it is not the paper's number.

    <source>/<task>/train.parquet, dev.parquet      columns sentence1, sentence2, label

QQP is missing from the sources that this was written for, and is made like the others if it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch import storage
from mtop_batch.data.sets.parts import Part, Shares, joined, words
from mtop_batch.data.sets.task_files import TaskExamples, check_parts, write_tasks
from mtop_batch.data.sources import check_columns, read_parquet
from mtop_batch.errors import DataError
from mtop_batch.tasks import Metric, Task, TaskKind

_COLUMNS = ("sentence1", "sentence2", "label")
_NLI = ("entailment", "neutral", "contradiction")
_TWO_WAY = ("entailment", "not_entailment")
_NO_YES = ("no", "yes")


@dataclass(frozen=True)
class _Recipe:
    """How a task is made.

    Args:
        labels: In the order of the source's integers; none for a regression.
        train: The files, below the source, of training and evaluation examples, without their ending.
        test: Those of test examples; none if a share of `train` is held out for it.
        metric: As in the paper's Table 2.
        paper: The task of the paper that this is, or stands in for.
        note: What it is if it is not that.
        pair: Whether its texts are pairs.
    """

    labels: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    metric: Metric
    paper: str
    note: str = ""
    pair: bool = True


GLUE_TASKS: Mapping[str, _Recipe] = {
    "cola": _Recipe(("unacceptable", "acceptable"), ("cola/train",), ("cola/dev",), "matthews", "CoLA", pair=False),
    "mnli": _Recipe(_NLI, ("mnli/train",), ("mnli/dev_matched", "mnli/dev_mismatched"), "accuracy", "MNLI"),
    "snli_to_mnli": _Recipe(
        _NLI,
        ("nli_extra/snli_dev", "nli_extra/snli_test"),
        ("mnli/dev_matched_1000", "mnli/dev_mismatched_1000"),
        "accuracy",
        "MNLI",
        "learns from the development and test sets of SNLI; tested on 2 x 1,000 of MNLI's development examples",
    ),
    "mrpc": _Recipe(_NO_YES, ("mrpc/train",), ("mrpc/dev",), "f1", "MRPC"),
    "qnli": _Recipe(_TWO_WAY, ("qnli/train",), ("qnli/dev",), "accuracy", "QNLI"),
    "qnli_of_dev": _Recipe(
        _TWO_WAY, ("qnli/dev",), (), "accuracy", "QNLI", "all three parts are cut from QNLI's development set"
    ),
    "qqp": _Recipe(_NO_YES, ("qqp/train",), ("qqp/dev",), "f1", "QQP"),
    "rte": _Recipe(_TWO_WAY, ("rte/train",), ("rte/dev",), "accuracy", "RTE"),
    "sst2": _Recipe(("negative", "positive"), ("sst2/train",), ("sst2/dev",), "accuracy", "SST-2", pair=False),
    "stsb": _Recipe((), ("stsb/train",), ("stsb/dev",), "spearman", "STS-B"),
}
"""By name. Of the recipes for one task of the paper the first whose files are there is taken."""


def build_glue(
    source: str, output: str, *, seed: int = 0, eval_fraction: float = 0.1, most_eval: int = 2000
) -> tuple[dict[str, dict[Part, int]], dict[str, str]]:
    """Make the GLUE tasks.

    Writes the files of `mtop_batch.data.sets.task_files`. A text, or pair of texts, that is in the test part of
    any task is left out of the training and evaluation parts of all.

    Args:
        source: A directory or prefix with Parquet files as above.
        output: A directory or prefix.
        seed: Of which training examples are for evaluation.
        eval_fraction: Share of them.
        most_eval: At most so many in a task; the others are left out, so that large tasks do not slow development down.

    Returns:
        The number of examples in each part of every task; and what is missing or stands in for something: a line by
        task of the paper.

    Raises:
        DataError: No task's files are there, or one has other columns or labels.
        LabelTableError: The storage cannot be reached or refuses; files already written stay.
    """
    chosen, notes = _choose(source)
    tests = {name: _test_part(source, recipe, seed) for name, recipe in chosen.items()}
    held_out = {words(text) for test in tests.values() for text in _texts(test)}
    tasks = []
    for name, recipe in chosen.items():
        shares = _shares(recipe, seed, eval_fraction)
        parts = {**_train_and_eval(source, recipe, shares, held_out, most_eval), "test": tests[name]}
        tasks.append(TaskExamples(_task(name, recipe), parts))
        check_parts(tasks[-1], shares)
    return write_tasks(output, tasks, "mtop build-glue"), notes


def _choose(source: str) -> tuple[dict[str, _Recipe], dict[str, str]]:
    """The recipes whose files are there, and what is to be said of the paper's tasks."""
    chosen: dict[str, _Recipe] = {}
    notes: dict[str, str] = {}
    for name, recipe in GLUE_TASKS.items():
        if recipe.paper in {other.paper for other in chosen.values()}:
            continue
        missing = [file for file in (*recipe.train, *recipe.test) if not storage.is_file(_uri(source, file))]
        if missing:
            notes.setdefault(recipe.paper, f"missing: there is no {missing[0]}.parquet")
        else:
            chosen[name] = recipe
            notes.pop(recipe.paper, None)
            if recipe.note:
                notes[recipe.paper] = f"{name} stands in: {recipe.note}"
    if not chosen:
        first = next(iter(GLUE_TASKS.values())).train[0]
        raise DataError(
            f"{source} has the files of no GLUE task, such as {first}.parquet; give a directory with "
            "<task>/train.parquet and <task>/dev.parquet"
        )
    return chosen, notes


def _shares(recipe: _Recipe, seed: int, eval_fraction: float = 0.1) -> Shares:
    return Shares(eval_fraction, 0.0 if recipe.test else 0.2, seed)


def _test_part(source: str, recipe: _Recipe, seed: int) -> pa.Table:
    if recipe.test:
        return _read(source, recipe, recipe.test)
    table = _read(source, recipe, recipe.train)
    return table.filter(_shares(recipe, seed).parts(_texts(table)) == "test")


def _train_and_eval(
    source: str, recipe: _Recipe, shares: Shares, held_out: set[str], most_eval: int
) -> dict[Part, pa.Table]:
    table = _read(source, recipe, recipe.train)
    texts = list(_texts(table))
    part_of = shares.parts(texts)
    free = np.array([words(text) not in held_out for text in texts], dtype=bool)
    train, evaluation = (table.filter((part_of == part) & free) for part in ("train", "eval"))
    return {"train": train, "eval": evaluation[:most_eval]}


def _read(source: str, recipe: _Recipe, files: tuple[str, ...]) -> pa.Table:
    """The rows with text and label, with the columns of the task and the labels by their names."""
    tables = []
    for name in files:
        for file, found in read_parquet(_uri(source, name), _wanted):
            # Whoever labelled an example "-1" could not agree on a label.
            known = pc.and_kleene(found["label"].is_valid(), pc.greater_equal(found["label"], 0))
            rows = found.filter(pc.and_kleene(known, found["sentence1"].is_valid()))
            columns = {name: rows[name].cast(pa.string()) for name in _COLUMNS[: 2 if recipe.pair else 1]}
            tables.append(pa.table({**columns, "label": _labels(rows["label"], recipe, file)}))
    return pa.concat_tables(tables)


def _labels(values: pa.ChunkedArray, recipe: _Recipe, file: str) -> pa.ChunkedArray:
    if not recipe.labels:
        return values.cast(pa.float32())
    if not pa.types.is_integer(values.type) or pc.max(values).as_py() >= len(recipe.labels):
        raise DataError(f"{file}: its labels are not integers from 0 to {len(recipe.labels) - 1}; give GLUE's files")
    return pa.chunked_array([pa.array(recipe.labels).take(chunk) for chunk in values.chunks], pa.string())


def _texts(table: pa.Table) -> Iterator[str]:
    """The text, or both texts as one, of each row."""
    columns = [table[name].to_pylist() for name in _COLUMNS[:2] if name in table.column_names]
    yield from (joined(texts) for texts in zip(*columns, strict=True))


def _task(name: str, recipe: _Recipe) -> Task:
    kind: TaskKind = "classification" if recipe.labels else "regression"
    return Task(name, kind, recipe.labels, _COLUMNS[: 2 if recipe.pair else 1], recipe.metric)


def _wanted(name: str, present: list[str]) -> tuple[str, ...]:
    check_columns(name, _COLUMNS, present)
    return _COLUMNS


def _uri(source: str, file: str) -> str:
    return storage.join(source, f"{file}.parquet")
