"""`mtop train`: from a configuration to a bundle.

Everything that can be checked is checked before work starts. Examples are tokenised once, here, and lie in Ray's
object store for all workers. Both phases (`mtop_batch.engine.training.phases`) leave what they have done in the run's
directory (`mtop_batch.engine.training.run_directory`): a lost worker costs the steps since the last checkpoint, and
after a lost driver the same command resumes from there.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.config.task import TaskConfig
from mtop_batch.data.examples import (
    few_warnings,
    load_examples,
    load_train_and_eval,
    tokenise_examples,
    with_label_scale,
)
from mtop_batch.data.tokens import KEPT_TEXTS, TextTokenizer
from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.monitoring.trackers import Trackers, check_trackers
from mtop_batch.engine.outputs import check_output, is_finished
from mtop_batch.engine.session import Resources, ray_session
from mtop_batch.engine.training.fit_decisions import check_rules, check_written, set_decisions
from mtop_batch.engine.training.fit_on_ray import fit_on_ray
from mtop_batch.engine.training.phases import Phases
from mtop_batch.engine.training.run_directory import RunDirectory, run_digest
from mtop_batch.engine.training.teachers import check_teachers, learn_soft_labels, read_unlabelled
from mtop_batch.engine.trainings import with_groups
from mtop_batch.errors import ConfigError
from mtop_batch.lines import counted
from mtop_batch.model.bundle.bundle import parse_metrics, save_bundle
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.encoder.whole import check_fit
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.tasks import Task, VectorInput
from mtop_batch.training.calibration.fit_decisions import FittedDecision, decision_reports, with_decision_metrics
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.class_weights import class_weights
from mtop_batch.training.evaluation.evaluate import mean_metric, undefined_metrics, with_eval_budget
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import TaskData
from mtop_batch.training.start import check_encoder, check_readers, first_model, train_settings

_LOG = "training.jsonl"
_PACKAGES = ("mtop-batch", "ray", "torch", "transformers")


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Args:
        output: URI of the bundle.
        tasks: Its tasks, in order.
        metrics: Task -> metric -> value on its evaluation data, at the chosen weights.
        mean: Of the tasks' own metrics: what chose those weights.
        best_step: The steps after which they were taken; where each task has a model of its own, the sum over them.
        num_steps: Steps of the whole run.
        last_step: Steps that were done: fewer, where `train.patience` ran out.
        examples_per_s: Of the training after any warm start; of one task where each has a model of its own, for these
            train side by side.
        seconds: Of this command; what an interrupted one did before is not counted.
        left_out: Tasks that no step trained, for want of steps.
        undefined: The tasks whose own metric is undefined on their evaluation data (NaN above), and why.
        was_there: The bundle is that of an earlier call; nothing was trained.
    """

    output: str
    tasks: tuple[Task, ...]
    metrics: dict[str, TaskMetrics]
    mean: float
    best_step: int
    num_steps: int
    last_step: int
    examples_per_s: float
    seconds: float
    left_out: tuple[str, ...] = ()
    undefined: dict[str, str] = field(default_factory=dict)
    was_there: bool = False


def train(
    config: Config,
    *,
    progress: Progress,
    on_event: Callable[[Event], None] | None = None,
    overwrite: bool = False,
) -> TrainResult:
    """Train what the configuration says and write the bundle to its `output`.

    If it fails or is killed, `<output>.training` holds what was done, and the same call resumes from there: finished
    warm starts are kept, and training resumes from its last checkpoint and ends with the very weights that it would
    have ended with undisturbed. If `output` holds the bundle of the same configuration and examples, nothing is done.

    Args:
        config: As `load_config` returns it.
        progress: Where to show how it gets on; it is entered already.
        on_event: Called with every event (start, step, evaluation, ...); they also go to `training.jsonl` beside the
            bundle's files.
        overwrite: Train whatever bundle `output` holds; it stays until the new one is written.

    Raises:
        MtopError: The configuration, the backbone or the examples cannot work, `output` holds another bundle and is not
            to be overwritten, or storage fails; `JobError` where workers failed more often than `train.max_failures`.
    """
    started = time.monotonic()
    check_config(config)
    check_teachers(config)
    check_output(config.output)
    parts = prepare(config, progress)
    texts = read_unlabelled(config, parts.tokenizer, progress) if config.unlabelled else None
    run = RunDirectory(config.output, run_digest(config, parts.data, "" if texts is None else texts.digest()))
    if not overwrite and is_finished(config.output, run.name):
        check_written(config.output)
        return _finished(config, parts.data, run, started)
    with ExitStack() as until_written:
        with ray_session() as resources:
            check_workers(config, resources, progress)
            if found := run.begin(config):
                progress.note(found)
            trackers = until_written.enter_context(Trackers.of(config, run, progress))
            monitor = TrainingMonitor(run, progress, trackers, *([on_event] if on_event else []))
            monitor.record({"event": "run", "resources": str(resources), "versions": versions()})
            config = with_groups(config, parts.data, Encoder(parts.backbone, parts.tokenizer), progress)
            soft = None
            if texts is not None:
                soft = learn_soft_labels(config, texts, parts.data, parts.tokenizer, resources, run, progress)
            phases = Phases(config, parts.data, resources, run, monitor, EventQueue(), soft)
            model = first_model(config, parts.backbone, parts.tokenizer, parts.data, phases.single_tasks)
            trained = phases.own_models(model) if isinstance(model, SingleTaskModel) else phases.all_tasks(model)
            progress.phase("calibrate")
            examples = {item.task.name: item.evaluation_examples() for item in parts.data}
            fitted = fit_on_ray(model, examples, config, config.train.precision, resources)
            set_decisions(model, fitted, config)
        result = TrainResult(
            output=config.output,
            tasks=tuple(config.tasks()),
            metrics=with_decision_metrics(trained.metrics, fitted),
            mean=mean_metric(trained.metrics, config.tasks()),
            best_step=trained.best_step,
            num_steps=trained.num_steps,
            last_step=trained.last_step,
            examples_per_s=monitor.examples_per_s(trained.phase),
            seconds=time.monotonic() - started,
            left_out=trained.left_out,
            undefined=undefined_metrics(parts.data),
        )
        _write_log(result, run, monitor, trackers)
        _write(as_read(config, parts.data), model, parts.tokenizer, result, run, fitted)
    check_written(config.output)
    return result


def _finished(config: Config, data: Sequence[TaskData], run: RunDirectory, started: float) -> TrainResult:
    """What an earlier call left at the output; it may have been killed before it removed the run's directory."""
    output = storage.absolute(config.output)
    if storage.list_files(run.uri):
        run.discard()
    metrics = parse_metrics(storage.read_bytes(storage.join(output, "metrics.json")))
    end: Event = {}
    if storage.is_file(log := storage.join(output, _LOG)):
        end = json.loads(storage.read_bytes(log).splitlines()[-1])
    return TrainResult(
        output=config.output,
        tasks=tuple(config.tasks()),
        metrics=metrics,
        mean=mean_metric(metrics, config.tasks()),
        best_step=end.get("best_step", 0),
        num_steps=end.get("num_steps", 0),
        last_step=end.get("last_step", 0),
        examples_per_s=end.get("examples_per_s", 0.0),
        seconds=time.monotonic() - started,
        left_out=tuple(end.get("left_out", ())),
        undefined=undefined_metrics(data),
        was_there=True,
    )


@dataclass(frozen=True)
class Parts:
    """What training is made of, checked."""

    tokenizer: PreTrainedTokenizerBase
    text_tokenizer: TextTokenizer
    backbone: PreTrainedModel
    data: list[TaskData]


def check_config(config: Config) -> None:
    """Refuse what a configuration alone shows not to work.

    Raises:
        MtopError: Says what.
    """
    check_readers(config)
    check_rules(config.tasks(), config)
    train_settings(config.train).check_workers(config.train.num_workers)
    check_trackers(config.train)


@few_warnings()
def prepare(config: Config, progress: Progress, *, evaluates: bool = True) -> Parts:
    """Load encoder and examples, those of evaluations only where there are some, and check that they fit.

    Raises:
        MtopError: They do not.
    """
    progress.phase("read and tokenise the examples", len(config.task) + len(config.source), "tasks")
    tokenizer = load_tokenizer(config.backbone.name)
    backbone = load_backbone(config.backbone.name)
    check_fit(config.backbone.name, tokenizer, backbone)
    check_encoder(config, backbone)
    text_tokenizer = TextTokenizer(tokenizer, **config.backbone.text_limits, keeps=KEPT_TEXTS)
    data = []
    for task in config.task:
        definition = task.definition(config.model.default_reader)
        data.append(load_task(task, definition, text_tokenizer, config.model.vector_inputs, evaluates=evaluates))
        progress.advance(1, f"{task.name}: {counted(len(data[-1].train), 'example')}")
    data = with_eval_budget(data, config.train.eval_examples, config.train.seed)
    return Parts(tokenizer, text_tokenizer, backbone, data)


def load_task(
    config: TaskConfig,
    task: Task,
    text_tokenizer: TextTokenizer,
    inputs: Sequence[VectorInput] = (),
    *,
    evaluates: bool = True,
) -> TaskData:
    """The examples of a task, tokenised.

    Args:
        config: Where they lie.
        task: Its definition.
        text_tokenizer: Of the model.
        inputs: What the model reads beside texts.
        evaluates: Whether evaluation examples are read too.

    Raises:
        ConfigError: It names no evaluation examples.
        DataError, LabelTableError: As `load_train_and_eval`.
    """
    label, label_by = config.label, config.label_by
    if evaluates:
        raw_train, raw_eval = load_train_and_eval(task, config.train, config.evaluation, label, label_by, inputs)
        eval_ = tokenise_examples(raw_eval, text_tokenizer)
    else:
        raw_train, eval_ = load_examples(task, config.train, label, label_by=label_by, inputs=inputs), None
    train = tokenise_examples(raw_train, text_tokenizer)
    weights = class_weights(task, config.class_weights, train.labels)
    return TaskData(with_label_scale(task, train), train, eval_, raw_train.label_by, weights, config.rate)


def as_read(config: Config, data: Sequence[TaskData]) -> Config:
    """The configuration with how label columns were read, so that an evaluation alone reads them in the same way."""
    read = {item.task.name: item.label_by for item in data}
    tasks = tuple(task.model_copy(update={"label_by": read[task.name] or task.label_by}) for task in config.task)
    return config.model_copy(update={"task": tasks})


def check_workers(config: Config, resources: Resources, progress: Progress) -> None:
    """Refuse more workers than there are GPUs (or CPUs), or wait for them where nodes may join."""
    wanted = config.train.num_workers
    kind, available = ("GPU", resources.num_gpus) if resources.num_gpus else ("CPU", resources.num_cpus)
    if wanted <= available:
        return
    if not resources.may_grow:
        raise ConfigError(
            f"train.num_workers = {wanted} needs {counted(wanted, kind)}, one each, and this machine has {available}; "
            f"pass --set train.num_workers={available}, or name a cluster by RAY_ADDRESS"
        )
    progress.note(
        f"train.num_workers = {wanted} needs {counted(wanted, kind)}; the cluster has {resources}: waiting for more"
    )


def _write_log(result: TrainResult, run: RunDirectory, monitor: TrainingMonitor, trackers: Trackers) -> None:
    """Write what happened to where the bundle goes."""
    elsewhere = ("output", "tasks", "metrics", "was_there")
    summary = {key: value for key, value in asdict(result).items() if key not in elsewhere}
    monitor.record({"event": "end", **summary, "left_out": list(result.left_out)})
    storage.write_bytes(storage.join(storage.absolute(result.output), _LOG), run.event_lines())
    trackers.finish(result.output)


def _write(
    config: Config,
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    result: TrainResult,
    run: RunDirectory,
    fitted: Mapping[str, FittedDecision],
) -> None:
    """Write the bundle; then the run's directory is no longer needed."""
    save_bundle(
        config.output,
        model,
        tokenizer,
        metrics=result.metrics,
        training_config=config.model_dump(mode="json"),
        backbone_name=config.backbone.name,
        run=run.name,
        decisions=decision_reports(fitted),
    )
    run.discard()


def versions() -> dict[str, str]:
    """Versions of what computes, for the log."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
