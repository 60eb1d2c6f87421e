"""One run of an experiment, in one process, on a GPU or a CPU, with or without Ray around it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.config.sections import Config, TaskConfig
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.data import Prepared, with_reader
from mtop_batch.experiments.records import Compact, RunRecord, machine, pack, versions
from mtop_batch.experiments.specs import RunSpec
from mtop_batch.experiments.unfinished import Unfinished
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import Evaluation, TaskMetrics
from mtop_batch.training.evaluation import task_metrics, task_predictions
from mtop_batch.training.loop import fit
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.single_task import train_single_task
from mtop_batch.training.soft_labels import SoftLabels, label_softly, mean_labels
from mtop_batch.training.start import check_encoder, check_readers, first_model, train_settings, warm_start_settings


@dataclass(frozen=True)
class Encoder:
    """The pretrained encoder of a run, loaded; it is copied, not changed."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Trained:
    """What a training came to: the metrics of each task at the chosen weights, and the way there."""

    dev: dict[str, TaskMetrics]
    history: list[dict[str, Any]]
    best_step: int
    num_steps: int


def run_spec(
    spec: RunSpec,
    prepared: Prepared,
    tasks: Sequence[TaskConfig],
    encoder: Encoder,
    *,
    worker: Worker | None = None,
    unfinished: Unfinished | None = None,
) -> RunRecord:
    """Train and test as a spec says.

    The checkpoint is chosen on evaluation examples; test examples are looked at once, in the end.

    Args:
        spec: What to run.
        prepared: The data set, with the training examples that the spec wants.
        tasks: Its tasks as in a configuration, in the same order.
        encoder: That of the spec.
        worker: This process, its device and precision; None for the CPU. Its event sink gets the events of training.
        unfinished: Where an interrupted run left what it had done; None to begin anew and keep nothing.

    Raises:
        MtopError: The settings cannot work, or training diverged.
    """
    worker, unfinished = worker or Worker(), unfinished or Unfinished(None)
    config = spec.config(tasks)
    check_readers(config)
    check_encoder(config, encoder.backbone)
    data = with_reader(prepared, tasks, config.model.default_reader)
    clock = _Clock()
    soft = _soft_labels(config, data, encoder, worker, unfinished)
    clock.lap("teachers")
    model = _begin(config, data, encoder, worker, unfinished, clock)
    trained = _train(model, config, data, worker, unfinished, soft)
    clock.lap("train")
    test, predictions = _test(model, data, worker)
    clock.lap("test")
    return RunRecord(
        spec=spec,
        dev=trained.dev,
        test=test,
        predictions=predictions,
        history=trained.history,
        best_step=trained.best_step,
        num_steps=trained.num_steps,
        passes=model.num_passes(model.task_names),
        parameters=count_parameters(model),
        seconds=clock.seconds,
        machine={**machine(worker.device), "precision": worker.precision},
        versions=versions(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def untrained(config: Config, encoder: Encoder, data: Sequence[TaskData]) -> MultiTaskModel:
    """A model as the configuration says, all but the backbone random: for what does not depend on weights."""
    section = config.model
    changes: dict[str, Any] = {
        key: "random" for key in ("prompt_init", "pooler_init") if key in type(section).model_fields
    }
    cold = config.model_copy(update={"model": section.model_copy(update=changes)})
    return first_model(cold, copy.deepcopy(encoder.backbone), encoder.tokenizer, data, lambda *_: {})


def count_parameters(model: MultiTaskModel) -> dict[str, float]:
    """Parameters of the whole model, of one encoder, and the mean of what belongs to a task alone."""
    own = [sum(parameter.numel() for parameter in model.task_parameters(name)) for name in model.task_names]
    return {
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "backbone": sum(parameter.numel() for parameter in model.backbone.parameters()),
        "per_task": mean(own),
    }


class _Clock:
    """Seconds of the parts of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


def _soft_labels(
    config: Config, data: Prepared, encoder: Encoder, worker: Worker, unfinished: Unfinished
) -> SoftLabels | None:
    """What teachers, trained here, say of the texts without labels."""
    section = config.unlabelled
    if section is None:
        return None
    if data.unlabelled is None:
        raise ConfigError("this method learns from texts without labels, and the data set was read without any")
    said = []
    for number in range(int(section.teachers)):  # type: ignore[arg-type]  # experiments train their own
        kept = unfinished.soft_labels(number)
        if kept is None:
            own = config.teacher(number)
            examples = with_reader(data, own.task, own.model.default_reader)
            teacher = _begin(own, examples, encoder, worker, Unfinished(None), _Clock())
            _train(teacher, own, examples, worker, unfinished, training=f"teacher-{number}")
            kept = label_softly(teacher, data.unlabelled, [item.task for item in examples.train], worker=worker)
            unfinished.keep_soft_labels(number, kept)
        said.append(kept)
    return SoftLabels(data.unlabelled, mean_labels(said), section.batch_size, section.weight)


def _begin(
    config: Config, data: Prepared, encoder: Encoder, worker: Worker, unfinished: Unfinished, clock: _Clock
) -> MultiTaskModel:
    """The model, with what each task learned alone where the configuration says so."""

    def learn_alone(start: MTOPModel, new_task: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        learned = {}
        for item in data.train:
            name = item.task.name
            tensors = unfinished.task(name)
            if tensors is None:
                alone = copy.deepcopy(start)
                alone.add_tasks([item.task], **new_task)
                tensors = train_single_task(alone, item, warm_start_settings(config.train), worker=worker).tensors
                unfinished.keep_task(name, tensors)
            learned[name] = tensors
        clock.lap("warm_start")
        return learned

    return first_model(config, copy.deepcopy(encoder.backbone), encoder.tokenizer, data.train, learn_alone)


def _train(
    model: MultiTaskModel,
    config: Config,
    data: Prepared,
    worker: Worker,
    unfinished: Unfinished,
    soft: SoftLabels | None = None,
    training: str = "all",
) -> _Trained:
    """Train all tasks together, or each one's own model; the model ends with the chosen weights."""
    settings = train_settings(config.train)

    def trained(part: MultiTaskModel, items: Sequence[TaskData], training: str) -> _Trained:
        with unfinished.checkpoints(training) as (checkpoint, save):
            result = fit(part, items, settings, soft=soft, worker=worker, checkpoint=checkpoint, save=save)
        return _Trained(result.best_metrics, _history(result.history, items), result.best_step, result.num_steps)

    if not isinstance(model, SingleTaskModel):
        return trained(model, data.train, training)
    parts = [trained(model.model_of(item.task.name), [item], f"own-{item.task.name}") for item in data.train]
    return _Trained(
        {name: metrics for part in parts for name, metrics in part.dev.items()},
        [entry for part in parts for entry in part.history],
        sum(part.best_step for part in parts),
        sum(part.num_steps for part in parts),
    )


def _history(history: Sequence[Evaluation], data: Sequence[TaskData]) -> list[dict[str, Any]]:
    own = {item.task.name: str(item.task.metric) for item in data}
    return [
        {
            "step": entry.step,
            "epoch": round(entry.epoch, 3),
            "mean": round(entry.mean, 5),
            "tasks": {name: round(entry.metrics[name][metric], 5) for name, metric in own.items()},
        }
        for entry in history
    ]


def _test(model: MultiTaskModel, data: Prepared, worker: Worker) -> tuple[dict[str, TaskMetrics], dict[str, Compact]]:
    """The metrics on the test examples, and what the model says of each."""
    metrics, packed = {}, {}
    for item, examples in zip(data.train, data.test, strict=True):
        task: Task = item.task
        predictions = task_predictions(model, examples, task, worker=worker)
        metrics[task.name] = task_metrics(task, predictions, examples)
        values = predictions.values
        packed[task.name] = pack(values if task.kind == "regression" else values.astype(np.int64))
    return metrics, packed
