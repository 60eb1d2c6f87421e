"""The data of an experiment: tasks with three parts each, read and tokenised."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

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
from mtop_batch.data.same_text import same_text_key
from mtop_batch.data.sets.families import SOURCES_FILE
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.data.unlabelled import UnlabelledTexts, choose_texts, read_texts
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.experiments.many_methods import JUDGED
from mtop_batch.experiments.method import Method, Share
from mtop_batch.experiments.methods import method
from mtop_batch.tasks import Reader
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.settings import TaskData

_QUICK_SCALE = 0.1
LARGE = "large"
"""The very large task of a set of many (`mtop build-many --whole large=...`), for methods that ask for it only."""


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
class RawSource:
    """A source task and its training examples as texts."""

    config: TaskConfig
    train: RawExamples

    @property
    def parts(self) -> tuple[RawExamples, ...]:
        """The training examples."""
        return (self.train,)


@dataclass(frozen=True)
class DataSet:
    """Tasks with their examples.

    Args:
        name: One of `DATA_FILES`.
        tasks: In the order of the file.
        digest: Of all that the tasks and their examples are; where the files lie is no part of it.
        unlabelled: Texts to learn from without labels; None if they are not wanted.
        sources: Tasks that an encoder learns from before; none where it learns from the tasks themselves.
        scale: What numbers of tasks that methods say are multiplied by, in a quick trial.
    """

    name: str
    tasks: tuple[RawTask, ...]
    digest: str
    unlabelled: UnlabelledTexts | None = None
    sources: tuple[RawSource, ...] = ()
    scale: float = 1.0
    _shares: dict[Share, DataSet] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sources_digest(self) -> str:
        """Of the source tasks and their examples; empty where there are none."""
        return _digest(self.sources) if self.sources else ""

    @property
    def configs(self) -> list[TaskConfig]:
        """The tasks as in a configuration."""
        return [task.config for task in self.tasks]

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return [task.config.name for task in self.tasks]

    def num_examples(self, most: int | None, fraction: float | None = None) -> int:
        """Training examples of all tasks: at most so many of each, or a share of them."""
        return sum(_most(task, most, fraction) for task in self.tasks)

    def share(self, share: Share | None) -> DataSet:
        """Some of the tasks, as a data set of its own; None for all.

        Of the tasks that most methods are judged on a small set gives those that it has; in a quick trial any share may
        be smaller.

        Raises:
            ConfigError: There are too few tasks, or there is no large one.
        """
        if share is None:
            return self
        if share not in self._shares:
            self._shares[share] = self._draw(share)
        return self._shares[share]

    def _draw(self, share: Share) -> DataSet:
        of_sites = [task for task in self.tasks if task.config.name != LARGE]
        large = [task for task in self.tasks if task.config.name == LARGE] if share.large else []
        wanted = max(1, round(share.first * self.scale)) if share.first else 0
        if wanted > len(of_sites) and self.scale == 1 and share.first != JUDGED.first:
            raise ConfigError(
                f"a method wants {share.first:,} tasks, and the data set {self.name!r} has {len(of_sites):,}; make it "
                f"again with `mtop build-many --sites {share.first // 2}`"
            )
        if share.large and not large:
            raise ConfigError(
                f"a method wants a very large task {LARGE!r}, which the data set {self.name!r} does not have; make it "
                f"again with `mtop build-many --whole {LARGE}=...`"
            )
        tasks = (*of_sites[:wanted], *large)
        return self if len(tasks) == len(self.tasks) else replace(self, tasks=tasks, digest=_digest(tasks), _shares={})


@dataclass(frozen=True)
class Source:
    """A source task and its training examples as a model takes them."""

    config: TaskConfig
    examples: LabelledTokens


@dataclass(frozen=True)
class Prepared:
    """A data set as a model takes it.

    Args:
        train: Training and evaluation examples of every task.
        test: Task -> its test examples, of those that are judged.
        unlabelled: Texts to learn from without labels.
        sources: Source tasks and their training examples; none where these are the tasks themselves.
    """

    train: list[TaskData]
    test: Mapping[str, LabelledTokens]
    unlabelled: Tokens | None = None
    sources: tuple[Source, ...] = ()

    def of(self, learned: Collection[str], judged: Collection[str]) -> Prepared:
        """The tasks with these names, and the test examples of some of them."""
        wanted = set(learned)
        train = [item for item in self.train if item.task.name in wanted]
        return replace(self, train=train, test={name: self.test[name] for name in judged})


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


def tasks_of(chosen: Method, data: DataSet) -> tuple[DataSet, DataSet]:
    """The tasks that a method learns, and those that it is judged on.

    Raises:
        ConfigError: The data set does not have them, or not those of the method that it begins with.
    """
    if chosen.begins_with is not None:
        tasks_of(method(chosen.begins_with), data)
    judged = data.share(chosen.judged)
    return (data.share(chosen.learns) if chosen.learns else judged), judged


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
    for config in load_tasks(tasks_file):
        train = load_examples(config.definition(), config.train, config.label, label_by=config.label_by)
        kept = [row for row, pair in enumerate(train.pairs()) if same_text_key(pair) not in left_out]
        if not kept:
            raise DataError(
                f"{tasks_file}: all training texts of {config.name!r} are in the evaluation or test part of a task; "
                "give other source tasks"
            )
        sources.append(RawSource(config, train.take(np.array(kept))))
    return replace(data, sources=tuple(sources))


def first_rows(data: DataSet, most: int) -> DataSet:
    """A data set with at most so many examples in each part: another one, with a digest of its own.

    It is for quick trials, so methods that say a number of tasks get a tenth of them.
    """
    tasks = tuple(RawTask(task.config, *(_first(part, most) for part in task.parts)) for task in data.tasks)
    sources = tuple(RawSource(source.config, _first(source.train, most)) for source in data.sources)
    return DataSet(data.name, tasks, _digest(tasks), sources=sources, scale=_QUICK_SCALE)


def prepare(
    data: DataSet,
    text_tokenizer: TextTokenizer,
    examples: int | None,
    fraction: float | None = None,
    default_reader: Reader = "prompts",
    tasks: Collection[str] | None = None,
) -> Prepared:
    """Tokenise a data set.

    Args:
        data: The data set.
        text_tokenizer: Of the backbone.
        examples: Most training examples of each task, drawn once for all seeds and methods; None for all.
        fraction: The share of each task's, drawn in the same way; None for what `examples` says.
        default_reader: What a task of the kind of model reads that does not say.
        tasks: The names of those that are wanted; None for all.
    """
    train, test = [], {}
    for task in data.tasks:
        if tasks is not None and task.config.name not in tasks:
            continue
        own, eval_, held_out = (tokenise_examples(part, text_tokenizer) for part in task.parts)
        own = own.draw(_most(task, examples, fraction), zlib.crc32(task.config.name.encode()))
        definition = task.config.definition(default_reader)
        weights = class_weights(definition, task.config.class_weights, own.labels)
        train.append(
            TaskData(with_label_scale(definition, own), own, eval_, class_weights=weights, rate=task.config.rate)
        )
        test[task.config.name] = held_out
    texts = data.unlabelled
    unlabelled = None if texts is None else text_tokenizer.encode(texts.texts, texts.seconds_or_none)
    sources = (Source(source.config, tokenise_examples(source.train, text_tokenizer)) for source in data.sources)
    return Prepared(train, test, unlabelled, tuple(sources))


def with_reader(prepared: Prepared, configs: Sequence[TaskConfig], default_reader: Reader) -> Prepared:
    """The same for another kind of model, without tokenising again."""
    train = [
        replace(item, task=replace(item.task, reads=config.definition(default_reader).reads))
        for config, item in zip(configs, prepared.train, strict=True)
    ]
    return replace(prepared, train=train)


def _most(task: RawTask, examples: int | None, fraction: float | None) -> int:
    """How many training examples of a task are taken."""
    known = len(task.train)
    if fraction is not None:
        return max(1, round(fraction * known))
    return known if examples is None else min(examples, known)


def _first(examples: RawExamples, most: int) -> RawExamples:
    return examples.take(np.arange(min(most, len(examples))))


def _digest(tasks: Sequence[RawTask | RawSource]) -> str:
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
            if part.entities is not None:
                digest.update(part.entities.values.tobytes() + part.entities.offsets.tobytes())
    return digest.hexdigest()[:16]
