"""The data of an experiment: tasks with three parts each, read and tokenised."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

from mtop_batch import storage
from mtop_batch.config.load import load_tasks
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import (
    LabelledTokens,
    RawExamples,
    few_warnings,
    load_examples,
    tokenise_examples,
    with_label_scale,
)
from mtop_batch.data.same_text import Pair
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.data.unlabelled import UnlabelledTexts, choose_texts, read_texts
from mtop_batch.errors import DataError
from mtop_batch.experiments.methods import method
from mtop_batch.tasks import Reader
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.settings import TaskData


@dataclass(frozen=True)
class RawTask:
    """A task and its three parts as texts."""

    config: TaskConfig
    train: RawExamples
    eval: RawExamples
    test: RawExamples

    @property
    def parts(self) -> tuple[RawExamples, RawExamples, RawExamples]:
        """Training, evaluation and test examples."""
        return self.train, self.eval, self.test


@dataclass(frozen=True)
class DataSet:
    """Tasks with their examples.

    Args:
        name: "news" or "glue".
        tasks: In the order of the file.
        digest: Of all that the tasks and their examples are; where the files lie is no part of it.
        unlabelled: Texts to learn from without labels; None if they are not wanted.
    """

    name: str
    tasks: tuple[RawTask, ...]
    digest: str
    unlabelled: UnlabelledTexts | None = None

    @property
    def configs(self) -> list[TaskConfig]:
        """The tasks as in a configuration."""
        return [task.config for task in self.tasks]


@dataclass(frozen=True)
class Prepared:
    """A data set as a model takes it.

    Args:
        train: Training and evaluation examples of every task.
        test: Test examples, in the same order.
        unlabelled: Texts to learn from without labels.
    """

    train: list[TaskData]
    test: list[LabelledTokens]
    unlabelled: Tokens | None = None


@few_warnings()
def read_data_set(name: str, tasks_file: str) -> DataSet:
    """Read a data set.

    Args:
        name: What the results call it.
        tasks_file: The `tasks.toml` that `mtop build-nhc` or `mtop build-glue` wrote.

    Raises:
        ConfigError: There is no such file, or it is none of tasks.
        DataError: A task has no test part, or its examples cannot be used, or it is a token task.
    """
    tasks = []
    for config in load_tasks(tasks_file):
        if config.test is None:
            raise DataError(
                f"{tasks_file}: task {config.name!r} has no test part; make the data again with `mtop build-nhc` or "
                "`mtop build-glue`"
            )
        if config.kind == "token":
            raise DataError(f"{tasks_file}: task {config.name!r} is a token task, which experiments do not compare")
        sources = ((config.train, True), (config.eval, False), (config.test, False))
        parts = [
            load_examples(config.definition(), source, config.label, training=training, label_by=config.label_by)
            for source, training in sources
        ]
        tasks.append(RawTask(config, *parts))
    return DataSet(name, tuple(tasks), _digest(tasks))


def read_for(
    methods: Iterable[str], name: str, tasks_file: str, corpus: str | None = None, rows: int | None = None
) -> DataSet:
    """Read a data set with all that some methods learn from.

    Args:
        methods: Names of `METHODS`.
        name: What the results call the data set.
        tasks_file: As for `read_data_set`.
        corpus: Further texts for methods that learn from texts without labels; None for the directory `unlabelled`
            beside `tasks_file`, if it is there.
        rows: At most so many examples in each part, and texts; None for all.

    Raises:
        ConfigError: There is no such method or file, or the file is none of tasks.
        DataError: A task has no test part, its examples cannot be used, or the corpus does not exist.
    """
    data = read_data_set(name, tasks_file)
    if rows is not None:
        data = first_rows(data, rows)
    sections = [method(each).unlabelled for each in methods]
    most = max((int(section["max_texts"]) for section in sections if section), default=0)
    if not most:
        return data
    beside = storage.join(storage.absolute(os.path.dirname(tasks_file) or "."), "unlabelled")
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
        chain.from_iterable(_pairs(task.train) for task in data.tasks),
        read_texts(corpus, data.tasks[0].config.text) if corpus else (),
        chain.from_iterable(_pairs(part) for task in data.tasks for part in (task.eval, task.test)),
        max_texts=max_texts,
        seed=0,
    )
    return replace(data, unlabelled=texts)


def first_rows(data: DataSet, most: int) -> DataSet:
    """A data set with at most so many examples in each part: another one, with a digest of its own."""
    tasks = tuple(RawTask(task.config, *(_first(part, most) for part in task.parts)) for task in data.tasks)
    return DataSet(data.name, tasks, _digest(tasks))


def prepare(
    data: DataSet, text_tokenizer: TextTokenizer, examples: int | None, default_reader: Reader = "prompts"
) -> Prepared:
    """Tokenise a data set.

    Args:
        data: The data set.
        text_tokenizer: Of the backbone.
        examples: Most training examples of each task, drawn once for all seeds and methods; None for all.
        default_reader: What a task of the kind of model reads that does not say.
    """
    train, test = [], []
    for task in data.tasks:
        own, eval_, held_out = (tokenise_examples(part, text_tokenizer) for part in task.parts)
        own = own.draw(examples, zlib.crc32(task.config.name.encode()))
        definition = task.config.definition(default_reader)
        weights = class_weights(definition, task.config.class_weights, own.labels)
        train.append(
            TaskData(with_label_scale(definition, own), own, eval_, class_weights=weights, rate=task.config.rate)
        )
        test.append(held_out)
    texts = data.unlabelled
    unlabelled = None if texts is None else text_tokenizer.encode(texts.texts, texts.seconds_or_none)
    return Prepared(train, test, unlabelled)


def with_reader(prepared: Prepared, configs: Sequence[TaskConfig], default_reader: Reader) -> Prepared:
    """The same for another kind of model, without tokenising again."""
    train = [
        replace(item, task=replace(item.task, reads=config.reads or default_reader))
        for config, item in zip(configs, prepared.train, strict=True)
    ]
    return replace(prepared, train=train)


def _pairs(examples: RawExamples) -> Iterable[Pair]:
    return zip(examples.texts, examples.seconds or repeat(None), strict=False)


def _first(examples: RawExamples, most: int) -> RawExamples:
    seconds = None if examples.seconds is None else examples.seconds[:most]
    return replace(examples, texts=examples.texts[:most], seconds=seconds, labels=examples.labels[:most])


def _digest(tasks: Sequence[RawTask]) -> str:
    digest = hashlib.sha256()
    for task in tasks:
        config = task.config
        described: list[Any] = [config.name, config.kind, config.labels, config.text, config.metric]
        described += [config.class_weights] if config.class_weights else []
        described += [{"rate": config.rate}] if config.rate else []
        digest.update(json.dumps(described).encode())
        for part in task.parts:
            digest.update(json.dumps([part.texts, part.seconds]).encode())
            digest.update(part.labels.tobytes())
    return digest.hexdigest()[:16]
