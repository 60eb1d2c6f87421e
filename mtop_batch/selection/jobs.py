"""The trainings that a selection asks for, each with a digest of all that decides what it comes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from mtop_batch.config.model import MODEL_SECTIONS, MTOPModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.lines import listed
from mtop_batch.model.bundle.fingerprints import tensors_digest
from mtop_batch.training.settings import TaskData

FORMAT = 2
JobKind = Literal["measure", "train", "explore"]
# They change how fast a training is or who is told of it.
_UNDECISIVE = {"num_workers", "max_failures", "tensorboard", "mlflow"}
_WHERE = {"train", "eval", "test", "label", "label_by", "scores"}


@dataclass(frozen=True)
class Job:
    """A training.

    Args:
        kind: "measure": a model of one task alone, whose heads are measured then; "train": all tasks of the
            configuration together; "explore": a bandit draws their steps.
        config: Its tasks are those that train.
        task: The one whose score counts.
        digest: Of all that decides the outcome: settings, examples, backbone.
        warm_starts: Task -> digest of what decides what it learns alone before, which other jobs may begin with too.
    """

    kind: JobKind
    config: Config
    task: str
    digest: str
    warm_starts: dict[str, str] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks that train."""
        return [task.name for task in self.config.task]

    @property
    def title(self) -> str:
        """As people call it."""
        if self.kind == "measure":
            return f"{self.task} alone"
        others = [name for name in self.tasks if name != self.task]
        at = "" if self.config.task[0].rate is None else f", {':'.join(f'{task.rate:g}' for task in self.config.task)}"
        how = "explore" if self.kind == "explore" else "train"
        return f"{how} {self.task} with {listed(others)}{at}"


class Jobs:
    """Makes the jobs for the tasks of a configuration.

    Args:
        config: Says how to train.
        data: Task -> its examples.
        backbone: The encoder that every training begins with.
    """

    def __init__(self, config: Config, data: Mapping[str, TaskData], backbone: PreTrainedModel) -> None:
        self.config = without_like_groups(config)
        self.data = data
        self._backbone = tensors_digest(backbone.state_dict().items())
        self._examples = {name: _examples_digest(item) for name, item in data.items()}

    @property
    def names(self) -> list[str]:
        """The tasks, in the order of the configuration."""
        return [task.name for task in self.config.task]

    def measure(self, name: str) -> Job:
        """Train a task alone, and measure what each head does for each of its examples."""
        config = alone(self.config, name)
        return self._job("measure", config, name)

    def train(self, primary: str, auxiliary: Sequence[str], ratio: Sequence[int] | None = None) -> Job:
        """Train a task with others.

        Args:
            primary: The task.
            auxiliary: The others.
            ratio: How often a step takes the primary task, and each of the others; None to go by their sizes.
        """
        rates = {} if ratio is None else dict(zip((primary, *auxiliary), map(float, ratio), strict=True))
        return self._job("train", together(self.config, [primary, *auxiliary], rates), primary)

    def explore(self, primary: str) -> Job:
        """Train a task with all others, as a bandit finds it useful."""
        return self._job("explore", together(self.config, self.names, {}), primary)

    def _job(self, kind: JobKind, config: Config, task: str) -> Job:
        train = config.train.model_dump(mode="json", exclude=_UNDECISIVE)
        if kind == "measure":
            del train["warm_start"]
        described = {
            "format": FORMAT,
            "model": config.model.model_dump(mode="json"),
            "train": train,
            "max_tokens": config.backbone.max_tokens,
            "backbone": self._backbone,
            **({"families": [family.model_dump() for family in config.family]} if config.family else {}),
        }
        tasks = [_described(item) for item in config.task]
        examples = [self._examples[item.name] for item in config.task]
        warm_starts = {}
        if isinstance(config.model, MTOPModelConfig) and config.model.needs_warm_start:
            warm_starts = {
                item.name: _digest({**described, "task": _described(item), "examples": self._examples[item.name]})
                for item in (each.model_copy(update={"rate": None}) for each in config.task)
            }
        own = {"kind": kind, "task": task, "tasks": tasks, "examples": examples}
        return Job(kind, config, task, _digest({**described, **own}), warm_starts)


def alone(config: Config, name: str) -> Config:
    """How a task trains alone before its heads are measured: an encoder, a pooler and a head of its own; of a token
    task an encoder and a head, which MTOP has for these.
    """
    free = {"reads": None, "prompt_group": None, "family": None, "rate": None}
    tasks = [task.model_copy(update=free) for task in config.task if task.name == name]
    reads_words = any(task.kind == "token" for task in tasks)
    section = MODEL_SECTIONS["mtop" if reads_words else "mt-dnn"].model_validate(
        {"kind": "mtop", "prompt_init": "random", "pooler_init": "random"} if reads_words else {"kind": "mt-dnn"}
    )
    return config.model_copy(update={"model": section, "unlabelled": None}).with_tasks(tasks)


def together(config: Config, names: Sequence[str], rates: Mapping[str, float]) -> Config:
    """The configuration with some of its tasks, in its own order, drawn at these rates or by their sizes."""
    tasks = [task.model_copy(update={"rate": rates.get(task.name)}) for task in config.task if task.name in names]
    return config.model_copy(update={"unlabelled": None}).with_tasks(tasks)


def without_like_groups(config: Config) -> Config:
    """The configuration with prompts of each task's own, where groups are to be of tasks that are alike."""
    section = config.model
    is_open = isinstance(section, MTOPModelConfig) and section.like_groups
    return config.with_prompt_groups({}) if is_open else config


def _described(task: TaskConfig) -> dict[str, Any]:
    without = set() if task.family else {"family"}
    return task.model_dump(mode="json", exclude=_WHERE | without)


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def _examples_digest(data: TaskData) -> str:
    digest = hashlib.sha256()
    for examples in (data.train, data.evaluation_examples()):
        tokens = examples.tokens
        tags = () if examples.tags is None else (examples.tags,)
        for array in (tokens.values, tokens.offsets, tokens.first_lengths, examples.labels, *tags):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:20]
