"""`mtop train`: from a configuration to a bundle.

Everything that can be checked is checked before work starts. Examples are tokenised once, here, and lie in Ray's
object store for all workers. Both phases (`mtop_batch.engine.phases`) leave what they have done in the run's directory
(`mtop_batch.engine.run_directory`): a lost worker costs the steps since the last checkpoint, and after a lost driver
the same command resumes from there.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch import storage
from mtop_batch.config.sections import Config, MTOPModelConfig, TaskConfig
from mtop_batch.data.examples import load_examples, token_counts, tokenise_examples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.engine.events import Event, EventQueue
from mtop_batch.engine.monitor import TrainingMonitor
from mtop_batch.engine.phases import Phases, train_settings
from mtop_batch.engine.progress import Progress
from mtop_batch.engine.run_directory import RunDirectory, interrupted_runs, run_digest
from mtop_batch.engine.session import Resources, ray_session
from mtop_batch.errors import ConfigError
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.encoder.backbone import check_backbone, load_backbone, load_tokenizer
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import KINDS, model_class
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.optimizer import freeze_word_embeddings
from mtop_batch.training.settings import TaskData
from mtop_batch.training.warm_start import initialise

_PACKAGES = ("mtop-batch", "ray", "torch", "transformers")


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    Args:
        output: URI of the bundle.
        metrics: Task -> metric -> value on its evaluation data, at the chosen weights.
        mean: Of the tasks' own metrics: what chose those weights.
        best_step: The steps after which they were taken.
        num_steps: Steps of the whole run.
        examples_per_s: Of the multi-task phase.
        seconds: Of this command; what an interrupted one did before is not counted.
    """

    output: str
    metrics: dict[str, TaskMetrics]
    mean: float
    best_step: int
    num_steps: int
    examples_per_s: float
    seconds: float


def train(config: Config, *, progress: Progress, on_event: Callable[[Event], None] | None = None) -> TrainResult:
    """Train what the configuration says and write the bundle to its `output`.

    If it fails or is killed, `<output>.training` holds what was done, and the same call resumes from there: finished
    warm starts are kept, and training resumes from its last checkpoint and ends with the very weights that it would
    have ended with undisturbed. A bundle that was at `output` before stays until the new one is written.

    Args:
        config: As `load_config` returns it.
        progress: Where to show how it gets on; it is entered already.
        on_event: Called with every event (start, step, evaluation, ...); they also go to `training.jsonl` beside the
            bundle's files.

    Raises:
        MtopError: The configuration, the backbone or the examples cannot work, or storage fails; `JobError` where
            workers failed more often than `train.max_failures`.
    """
    started = time.monotonic()
    parts = _prepare(config, progress)
    run = RunDirectory(config.output, run_digest(config, parts.data))
    monitor = TrainingMonitor(run, progress, on_event)
    with ray_session() as resources:
        _check_workers(config, resources, progress)
        if found := run.begin(config):
            progress.note(found)
        monitor.record({"event": "run", "resources": str(resources), "versions": versions()})
        phases = Phases(config, parts.data, resources, run, monitor, EventQueue())
        model = _first_model(config, parts, phases)
        fitted, weights = phases.all_tasks(model)
    model.load_state_dict(weights)
    best = next(evaluation for evaluation in fitted.history if evaluation.step == fitted.best_step)
    result = TrainResult(
        output=config.output,
        metrics=fitted.best_metrics,
        mean=best.mean,
        best_step=fitted.best_step,
        num_steps=fitted.num_steps,
        examples_per_s=monitor.examples_per_s(),
        seconds=time.monotonic() - started,
    )
    _write(config, model, parts.tokenizer, result, run, monitor)
    return result


@dataclass(frozen=True)
class _Parts:
    """What training is made of, checked."""

    tokenizer: PreTrainedTokenizerBase
    backbone: PreTrainedModel
    data: list[TaskData]


def _prepare(config: Config, progress: Progress) -> _Parts:
    """Load everything and check all that can be checked before work starts."""
    _check_readers(config)
    train_settings(config.train).check_workers(config.train.num_workers)
    check_output(config.output)
    progress.phase("read and tokenise the examples", len(config.task), "tasks")
    tokenizer = load_tokenizer(config.backbone.name)
    backbone = load_backbone(config.backbone.name)
    check_backbone(backbone, config.backbone.max_tokens, config.model.settings().get("pooler_rank", 0))
    text_tokenizer = TextTokenizer(tokenizer, config.backbone.max_tokens)
    data = []
    for task in config.task:
        data.append(load_task(task, task.definition(config.model.default_reader), text_tokenizer))
        progress.advance(1, f"{task.name}: {len(data[-1].train.tokens):,} examples")
    return _Parts(tokenizer, backbone, data)


def _check_readers(config: Config) -> None:
    """Refuse tasks that the model cannot have, and those that read the vector: they need a trained encoder."""
    model_class(config.model.kind).check_readers(config.tasks())
    probes = [task.name for task in config.tasks() if task.reads_vector]
    if probes:
        raise ConfigError(
            f"task {probes[0]!r} reads the vector of a trained encoder, so it cannot be trained together with other "
            "tasks; train these first, then add it with `mtop add-tasks`"
        )


def check_output(output: str) -> None:
    """Refuse an output that holds something else: a bundle has a README.md, and would replace the one there."""
    if not storage.exists(output) or storage.list_files(interrupted_runs(output)):
        return
    if storage.is_file(output):
        raise ConfigError(f"output = {output!r} is a file; name a directory for the bundle")
    try:
        described = json.loads(storage.read_bytes(storage.join(output, "config.json")))
        is_ours = described["model_type"] in KINDS
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        is_ours = not storage.list_files(output)
    if not is_ours:
        raise ConfigError(
            f"output = {output!r} has files in it that are no bundle, and training would replace some of them; "
            f"name another directory, such as {storage.join(output, 'mtop')!r}"
        )


def load_task(config: TaskConfig, task: Task, text_tokenizer: TextTokenizer) -> TaskData:
    """The examples of a task, tokenised.

    Args:
        config: Where they lie.
        task: Its definition.
        text_tokenizer: Of the model.

    Raises:
        DataError, LabelTableError: As `load_examples`.
    """
    train, eval_ = (
        tokenise_examples(load_examples(task, source, config.label, training=training), text_tokenizer)
        for source, training in ((config.train, True), (config.eval, False))
    )
    return TaskData(task, train, eval_)


def _check_workers(config: Config, resources: Resources, progress: Progress) -> None:
    """Refuse more workers than there are GPUs (or CPUs), or wait for them where nodes may join."""
    wanted = config.train.num_workers
    kind, available = ("GPU", resources.num_gpus) if resources.num_gpus else ("CPU", resources.num_cpus)
    if wanted <= available:
        return
    if not resources.may_grow:
        raise ConfigError(
            f"train.num_workers = {wanted} needs {wanted} {kind}s, one each, and this machine has {available}; pass "
            f"--set train.num_workers={available}, or name a cluster by RAY_ADDRESS"
        )
    progress.note(f"train.num_workers = {wanted} needs {wanted} {kind}s; the cluster has {resources}: waiting for more")


def _first_model(config: Config, parts: _Parts, phases: Phases) -> MultiTaskModel:
    """What the multi-task phase begins with."""
    section = config.model
    settings = {"max_tokens": config.backbone.max_tokens, "seed": config.train.seed, **section.settings()}
    warm = {}
    if isinstance(section, MTOPModelConfig):
        if section.needs_warm_start:
            warm = _warm_start(config, section, parts, phases)
        settings["prompt_groups"] = config.prompt_groups()
    model = model_class(section.kind).from_backbone(parts.backbone, config.tasks(), **settings)
    if isinstance(section, MTOPModelConfig) and isinstance(model, MTOPModel):
        counts = None
        if section.prompt_init == "token":
            counts = token_counts((item.train.tokens for item in parts.data), model.word_embeddings.num_embeddings)
        initialise(
            model,
            prompt_init=section.prompt_init,
            pooler_init=section.pooler_init,
            warm=warm,
            token_counts=counts,
            special_ids=tuple(parts.tokenizer.all_special_ids),
            seed=config.train.seed,
        )
    if config.train.freeze_word_embeddings:
        freeze_word_embeddings(model)
    return model


def _warm_start(
    config: Config, section: MTOPModelConfig, parts: _Parts, phases: Phases
) -> dict[str, dict[str, Tensor]]:
    """What each task learns alone (paper, section 4.3), without shared prompts: those belong to no single task."""
    start = MTOPModel.without_tasks(
        parts.backbone,
        prompt_attention=section.prompt_attention,
        pooler_rank=section.pooler_rank,
        max_tokens=config.backbone.max_tokens,
    )
    new_task = {"prompts_per_task": section.prompts_per_task, "seed": config.train.seed}
    return phases.single_tasks(start, new_task)


def _write(
    config: Config,
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    result: TrainResult,
    run: RunDirectory,
    monitor: TrainingMonitor,
) -> None:
    """Write the bundle and the log beside it; then the run's directory is no longer needed."""
    summary = {key: value for key, value in asdict(result).items() if key not in ("output", "metrics")}
    monitor.record({"event": "end", **summary})
    storage.write_bytes(storage.join(config.output, "training.jsonl"), run.event_lines())
    save_bundle(
        config.output,
        model,
        tokenizer,
        metrics=result.metrics,
        training_config=config.model_dump(mode="json"),
        backbone_name=config.backbone.name,
    )
    run.discard()


def versions() -> dict[str, str]:
    """Versions of what computes, for the log."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
