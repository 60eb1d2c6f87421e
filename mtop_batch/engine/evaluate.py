"""`mtop evaluate`: the metrics of a bundle on the evaluation data of its training, or of a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from mtop_batch import storage
from mtop_batch.config.sections import BackboneConfig, Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import few_warnings, load_examples, tokenise_with_texts
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.repeats import find_repeats
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer
from mtop_batch.engine.definitions import task_definition
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.errors import BundleError, DataError, MtopError, one_line
from mtop_batch.lines import counted, listed
from mtop_batch.model.bundle.bundle import Bundle, load_bundle
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.tasks import LabelBy, Task, VectorInput, select_tasks
from mtop_batch.training.calibration.temperature import before_and_after, trust
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation.evaluate import TaskPredictions, task_metrics, task_predictions
from mtop_batch.training.evaluation.evaluated import EvaluatedTask
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS, label_report, worst_errors
from mtop_batch.training.evaluation.page import evaluation_page
from mtop_batch.training.evaluation.suspects import find_suspects
from mtop_batch.training.probe import example_vectors
from mtop_batch.training.settings import Worker, single_worker

_MOST_SEARCHED = 100
"""Tasks whose training examples are searched for wrong labels without being asked."""


def evaluate_bundle(
    model_uri: str, config: Config | None = None, *, progress: Progress | None = None
) -> dict[str, TaskMetrics]:
    """The metrics alone of what `evaluate_in_detail` returns."""
    evaluated = evaluate_in_detail(model_uri, config, progress=progress, compare=False)
    return {name: item.metrics for name, item in evaluated.items()}


@few_warnings()
def evaluate_in_detail(
    model_uri: str,
    config: Config | None = None,
    *,
    progress: Progress | None = None,
    compare: bool = True,
    suspects: bool | None = False,
) -> dict[str, EvaluatedTask]:
    """Evaluate tasks of a bundle, label by label, in one process, on a GPU if there is one.

    Texts are cut where the bundle says, and a task that does not say what it reads does so as in the bundle, whatever
    kind of model that has; of the configuration, only the tasks and `train.precision` count.

    Args:
        model_uri: The bundle.
        config: Its tasks must be tasks of the bundle, and defined in the same way; the bundle may have more. By default
            the tasks and the evaluation data that the bundle was trained with.
        progress: Where to show how it gets on, and which tasks are left out; it is entered already.
        compare: Look for texts that training and evaluation data have in common, and for labels that contradict each
            other, where the training data can be read.
        suspects: Also look for training examples that are likely to be labelled wrongly, for which all of them go
            through the encoder; None does so unless there are many tasks.

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
    tasks = {name: task_definition(sources[name], bundle.model.task(name), model_uri) for name in names}
    if progress is not None:
        _say_what_is_left_out(progress, [name for name in bundle.model.task_names if name not in sources])
        progress.phase("evaluate", len(names), "tasks")
    if suspects is None and (suspects := len(names) <= _MOST_SEARCHED) is False and progress is not None:
        progress.note(f"no search for wrong labels in the training data of {len(names):,} tasks; --suspects searches")
    recorded = {task["name"]: task.get("label_by") for task in bundle.training_config.get("task", [])}
    worker = single_worker(config.train.precision)
    text_tokenizer = TextTokenizer(bundle.tokenizer, **bundle.model.config.text_limits, keeps=KEPT_TEXTS)
    model = bundle.model.to(worker.device)  # type: ignore[arg-type]  # transformers wraps it
    evaluated = {}
    for name, task in tasks.items():
        source = sources[name]
        label_by = source.label_by or recorded.get(name)  # numbers mean here what they meant in training
        raw = load_examples(
            task, source.evaluation, source.label, training=False, label_by=label_by, inputs=model.vector_inputs
        )
        examples, raw = tokenise_with_texts(raw, text_tokenizer)
        found = task_predictions(model, examples, task, worker=worker)
        evaluated[name] = EvaluatedTask(
            task,
            {**task_metrics(task, found, examples), **_trust(task, found, examples)},
            label_report(task, found, examples.labels, examples.entities),
            worst_errors(task, found, examples.labels, raw.texts, raw.seconds, examples.entities),
        )
        if compare or suspects:
            learned = _training_examples(task, source, label_by, model.vector_inputs)
            evaluated[name] = _compared(evaluated[name], learned, raw)
            if suspects:
                evaluated[name] = _with_suspects(evaluated[name], learned, model, text_tokenizer, worker)
        if progress is not None:
            progress.advance(1, f"{name}: {counted(len(examples.labels), 'example')}")
    return evaluated


def _trust(task: Task, found: TaskPredictions, examples: LabelledTokens) -> TaskMetrics:
    """How far the scores can be trusted; a regression has none, and a token task one for each word."""
    if task.kind == "regression" or task.is_token:
        return {}
    return trust(*before_and_after(task, found.probabilities, examples.labels))


def _training_examples(
    task: Task, source: TaskConfig, label_by: LabelBy | None, inputs: Sequence[VectorInput]
) -> RawExamples | str:
    """What the task was trained on, or why it cannot be read: an evaluation does without."""
    try:
        return load_examples(task, source.train, source.label, training=False, label_by=label_by, inputs=inputs)
    except MtopError as error:
        return one_line(error)


def _compared(item: EvaluatedTask, learned: RawExamples | str, judged: RawExamples) -> EvaluatedTask:
    if isinstance(learned, str):
        return replace(item, not_compared=learned)
    return replace(item, repeats=find_repeats(learned, judged))


def _with_suspects(
    item: EvaluatedTask,
    learned: RawExamples | str,
    model: MultiTaskModel,
    text_tokenizer: TextTokenizer,
    worker: Worker,
) -> EvaluatedTask:
    """The same with training examples that are likely to be labelled wrongly, or with why nobody can tell."""
    if isinstance(learned, str):
        return replace(item, no_suspects=learned)
    if item.task.kind == "regression":
        return replace(item, no_suspects="a regression has no labels")
    if item.task.kind != "classification":
        return replace(item, no_suspects="an example may have several labels")
    if model.pass_per_task:
        return replace(item, no_suspects=model.no_vectors(model.config.model_type))
    try:
        examples, learned = tokenise_with_texts(learned, text_tokenizer)
        vectors = example_vectors(model, examples, worker=worker).numpy()
        return replace(item, suspects=find_suspects(learned, vectors))
    except DataError as error:
        return replace(item, no_suspects=one_line(error))


def write_report(uri: str, bundle: str, evaluated: Mapping[str, EvaluatedTask]) -> None:
    """Write a page for people.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    storage.write_bytes(uri, evaluation_page(bundle, evaluated).encode())


def write_errors(uri: str, evaluated: Mapping[str, EvaluatedTask]) -> int:
    """Write the errors of all tasks as one Parquet file; returns how many there are.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    return _write_table(uri, [item.errors for item in evaluated.values()])


def write_suspects(uri: str, evaluated: Mapping[str, EvaluatedTask]) -> int:
    """Write the training examples that are likely to be labelled wrongly in the same way.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    return _write_table(uri, [item.suspects for item in evaluated.values() if item.suspects is not None])


def _write_table(uri: str, tables: Sequence[pa.Table]) -> int:
    table = pa.concat_tables([ERROR_COLUMNS.empty_table(), *tables])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())
    return len(table)


def _trained_with(bundle: Bundle) -> Config:
    """The tasks that the bundle was trained with, and where their data lay."""
    tasks = bundle.training_config.get("task")
    if not tasks:
        raise BundleError(f"the bundle {bundle.uri} names no evaluation data; name some with --config")
    backbone = BackboneConfig.of(bundle.backbone_name, bundle.model.config.text_limits)
    try:
        return Config.model_validate({"output": bundle.uri, "backbone": backbone, "task": tasks})
    except ValidationError as error:
        raise BundleError(
            f"training.json of the bundle {bundle.uri} has tasks that this version does not read; name the evaluation "
            "data with --config"
        ) from error


def _say_what_is_left_out(progress: Progress, names: Sequence[str]) -> None:
    if names:
        progress.note(f"not evaluated, for no evaluation data is named for them: {listed(names)}")
