"""Teachers: models whose word for unlabelled texts another one learns from (`[unlabelled]` of a configuration).

A teacher is trained as any model is, says what it has to say of all texts, and is no longer needed. What it said lies
in the run's directory, so an interrupted run asks no teacher twice, and resumes the training of one where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import ray
from ray.exceptions import RayTaskError
from transformers import PreTrainedTokenizerBase

from mtop_batch.config.sections import Config
from mtop_batch.config.train import UnlabelledConfig
from mtop_batch.data.examples import load_examples, load_train_and_eval
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.data.unlabelled import UnlabelledTexts, choose_texts, read_texts
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.session import Resources
from mtop_batch.engine.training.phases import Phases
from mtop_batch.engine.training.run_directory import RunDirectory, run_digest, tokens_digest
from mtop_batch.engine.training.single_tasks import POLL_S, max_threads
from mtop_batch.engine.training.workers import use_threads
from mtop_batch.errors import ConfigError, MtopError
from mtop_batch.model.bundle.bundle import Bundle, load_bundle
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData, single_worker
from mtop_batch.training.soft_labels import FloatArray, SoftLabels, label_softly, mean_labels
from mtop_batch.training.start import first_model

_LABEL_PHASE = "ask the teacher"


@dataclass(frozen=True)
class Unlabelled:
    """The texts to learn from.

    Args:
        texts: As they are, for teachers of another vocabulary.
        tokens: As the model to train takes them.
    """

    texts: UnlabelledTexts
    tokens: Tokens

    def digest(self) -> str:
        """What a run that resumes must have in common with the one before."""
        return tokens_digest(self.tokens)


def check_teachers(config: Config) -> None:
    """Refuse teachers that do not know the tasks, before anything is read.

    Raises:
        BundleError: A teacher is no bundle.
        ConfigError: A teacher lacks a task, or its task has other labels; or workers would have no text of a step.
    """
    section = config.unlabelled
    if section is None:
        return
    if entities := [task.name for task in config.tasks() if task.is_token]:
        raise ConfigError(
            f"unlabelled texts teach all tasks at once, and teachers say nothing of words: task {entities[0]!r} is a "
            "token task; remove [unlabelled], or the task"
        )
    if section.batch_size < config.train.num_workers:
        raise ConfigError(
            f"unlabelled.batch_size = {section.batch_size} is less than train.num_workers = "
            f"{config.train.num_workers}, and every worker needs a text of every step; use at least that many"
        )
    for uri in _bundles(section):
        known = {task.name: task for task in load_bundle(uri).model.tasks}
        for task in config.tasks():
            if task.name not in known:
                raise ConfigError(
                    f"unlabelled.teachers: {uri} has no task {task.name!r}; tasks: {', '.join(known)}; leave this "
                    "teacher out, or add the task to it with `mtop add-tasks`"
                )
            if (task.kind, task.labels) != (known[task.name].kind, known[task.name].labels):
                raise ConfigError(
                    f"unlabelled.teachers: task {task.name!r} of {uri} is {_described(known[task.name])}, and here "
                    f"{_described(task)}; leave this teacher out"
                )


def read_unlabelled(config: Config, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> Unlabelled:
    """The texts that a configuration names, without those that tasks are evaluated on; of long ones the first window.

    Raises:
        DataError: The corpus does not exist, or lacks a column.
        LabelTableError: The storage cannot be reached or refuses.
    """
    section = config.unlabelled or UnlabelledConfig()  # type: ignore[call-arg]
    progress.phase("read and tokenise the unlabelled texts", unit="texts")
    columns = section.text or config.task[0].text
    examples = [
        load_train_and_eval(task, own.train, own.evaluation, own.label, own.label_by)
        for own, task in zip(config.task, config.tasks(), strict=True)
    ]
    texts = choose_texts(
        chain.from_iterable(training.pairs() for training, _ in examples),
        read_texts(section.corpus, columns) if section.corpus else (),
        chain.from_iterable(raw.pairs() for raw in (*(evaluation for _, evaluation in examples), *_tests(config))),
        max_texts=section.max_texts,
        seed=config.train.seed,
    )
    progress.advance(len(texts))
    progress.note(
        f"{len(texts):,} texts to learn from without labels, of {texts.num_read:,} read; {texts.num_in_evaluation:,} "
        "are left out because a task is evaluated or tested on them"
    )
    text_tokenizer = TextTokenizer(tokenizer, config.backbone.max_tokens)
    return Unlabelled(texts, text_tokenizer.encode(texts.texts, texts.seconds_or_none))


def learn_soft_labels(
    config: Config,
    unlabelled: Unlabelled,
    data: Sequence[TaskData],
    tokenizer: PreTrainedTokenizerBase,
    resources: Resources,
    run: RunDirectory,
    progress: Progress,
) -> SoftLabels:
    """What teachers say of the texts; those that the configuration wants trained are trained first.

    Args:
        config: With a section `unlabelled`.
        unlabelled: The texts.
        data: Of every task, in the order of the configuration.
        tokenizer: Of the backbone.
        resources: Of the connected Ray.
        run: Where what was said is kept.
        progress: Where to show how it gets on.

    Raises:
        MtopError: A teacher cannot be trained or read.
    """
    section = config.unlabelled or UnlabelledConfig()  # type: ignore[call-arg]
    bundles = _bundles(section)
    num_teachers = len(bundles) or int(section.teachers)  # type: ignore[arg-type]
    said = []
    for number in range(num_teachers):
        kept = run.soft_labels(number)
        if kept is None:
            progress.note(f"teacher {number + 1} of {num_teachers}")
            if bundles:
                kept = _ask_bundle(load_bundle(bundles[number]), config, data, unlabelled, resources, progress)
            else:
                teacher = _Teacher(config.teacher(number), data, tokenizer, resources, run.of_teacher(number), progress)
                kept = teacher.say(unlabelled.tokens)
            run.keep_soft_labels(number, kept)
        said.append(kept)
    return SoftLabels(unlabelled.tokens, mean_labels(said), section.batch_size, section.weight)


@dataclass(frozen=True)
class _Teacher:
    """One that is trained for the purpose; the arguments are those of `learn_soft_labels`, `config` is its own."""

    config: Config
    data: Sequence[TaskData]
    tokenizer: PreTrainedTokenizerBase
    resources: Resources
    output: str
    progress: Progress

    def say(self, tokens: Tokens) -> FloatArray:
        """Train it, and ask it."""
        config = self.config
        tasks = [replace(item.task, reads=task.reads) for item, task in zip(self.data, config.tasks(), strict=True)]
        data = [replace(item, task=task) for item, task in zip(self.data, tasks, strict=True)]
        run = RunDirectory(self.output, run_digest(config, data))
        if found := run.begin(config):
            self.progress.note(found)
        monitor = TrainingMonitor(run, self.progress)
        phases = Phases(config, data, self.resources, run, monitor, EventQueue())
        backbone = load_backbone(config.backbone.name)
        model = first_model(config, backbone, self.tokenizer, data, phases.single_tasks)
        phases.all_tasks(model)
        said = _ask(model, tokens, tasks, config.train.precision, self.resources, self.progress)
        run.discard()
        return said


def _ask_bundle(
    bundle: Bundle,
    config: Config,
    data: Sequence[TaskData],
    unlabelled: Unlabelled,
    resources: Resources,
    progress: Progress,
) -> FloatArray:
    """What a bundle says, which may have another vocabulary, and have learned regressions from other labels."""
    texts = unlabelled.texts
    tokens = TextTokenizer(bundle.tokenizer, bundle.model.config.max_tokens).encode(texts.texts, texts.seconds_or_none)
    tasks = [bundle.model.task(task.name) for task in config.tasks()]
    said = _ask(bundle.model, tokens, tasks, config.train.precision, resources, progress).copy()
    for number, (own, item) in enumerate(zip(tasks, data, strict=True)):
        if own.kind == "regression":  # in standard deviations from the mean, of each one's own labels
            said[:, number, 0] = (said[:, number, 0] * own.std + own.mean - item.task.mean) / item.task.std
    return said


def _ask(
    model: MultiTaskModel,
    tokens: Tokens,
    tasks: Sequence[Task],
    precision: PrecisionChoice,
    resources: Resources,
    progress: Progress,
) -> FloatArray:
    """What a model says of texts, on one of Ray's workers."""
    events = EventQueue()
    progress.phase(_LABEL_PHASE, len(tokens), "texts")
    options: dict[str, Any] = {"num_cpus": 1, "runtime_env": {"env_vars": dict(KEEP_FREED_MEMORY)}}
    if resources.num_gpus:
        options["num_gpus"] = 1
    ref = ray.remote(_say).options(**options).remote(model, tokens, tasks, precision, max_threads(), events)
    try:
        while not ray.wait([ref], timeout=POLL_S)[0]:
            for event in events.take():
                progress.update(event["done"])
        said: FloatArray = ray.get(ref)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, MtopError) else error from error
    progress.update(len(tokens))
    return said


def _say(
    model: MultiTaskModel,
    tokens: Tokens,
    tasks: Sequence[Task],
    precision: PrecisionChoice,
    max_num_threads: int | None,
    events: EventQueue,
) -> FloatArray:
    """A Ray task: what a model says of texts, with all cores or a GPU of its node."""
    use_threads(1, max_num_threads)
    worker = single_worker(precision)
    model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it without its types
    return label_softly(
        model, tokens, tasks, worker=worker, on_progress=lambda done: events.emit({"event": "texts", "done": done})
    )


def _tests(config: Config) -> Iterator[RawExamples]:
    """The test examples of the tasks that have some."""
    for own, task in zip(config.task, config.tasks(), strict=True):
        if own.test is not None:
            yield load_examples(task, own.test, own.label, training=False, label_by=own.label_by)


def _bundles(section: UnlabelledConfig) -> Sequence[str]:
    return () if isinstance(section.teachers, int) else section.teachers


def _described(task: Task) -> str:
    return f"{task.kind} with labels {', '.join(task.labels)}" if task.labels else task.kind
