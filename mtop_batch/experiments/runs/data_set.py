"""The data of an experiment: tasks with three parts each, as texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mtop_batch.config.task import TaskConfig
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.unlabelled import UnlabelledTexts
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.many import JUDGED
from mtop_batch.experiments.methods.method import Method, Share
from mtop_batch.experiments.methods.tables import method
from mtop_batch.lines import did_you_mean, listed

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

    def num_taken(self, examples: int | None, fraction: float | None) -> int:
        """How many training examples are learned from: at most so many, or a share of them."""
        known = len(self.train)
        if fraction is not None:
            return max(1, round(fraction * known))
        return known if examples is None else min(examples, known)


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
        primaries: The tasks that methods are judged on, the others being there to help them; none for all.
    """

    name: str
    tasks: tuple[RawTask, ...]
    digest: str
    unlabelled: UnlabelledTexts | None = None
    sources: tuple[RawSource, ...] = ()
    scale: float = 1.0
    primaries: tuple[str, ...] = ()
    _shares: dict[Share, DataSet] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sources_digest(self) -> str:
        """Of the source tasks and their examples; empty where there are none."""
        return digest_of(self.sources) if self.sources else ""

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
        return sum(task.num_taken(most, fraction) for task in self.tasks)

    def with_primaries(self, names: Sequence[str]) -> DataSet:
        """The same where methods are judged on some tasks only.

        Raises:
            ConfigError: There is no such task.
        """
        for name in names:
            if name not in self.names:
                close = did_you_mean(name, self.names)
                raise ConfigError(
                    f"--primaries {name!r} is not a task of the data set {self.name!r}; {close}tasks: "
                    f"{listed(self.names)}"
                )
        return replace(self, primaries=tuple(names), _shares={})

    def judged(self, share: Share | None) -> DataSet:
        """Those of some of the tasks that methods are judged on, as a data set of its own.

        Raises:
            ConfigError: As `share`; or none of these is a primary task.
        """
        tasks = self.share(share)
        if not self.primaries:
            return tasks
        primary = tuple(task for task in tasks.tasks if task.config.name in self.primaries)
        if not primary:
            raise ConfigError(f"no primary task is among those of a method; its tasks: {listed(tasks.names)}")
        return tasks._of(primary)

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
        return self._of((*of_sites[:wanted], *large))

    def _of(self, tasks: tuple[RawTask, ...]) -> DataSet:
        if len(tasks) == len(self.tasks):
            return self
        return replace(self, tasks=tasks, digest=digest_of(tasks), _shares={})


def tasks_of(chosen: Method, data: DataSet) -> tuple[DataSet, DataSet]:
    """The tasks that a method learns, and those that it is judged on.

    Raises:
        ConfigError: The data set does not have them, or not those of the method that it begins with.
    """
    if chosen.begins_with is not None:
        tasks_of(method(chosen.begins_with), data)
    judged = data.judged(chosen.judged)
    if chosen.learns is not None:
        return data.share(chosen.learns), judged
    return (judged if chosen.alone else data.share(chosen.judged)), judged


def first_rows(data: DataSet, most: int) -> DataSet:
    """A data set with at most so many examples in each part: another one, with a digest of its own.

    It is for quick trials, so methods that say a number of tasks get a tenth of them.
    """
    tasks = tuple(RawTask(task.config, *(_first(part, most) for part in task.parts)) for task in data.tasks)
    sources = tuple(RawSource(source.config, _first(source.train, most)) for source in data.sources)
    return DataSet(data.name, tasks, digest_of(tasks), sources=sources, scale=_QUICK_SCALE)


def _first(examples: RawExamples, most: int) -> RawExamples:
    return examples.take(np.arange(min(most, len(examples))))


def digest_of(tasks: Sequence[RawTask | RawSource]) -> str:
    """Of all that the tasks and their examples are."""
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
