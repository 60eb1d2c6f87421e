"""One run of an experiment, in one process, on a GPU or a CPU, with or without Ray around it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np

from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import LabelledTokens
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.auxiliary import Chosen, own_models
from mtop_batch.experiments.clock import Clock
from mtop_batch.experiments.data import Prepared, with_reader
from mtop_batch.experiments.prefinetuned import beginning
from mtop_batch.experiments.records import Compact, RunRecord, machine, pack, pack_entities, versions
from mtop_batch.experiments.specs import RunSpec
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation.evaluate import task_metrics, task_predictions, with_eval_budget
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
    kept: str | None = None,
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
        kept: Where that lies which several runs use: trainings that choosing auxiliary tasks takes, and pre-finetuned
            encoders; None to keep it no longer than the run.

    Raises:
        MtopError: The settings cannot work, or training diverged.
    """
    worker, unfinished = worker or Worker(), unfinished or Unfinished(None)
    config = spec.config(tasks)
    check_readers(config)
    check_encoder(config, encoder.backbone)
    data = with_reader(prepared, config.task, config.model.default_reader)
    data = replace(data, train=with_eval_budget(data.train, config.train.eval_examples, config.train.seed))
    clock = Clock(unfinished)
    if spec.auxiliary is not None:
        return _with_own_models(spec, config, data, encoder, worker, unfinished, kept)
    clock.start("teachers")
    soft = _soft_labels(config, data, encoder, worker, unfinished)
    clock.start(None)
    with beginning(spec, config, data, encoder, worker, unfinished, kept) as first:
        clock.start("warm_start")
        model = begin(
            first.config, data.train, first.encoder, worker, unfinished, on_learned=lambda: clock.start("train")
        )
    clock.start("train")
    trained = train_whole(model, config, data.train, worker, unfinished, soft=soft)
    clock.start("test")
    test, predictions = _test(model, data, worker)
    return RunRecord(
        spec=spec,
        dev=trained.dev,
        test=test,
        predictions=predictions,
        history=trained.history,
        best_step=trained.best_step,
        num_steps=trained.num_steps,
        passes=model.passes(model.task_names),
        parameters=count_parameters(model),
        seconds=clock.stop() | ({"prefinetune": first.seconds} if spec.prefinetune else {}),
        **_made_by(worker),
    )


def _made_by(worker: Worker) -> dict[str, Any]:
    """Where and when a run was made."""
    return {
        "machine": {**machine(worker.device), "precision": worker.precision},
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _with_own_models(
    spec: RunSpec,
    config: Config,
    data: Prepared,
    encoder: Encoder,
    worker: Worker,
    unfinished: Unfinished,
    kept: str | None,
) -> RunRecord:
    """A run that gives each task a model of its own, with tasks that help it; or each family one."""
    came_to = Chosen()
    test, predictions = dict[str, TaskMetrics](), dict[str, Compact]()
    parameters, passes = list[dict[str, float]](), 0.0
    for models in own_models(spec, config, data, encoder, worker, unfinished, kept, came_to):
        for task, examples in models.tested:
            test[task.name], predictions[task.name] = _test_task(models.model, task, examples, worker)
        parameters.append(count_parameters(models.model))
        passes += models.model.passes([task.name for task, _ in models.tested])
    total = sum(counts["total"] for counts in parameters)
    return RunRecord(
        spec=spec,
        dev=came_to.dev,
        test=test,
        predictions=predictions,
        history=came_to.history,
        best_step=came_to.best_step,
        num_steps=came_to.num_steps,
        passes=passes,
        parameters={"total": total, "backbone": parameters[0]["backbone"], "per_task": total / len(test)},
        seconds={key: round(value, 2) for key, value in came_to.seconds.items()},
        **_made_by(worker),
        chosen=came_to.chosen,
        selection_steps=came_to.selection_steps,
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
        name = item.task.name
        metrics[name], packed[name] = _test_task(model, item.task, examples, worker)
    return metrics, packed


def _test_task(
    model: MultiTaskModel, task: Task, examples: LabelledTokens, worker: Worker
) -> tuple[TaskMetrics, Compact]:
    predictions = task_predictions(model, examples, task, worker=worker)
    metrics = task_metrics(task, predictions, examples)
    if predictions.entities is not None and examples.entities is not None:
        return metrics, pack_entities(examples.entities, predictions.entities)
    values = predictions.values
    return metrics, pack(values if task.kind == "regression" else values.astype(np.int64))
