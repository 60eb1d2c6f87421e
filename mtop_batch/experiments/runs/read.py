"""How the data of an experiment is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import numpy as np

from mtop_batch import storage
from mtop_batch.config.load import load_tasks
from mtop_batch.data.examples import few_warnings, load_examples
from mtop_batch.data.same_text import same_text_key
from mtop_batch.data.sets.families import SOURCES_FILE
from mtop_batch.data.unlabelled import choose_texts, read_texts
from mtop_batch.errors import DataError
from mtop_batch.experiments.methods.tables import method
from mtop_batch.experiments.runs.data_set import DataSet, RawSource, RawTask, digest_of, first_rows


@few_warnings()
def read_data_set(name: str, tasks_file: str) -> DataSet:
    """Read a data set.

    Args:
        name: What the results call it.
        tasks_file: The `tasks.toml` that `mtop build-nhc` or another such command wrote.

    Raises:
        ConfigError: There is no such file, or it is none of tasks.
        DataError: A task has no test part, or its examples cannot be used.
    """
    tasks = []
    for config in load_tasks(tasks_file):
        if config.test is None:
            raise DataError(
                f"{tasks_file}: task {config.name!r} has no test part; make the data again with `mtop build-nhc` or "
                "another such command, or add test = PATH to the task"
            )
        sources = ((config.train, True), (config.evaluation, False), (config.test, False))
        parts = [
            load_examples(config.definition(), source, config.label, training=training, label_by=config.label_by)
            for source, training in sources
        ]
        tasks.append(RawTask(config, *parts))
    return DataSet(name, tuple(tasks), digest_of(tasks))


def read_for(
    methods: Iterable[str], name: str, tasks_file: str, corpus: str | None = None, rows: int | None = None
) -> DataSet:
    """Read a data set with all that some methods learn from.

    Args:
        methods: Names of `METHODS`.
        name: What the results call the data set.
        tasks_file: As for `read_data_set`.
        corpus: Further texts for methods that learn from texts without labels; None for the directory `unlabelled`
            beside `tasks_file`, if it is there. The source tasks of methods that begin with these are those of
            `sources.toml` beside it, if that is there.
        rows: At most so many examples in each part, and texts; None for all.

    Raises:
        ConfigError: There is no such method or file, or the file is none of tasks.
        DataError: A task has no test part, its examples cannot be used, or the corpus does not exist.
    """
    data = read_data_set(name, tasks_file)
    wanted = [method(each) for each in methods]
    here = storage.absolute(os.path.dirname(tasks_file) or ".")
    sources_file = storage.join(here, SOURCES_FILE)
    if any(each.prefinetune for each in wanted) and storage.is_file(sources_file):
        data = with_sources(data, sources_file)
    if rows is not None:
        data = first_rows(data, rows)
    most = max((int(each.unlabelled["max_texts"]) for each in wanted if each.unlabelled), default=0)
    if not most:
        return data
    beside = storage.join(here, "unlabelled")
    found = corpus or (beside if storage.exists(beside) else None)
    return with_unlabelled(data, found, most if rows is None else rows)


def with_unlabelled(data: DataSet, corpus: str | None, max_texts: int) -> DataSet:
    """The data set with texts to learn from without labels: those of its training examples, and of a corpus.

    No text of an evaluation or test part is among them.

    Args:
        data: The data set.
        corpus: Parquet with the first task's text columns; None for the examples' texts only.
        max_texts: Most texts, those of examples included.

    Raises:
        DataError: The corpus does not exist, or lacks a column.
        LabelTableError: The storage cannot be reached or refuses.
    """
    texts = choose_texts(
        chain.from_iterable(task.train.pairs() for task in data.tasks),
        read_texts(corpus, data.tasks[0].config.text) if corpus else (),
        chain.from_iterable(part.pairs() for task in data.tasks for part in (task.eval, task.test)),
        max_texts=max_texts,
        seed=0,
    )
    return replace(data, unlabelled=texts)


@few_warnings()
def with_sources(data: DataSet, tasks_file: str) -> DataSet:
    """The data set with source tasks, without the texts that a task of the data set is evaluated or tested on.

    Args:
        data: The data set.
        tasks_file: Of the source tasks; only their training examples are read.

    Raises:
        ConfigError: There is no such file, or it is none of tasks.
        DataError: The examples of a task cannot be used, or none is left.
    """
    left_out = {same_text_key(pair) for task in data.tasks for part in (task.eval, task.test) for pair in part.pairs()}
    sources = []
    for config in load_tasks(tasks_file, evaluates=False):
        train = load_examples(config.definition(), config.train, config.label, label_by=config.label_by)
        kept = [row for row, pair in enumerate(train.pairs()) if same_text_key(pair) not in left_out]
        if not kept:
            raise DataError(
                f"{tasks_file}: all training texts of {config.name!r} are in the evaluation or test part of a task; "
                "give other source tasks"
            )
        sources.append(RawSource(config, train.take(np.array(kept))))
    return replace(data, sources=tuple(sources))
