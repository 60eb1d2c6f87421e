"""One run of an experiment, in one process, on a GPU or a CPU, with or without Ray around it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np

from mtop_batch.config.sections import Config, TaskConfig
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.data import Prepared, with_reader
from mtop_batch.experiments.records import Compact, RunRecord, machine, pack, versions
from mtop_batch.experiments.specs import RunSpec
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation import task_metrics, task_predictions
from mtop_batch.training.one_process import Encoder, begin, train_whole
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.soft_labels import SoftLabels, label_softly, mean_labels
from mtop_batch.training.start import check_encoder, check_readers, first_model
from mtop_batch.training.unfinished import Unfinished


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
    model = begin(config, data.train, encoder, worker, unfinished, lambda: clock.lap("warm_start"))
    trained = train_whole(model, config, data.train, worker, unfinished, soft=soft)
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
            teacher = begin(own, examples.train, encoder, worker, Unfinished(None))
            train_whole(teacher, own, examples.train, worker, unfinished, training=f"teacher-{number}")
            kept = label_softly(teacher, data.unlabelled, [item.task for item in examples.train], worker=worker)
            unfinished.keep_soft_labels(number, kept)
        said.append(kept)
    return SoftLabels(data.unlabelled, mean_labels(said), section.batch_size, section.weight)


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
