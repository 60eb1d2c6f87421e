"""`mtop add-tasks` and `mtop drop-tasks`: another set of tasks on a trained model, every other output as it was.

The new tasks are isolated: they read the text and are read by nobody. So each trains alone, side by side with the
others, on weights that stay as they are; the fingerprints of the tasks already there do not change, and neither do
their labels. Tasks of a new family train together, for they learn its LoRA; one of a family that is there reads it as
it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtop_batch import storage
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import BackboneConfig, Config
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.decisions.rules import rule_groups, with_rules
from mtop_batch.engine.monitoring.events import EventQueue
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.outputs import changed_config, check_apart, check_output, is_finished
from mtop_batch.engine.session import ray_session
from mtop_batch.engine.train import as_read, load_task, versions
from mtop_batch.engine.training.fit_decisions import check_written, set_decisions
from mtop_batch.engine.training.fit_on_ray import fit_on_ray
from mtop_batch.engine.training.run_directory import RunDirectory, run_digest
from mtop_batch.engine.training.single_tasks import SingleTasks
from mtop_batch.engine.training.workers import ADD_PHASE
from mtop_batch.errors import BundleError, ConfigError, TaskError
from mtop_batch.families import check_families
from mtop_batch.lines import counted
from mtop_batch.model.bundle.bundle import Bundle, load_bundle, parse_metrics, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.model.bundle.fingerprints import task_fingerprints, tokenizer_digest
from mtop_batch.model.encoder.families import check_families as check_encoder_has
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task, check_task_names
from mtop_batch.training.calibration.fit_decisions import FittedDecision, decision_reports, with_decision_metrics
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation.evaluate import undefined_metrics
from mtop_batch.training.single_task import load_learned
from mtop_batch.training.start import train_settings


@dataclass(frozen=True)
class ChangeResult:
    """A bundle made from another one.

    Args:
        output: URI of the bundle.
        tasks: Names of all its tasks, in order.
        added_tasks: Those that were learned.
        added: Task -> metric -> value, of the tasks that were learned.
        undefined: Those of them whose own metric is undefined on their evaluation data (NaN above), and why.
        unchanged: The tasks whose fingerprints, and so labels, are those of the bundle before.
        seconds: Of the whole command.
        was_there: The bundle is that of an earlier call; nothing was done.
    """

    output: str
    tasks: tuple[str, ...]
    added_tasks: tuple[Task, ...]
    added: dict[str, TaskMetrics]
    undefined: dict[str, str]
    unchanged: tuple[str, ...]
    seconds: float
    was_there: bool = False


def add_tasks(
    model_uri: str,
    config_path: str,
    output: str,
    *,
    progress: Progress,
    overrides: Sequence[str] = (),
    replace: bool = False,
    overwrite: bool = False,
) -> ChangeResult:
    """Learn the tasks of a configuration on a trained bundle, and write the bundle with both.

    If it fails or is killed, `<output>.training` holds the tasks that were learned, and the same call does the rest;
    there is no bundle at `output` before all are. If `output` holds what the same call has made, nothing is done.

    Args:
        model_uri: The bundle to add to; it stays as it is.
        config_path: TOML with the new tasks and, if wanted, a section `[add_tasks]`. Of other sections, `[backbone]`
            must be the bundle's if it is there.
        output: Where the new bundle goes.
        progress: Where to show how it gets on; it is entered already.
        overrides: `section.key=value` strings.
        replace: A task that the bundle has is learned again in its place, if it is isolated; otherwise it is refused.
        overwrite: Replace whatever bundle `output` holds.

    Raises:
        MtopError: The bundle, the configuration or the examples cannot work, `output` holds another bundle and is not
            to be overwritten, or storage fails; nothing is written then.
    """
    started = time.monotonic()
    check_apart(model_uri, output)
    check_output(output)
    bundle = load_bundle(model_uri)
    model = _changeable(bundle)
    config = _load_config(config_path, overrides, bundle, output)
    names = [task.name for task in config.task]
    _check_names(model, bundle.uri, names, replace)
    kept = [task for task in model.tasks if task.name not in names]
    families, family_of = config.families(), config.family_of()
    check_families(families, family_of, [family.name for family in model.task_families])
    check_encoder_has(model.backbone, {family.name: family.layers for family in families})
    rules = _rules_with(model.tasks, config)
    with_rules([*kept, *config.tasks()], rules)
    progress.phase("read and tokenise the examples", len(names), "tasks")
    tokenizer = TextTokenizer(bundle.tokenizer, **model.config.text_limits)
    data = []
    for task in config.task:
        data.append(load_task(task, task.definition(config.model.default_reader), tokenizer, model.vector_inputs))
        progress.advance(1, f"{task.name}: {counted(len(data[-1].train), 'example')}")
    run = RunDirectory(output, run_digest(config, data, bundle.digest))
    if not overwrite and is_finished(output, run.name):
        check_written(output)
        return _finished(output, names, undefined_metrics(data), started)
    monitor = TrainingMonitor(run, progress)
    settings = config.add_tasks
    new_task: dict[str, Any] = {
        "prompts_per_task": settings.prompts_per_task,
        "lora_rank": settings.lora_rank,
        "pooler_init": settings.pooler_init,
        "seed": settings.seed,
    }
    tasks = SingleTasks(
        ADD_PHASE, data, train_settings(settings), settings, new_task, families=families, family_of=family_of
    )
    with ray_session() as resources:
        if found := run.begin(config):
            progress.note(found)
        monitor.record({"event": "run", "resources": str(resources), "versions": versions()})
        learned = tasks.learn(model, resources, run, monitor, EventQueue())
        new = [item.task for item in data]
        model.add_tasks(new, families=families, family_of=family_of, replace=True, **new_task)
        for name in names:
            load_learned(model, name, learned[name].tensors)
        progress.phase("calibrate")
        examples = {item.task.name: item.evaluation_examples() for item in data}
        fitted = fit_on_ray(model, examples, config, settings.precision, resources)
    set_decisions(model, fitted, config.model_copy(update={"rules": rules}))
    described = _described(bundle, as_read(config, data))
    added = with_decision_metrics({name: learned[name].metrics for name in names}, fitted)
    result = _write(bundle, output, described, added, undefined_metrics(data), run.name, started, fitted)
    run.discard()
    check_written(output)
    return result


def drop_tasks(model_uri: str, names: Sequence[str], output: str, *, overwrite: bool = False) -> ChangeResult:
    """Write a bundle without some isolated tasks of another one; the other tasks stay as they are.

    If `output` holds what the same call has made, nothing is done.

    Raises:
        MtopError: The bundle cannot be read, a task does not exist or other tasks depend on it, `output` holds another
            bundle and is not to be overwritten, or storage fails.
    """
    started = time.monotonic()
    check_apart(model_uri, output)
    check_output(output)
    bundle = load_bundle(model_uri)
    _changeable(bundle).drop_tasks(names)
    rule_groups(bundle.model.tasks)
    run = hashlib.sha256(json.dumps(["drop", bundle.digest, sorted(set(names))]).encode()).hexdigest()[:16]
    if not overwrite and is_finished(output, run):
        return _finished(output, (), {}, started)
    change = {"dropped": list(names), "from": bundle.uri, "from_digest": bundle.digest}
    kept = [task for task in bundle.training_config.get("task", []) if task["name"] not in names]
    return _write(bundle, output, changed_config(bundle, change, kept), {}, {}, run, started)


def _finished(output: str, names: Collection[str], undefined: Mapping[str, str], started: float) -> ChangeResult:
    """What an earlier call left at the output."""
    tasks = read_bundle_info(output).tasks
    metrics = parse_metrics(storage.read_bytes(storage.join(storage.absolute(output), "metrics.json")))
    return ChangeResult(
        output=output,
        tasks=tuple(task.name for task in tasks),
        added_tasks=tuple(task for task in tasks if task.name in names),
        added={name: metrics[name] for name in names},
        undefined=dict(undefined),
        unchanged=tuple(task.name for task in tasks if task.name not in names),
        seconds=time.monotonic() - started,
        was_there=True,
    )


def _load_config(path: str, overrides: Sequence[str], bundle: Bundle, output: str) -> Config:
    section = BackboneConfig.of(bundle.backbone_name, bundle.model.config.text_limits)
    backbone = section.model_dump()
    config = load_config(path, overrides, {"output": output, "backbone": backbone})
    if (config.backbone.name, config.backbone.text_limits) != (section.name, section.text_limits):
        raise ConfigError(
            f"{path}: [backbone] is {config.backbone.model_dump()}, but the bundle {bundle.uri} has {backbone}; added "
            "tasks use the bundle's: leave the section out"
        )
    return config.model_copy(update={"output": output})


def _changeable(bundle: Bundle) -> MTOPModel:
    """The bundle's model, if tasks can come and go without a change of the others.

    Raises:
        BundleError: They cannot.
    """
    if not isinstance(bundle.model, MTOPModel):
        raise BundleError(
            f"the bundle {bundle.uri} has a {bundle.model.config.model_type!r} model; tasks can be added to "
            "and dropped from 'mtop' models only: train it again with the tasks that you want"
        )
    return bundle.model


def _rules_with(tasks: Sequence[Task], config: Config) -> tuple[str, ...]:
    """The rules that the tasks have, and those of the configuration."""
    own = (rule for task in tasks for rule in task.decision.rules)
    return tuple(dict.fromkeys([*own, *(config.rules or ())]))


def _check_names(model: MTOPModel, uri: str, names: Sequence[str], replace: bool) -> None:
    known = model.task_names
    taken = [name for name in names if name in known]
    if taken and not replace:
        raise TaskError(
            f"the bundle {uri} has a task {taken[0]!r} already; name the new one otherwise, or pass "
            "--replace to learn it again (its labels are then computed again, and no others)"
        )
    model.check_removable(taken)
    check_task_names([*(name for name in known if name not in taken), *names])


def _described(bundle: Bundle, config: Config) -> dict[str, Any]:
    """The training configuration of the new bundle: that of the old one, the new tasks, and what was done."""
    values = config.model_dump(mode="json")
    new = {task["name"]: task for task in values["task"]}
    before = bundle.training_config.get("task", [])
    tasks = [new.pop(task["name"], task) for task in before]
    change = {
        "added": [task.name for task in config.task],
        "from": bundle.uri,
        "from_digest": bundle.digest,
        "add_tasks": values["add_tasks"],
    }
    return changed_config(bundle, change, [*tasks, *new.values()], values["family"])


def _write(
    bundle: Bundle,
    output: str,
    training_config: Mapping[str, Any],
    added: Mapping[str, TaskMetrics],
    undefined: Mapping[str, str],
    run: str,
    started: float,
    fitted: Mapping[str, FittedDecision] | None = None,
) -> ChangeResult:
    """Write the changed model, after making sure that the tasks which were there are what they were."""
    model = bundle.model
    fingerprints = task_fingerprints(model, tokenizer_digest(bundle.tokenizer))
    unchanged = [name for name in model.task_names if name not in added]
    for name in unchanged:
        if fingerprints[name] != bundle.fingerprints[name]:
            raise BundleError(
                f"task {name!r} of {bundle.uri} would not stay as it is; nothing was written: report this"
            )
    metrics = {**bundle.metrics, **added}
    reports = {**bundle.decision_reports, **decision_reports(fitted or {})}
    save_bundle(
        output,
        model,
        bundle.tokenizer,
        metrics={name: metrics[name] for name in model.task_names if name in metrics},
        training_config=training_config,
        backbone_name=bundle.backbone_name,
        run=run,
        decisions={name: reports[name] for name in model.task_names if name in reports},
    )
    return ChangeResult(
        output=output,
        tasks=tuple(model.task_names),
        added_tasks=tuple(task for task in model.tasks if task.name in added),
        added=dict(added),
        undefined=dict(undefined),
        unchanged=tuple(unchanged),
        seconds=time.monotonic() - started,
    )
