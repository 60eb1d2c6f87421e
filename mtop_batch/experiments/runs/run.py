"""One run of an experiment, in one process, on a GPU or a CPU, with or without Ray around it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import mean
from typing import Any

import numpy as np
from safetensors.torch import load, save

from mtop_batch import storage
from mtop_batch.config.model import MTOPModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.tables import BEGUN_WITH
from mtop_batch.experiments.runs.auxiliary import Chosen, own_models, trainings
from mtop_batch.experiments.runs.clock import Clock
from mtop_batch.experiments.runs.prefinetuned import beginning
from mtop_batch.experiments.runs.prepared import Prepared, with_reader
from mtop_batch.experiments.runs.records import (
    Compact,
    RunRecord,
    encoder_uri,
    machine,
    pack,
    pack_entities,
    versions,
)
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.experiments.runs.started import StartedRun
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.selection.jobs import Job
from mtop_batch.selection.prompt_groups import needs_trainings, with_like_groups
from mtop_batch.selection.records import Record
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
    encoders: str | None = None,
) -> RunRecord:
    """Train and test as a spec says.

    The checkpoint is chosen on evaluation examples; test examples are looked at once, in the end.

    Args:
        spec: What to run.
        prepared: The tasks that the spec learns, with the training examples that it wants, and the test examples of
            those that it is judged on.
        tasks: Those that it learns as in a configuration, in the same order.
        encoder: That of the spec.
        worker: This process, its device and precision; None for the CPU. Its event sink gets the events of training.
        unfinished: Where an interrupted run left what it had done; None to begin anew and keep nothing.
        kept: Where that lies which several runs use: trainings that choosing auxiliary tasks takes, and pre-finetuned
            encoders; None to keep it no longer than the run.
        encoders: Where the encoders lie that runs begin with, and where this one's is kept if others may; None to keep
            none.

    Raises:
        MtopError: The settings cannot work, training diverged, or the encoder to begin with is not there.
    """
    worker, unfinished = worker or Worker(), unfinished or Unfinished(None)
    encoder = _first_encoder(spec, encoder, encoders)
    config = spec.config(tasks)
    check_readers(config)
    check_encoder(config, encoder.backbone)
    data = with_reader(prepared, config.task, config.model.default_reader)
    data = replace(data, train=with_eval_budget(data.train, config.train.eval_examples, config.train.seed))
    run = StartedRun(spec, config, data, encoder, worker, unfinished, kept)
    if spec.auxiliary is not None:
        return _with_own_models(run)
    clock = Clock(unfinished)
    config, used = _with_groups(run)
    run = replace(run, config=config)
    clock.start("teachers")
    soft = _soft_labels(run)
    clock.start(None)
    with beginning(run) as first:
        clock.start("warm_start")
        model = begin(
            first.config, data.train, first.encoder, worker, unfinished, on_learned=lambda: clock.start("train")
        )
    clock.start("train")
    trained = train_whole(model, config, data.train, worker, unfinished, soft=soft)
    clock.start("test")
    test, predictions = _test(model, data, worker)
    if encoders is not None and spec.method in BEGUN_WITH:
        storage.write_bytes(encoder_uri(encoders, spec.digest), save(model.backbone.state_dict()))
    return RunRecord(
        spec=spec,
        dev=_some(trained.dev, test),
        test=test,
        predictions=predictions,
        history=[{**entry, "tasks": _some(entry["tasks"], test)} for entry in trained.history],
        best_step=trained.best_step,
        num_steps=trained.num_steps,
        passes=model.passes(model.task_names),
        parameters=count_parameters(model),
        seconds=clock.stop()
        | ({"selection": round(sum(one.seconds for one in used), 2)} if used else {})
        | ({"prefinetune": first.seconds} if spec.prefinetune else {}),
        **_made_by(worker),
        selection_steps=sum(one.num_steps for one in used),
    )


def _with_groups(run: StartedRun) -> tuple[Config, list[Record]]:
    """The configuration with tasks in prompt groups, and the trainings of tasks alone that this took."""
    used = list[Record]()
    if not needs_trainings(run.config):
        return with_like_groups(run.config), used
    jobs, records = trainings(run)

    def counting(wanted: Sequence[Job]) -> Sequence[Record]:
        used.extend(found := records(wanted))
        return found

    return with_like_groups(run.config, jobs, counting), used


def _some(by_task: Mapping[str, Any], judged: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in by_task.items() if name in judged}


def _first_encoder(spec: RunSpec, encoder: Encoder, encoders: str | None) -> Encoder:
    """The encoder that a run begins with: the pretrained one, or that which another run left."""
    if spec.begins_with is None:
        return encoder
    uri = None if encoders is None else encoder_uri(encoders, spec.begins_with)
    if uri is None or not storage.is_file(uri):
        raise ConfigError(
            f"{spec.method} begins with the encoder of run {spec.begins_with}, which is not at {uri or encoders}; do "
            "that run first"
        )
    backbone = copy.deepcopy(encoder.backbone)
    backbone.load_state_dict(load(storage.read_bytes(uri)))
    return replace(encoder, backbone=backbone)


def _made_by(worker: Worker) -> dict[str, Any]:
    """Where and when a run was made."""
    return {
        "machine": {**machine(worker.device), "precision": worker.precision},
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _with_own_models(run: StartedRun) -> RunRecord:
    """A run that gives each task a model of its own, with tasks that help it; or each family one."""
    came_to = Chosen()
    test, predictions = dict[str, TaskMetrics](), dict[str, Compact]()
    parameters, passes = list[dict[str, float]](), 0.0
    for models in own_models(run, came_to):
        for task, examples in models.tested:
            test[task.name], predictions[task.name] = _test_task(models.model, task, examples, run.worker)
        parameters.append(count_parameters(models.model))
        passes += models.model.passes([task.name for task, _ in models.tested])
    total = sum(counts["total"] for counts in parameters)
    return RunRecord(
        spec=run.spec,
        dev=came_to.dev,
        test=test,
        predictions=predictions,
        history=came_to.history,
        best_step=came_to.best_step,
        num_steps=came_to.num_steps,
        passes=passes,
        parameters={"total": total, "backbone": parameters[0]["backbone"], "per_task": total / len(test)},
        seconds={key: round(value, 2) for key, value in came_to.seconds.items()},
        **_made_by(run.worker),
        chosen=came_to.chosen,
        selection_steps=came_to.selection_steps,
    )


def untrained(config: Config, encoder: Encoder, data: Sequence[TaskData]) -> MultiTaskModel:
    """A model as the configuration says, all but the backbone random: for what does not depend on weights."""
    section = config.model
    changes: dict[str, Any] = {
        key: "random" for key in ("prompt_init", "pooler_init") if key in type(section).model_fields
    }
    if isinstance(section, MTOPModelConfig):  # which tasks a group has makes no difference
        changes["prompt_groups"] = section.num_groups
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


def _soft_labels(run: StartedRun) -> SoftLabels | None:
    """What teachers, trained here, say of the texts without labels."""
    section, texts = run.config.unlabelled, run.data.unlabelled
    if section is None:
        return None
    if texts is None:
        raise ConfigError("this method learns from texts without labels, and the data set was read without any")
    said = []
    for number in range(int(section.teachers)):  # type: ignore[arg-type]  # experiments train their own
        labels = run.unfinished.soft_labels(number)
        if labels is None:
            own = run.config.teacher(number)
            examples = with_reader(run.data, own.task, own.model.default_reader).train
            teacher = begin(own, examples, run.encoder, run.worker, Unfinished(None))
            train_whole(teacher, own, examples, run.worker, run.unfinished, training=f"teacher-{number}")
            labels = label_softly(teacher, texts, [item.task for item in examples], worker=run.worker)
            run.unfinished.keep_soft_labels(number, labels)
        said.append(labels)
    return SoftLabels(texts, mean_labels(said), section.batch_size, section.weight)


def _test(model: MultiTaskModel, data: Prepared, worker: Worker) -> tuple[dict[str, TaskMetrics], dict[str, Compact]]:
    """The metrics on the test examples, and what the model says of each."""
    metrics, packed = {}, {}
    tasks = {item.task.name: item.task for item in data.train}
    for name, examples in data.test.items():
        metrics[name], packed[name] = _test_task(model, tasks[name], examples, worker)
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
