"""The data of an experiment as a model takes it."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import tokenise_examples, with_label_scale
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.experiments.runs.data_set import DataSet
from mtop_batch.tasks import Reader
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.settings import TaskData


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
        own = own.draw(task.num_taken(examples, fraction), zlib.crc32(task.config.name.encode()))
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
