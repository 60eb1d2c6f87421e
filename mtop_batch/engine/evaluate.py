"""`mtop evaluate`: the metrics of a bundle on the evaluation data of its training, or of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from mtop_batch import storage
from mtop_batch.config.sections import Config, TaskConfig
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.workers import single_worker
from mtop_batch.errors import BundleError, TaskError
from mtop_batch.lines import counted, listed
from mtop_batch.model.bundle.bundle import Bundle, load_bundle
from mtop_batch.tasks import Task, select_tasks
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation import task_metrics, task_predictions
from mtop_batch.training.label_report import LabelReport, label_report, worst_errors


@dataclass(frozen=True)
class EvaluatedTask:
    """How good a bundle is at a task.

    Args:
        task: Its definition in the bundle, with the metric that judged it.
        metrics: As `training.evaluation.task_metrics` returns them.
        report: Label by label.
        errors: The examples that it gets wrong (`label_report.ERROR_COLUMNS`).
    """

    task: Task
    metrics: TaskMetrics
    report: LabelReport
    errors: pa.Table


def evaluate_bundle(
    model_uri: str, config: Config | None = None, *, progress: Progress | None = None
) -> dict[str, TaskMetrics]:
    """The metrics alone of what `evaluate_in_detail` returns."""
    evaluated = evaluate_in_detail(model_uri, config, progress=progress)
    return {name: item.metrics for name, item in evaluated.items()}


def evaluate_in_detail(
    model_uri: str, config: Config | None = None, *, progress: Progress | None = None
) -> dict[str, EvaluatedTask]:
    """Evaluate tasks of a bundle, label by label, in one process, on a GPU if there is one.

    Texts are cut where the bundle says, and a task that does not say what it reads does so as in the bundle, whatever
    kind of model that has; of the configuration, only the tasks and `train.precision` count.

    Args:
        model_uri: The bundle.
        config: Its tasks must be tasks of the bundle, and defined in the same way; the bundle may have more. By default
            the tasks and the evaluation data that the bundle was trained with.
        progress: Where to show how it gets on, and which tasks are left out; it is entered already.

    Returns:
        By task, in the bundle's order.

    Raises:
        BundleError: There is no bundle, it is damaged, or it names no evaluation data and there is no configuration.
        TaskError: A task of the configuration is none of the bundle's, or is defined in another way.
        DataError: Evaluation data does not fit its task.
        LabelTableError: The storage cannot be reached or refuses.
    """
    bundle = load_bundle(model_uri)
    config = config or _trained_with(bundle)
    sources = {source.name: source for source in config.task}
    names = select_tasks(list(sources), bundle.model.task_names)
    tasks = {name: _definition(sources[name], bundle.model.task(name), model_uri) for name in names}
    if progress is not None:
        _say_what_is_left_out(progress, [name for name in bundle.model.task_names if name not in sources])
        progress.phase("evaluate", len(names), "tasks")
    recorded = {task["name"]: task.get("label_by") for task in bundle.training_config.get("task", [])}
    worker = single_worker(config.train.precision)
    text_tokenizer = TextTokenizer(bundle.tokenizer, bundle.model.config.max_tokens)
    model = bundle.model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    evaluated = {}
    for name, task in tasks.items():
        source = sources[name]
        label_by = source.label_by or recorded.get(name)  # numbers mean here what they meant in training
        raw = load_examples(task, source.eval, source.label, training=False, label_by=label_by)
        examples = tokenise_examples(raw, text_tokenizer)
        found = task_predictions(model, examples, task, worker=worker)
        evaluated[name] = EvaluatedTask(
            task,
            task_metrics(task, found, examples),
            label_report(task, found, examples.labels),
            worst_errors(task, found, examples.labels, raw.texts, raw.seconds),
        )
        if progress is not None:
            progress.advance(1, f"{name}: {counted(len(examples.labels), 'example')}")
    return evaluated


def write_errors(uri: str, evaluated: Mapping[str, EvaluatedTask]) -> int:
    """Write the errors of all tasks as one Parquet file; returns how many there are.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    table = pa.concat_tables(item.errors for item in evaluated.values())
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
    return len(table)


def _trained_with(bundle: Bundle) -> Config:
    """The tasks that the bundle was trained with, and where their data lay."""
    tasks = bundle.training_config.get("task")
    if not tasks:
        raise BundleError(f"the bundle {bundle.uri} names no evaluation data; name some with --config")
    backbone = {"name": bundle.backbone_name, "max_tokens": bundle.model.config.max_tokens}
    try:
        return Config.model_validate({"output": bundle.uri, "backbone": backbone, "task": tasks})
    except ValidationError as error:
        raise BundleError(
            f"training.json of the bundle {bundle.uri} has tasks that this version does not read; name the evaluation "
            "data with --config"
        ) from error


def _definition(source: TaskConfig, known: Task, model_uri: str) -> Task:
    """The bundle's task, judged by the metric that the configuration names.

    Raises:
        TaskError: The task means something else in the configuration than in the bundle.
    """
    wanted = source.definition(known.reads)
    for key in ("kind", "reads", "labels", "text"):
        ours, theirs = getattr(wanted, key), getattr(known, key)
        if ours != theirs:
            raise TaskError(
                f"task {known.name!r}: {key} = {ours!r} in the configuration, but the bundle {model_uri} was "
                f"trained with {theirs!r}; use the configuration it was trained with (training.json in the bundle)"
            )
    return replace(known, metric=wanted.metric)


def _say_what_is_left_out(progress: Progress, names: Sequence[str]) -> None:
    if names:
        progress.note(f"not evaluated, for no evaluation data is named for them: {listed(names)}")
