"""`mtop prefinetune`: from a configuration of source tasks to a backbone with the LoRA of its families."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.events import Event, EventQueue
from mtop_batch.engine.monitoring.monitor import TrainingMonitor
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.session import ray_session
from mtop_batch.engine.train import Parts, check_config, check_workers, prepare, versions
from mtop_batch.engine.training.phases import Phases
from mtop_batch.engine.training.run_directory import RunDirectory, run_digest
from mtop_batch.errors import ConfigError
from mtop_batch.lines import counted
from mtop_batch.model.prefinetuned import read_described, save_prefinetuned
from mtop_batch.training.prefinetuning import check_sources, prefinetuning_model
from mtop_batch.training.settings import TaskData
from mtop_batch.training.sources import TokenTeacher, load_teacher, read_source


@dataclass(frozen=True)
class PrefinetuneResult:
    """A backbone that learned from source tasks.

    Args:
        output: Its directory.
        tasks: Names of the source tasks.
        families: Names of the families whose LoRA is in it.
        num_steps: Of the training.
        examples_per_s: Of the training.
        seconds: Of this command.
        was_there: It is that of an earlier call; nothing was trained.
    """

    output: str
    tasks: tuple[str, ...]
    families: tuple[str, ...]
    num_steps: int
    examples_per_s: float
    seconds: float
    was_there: bool = False


def prefinetune(
    config: Config,
    *,
    progress: Progress,
    on_event: Callable[[Event], None] | None = None,
    overwrite: bool = False,
) -> PrefinetuneResult:
    """Let an encoder learn from all tasks of a configuration, and write it to the configuration's `output`.

    If it fails or is killed, `<output>.training` holds what was done, and the same call resumes from there; `output` is
    there when all is done. If it holds what the same call has made, nothing is done.

    Args:
        config: As `load_config` returns it; of its sections `[backbone]`, `[train]`, `[[family]]`, `[[task]]` and
            `[[source]]` count.
        progress: Where to show how it gets on; it is entered already.
        on_event: Called with every event.
        overwrite: Replace what an earlier call has left at `output`.

    Raises:
        MtopError: The configuration, the backbone or the examples cannot work, `output` holds something else, or
            workers failed more often than `train.max_failures`.
    """
    started = time.monotonic()
    check_sources(config)
    check_config(config)
    output = _local(config.output)
    parts = prepare(config, progress, evaluates=False)
    teachers, of_sources = _sources(config, parts, progress)
    data = [*parts.data, *of_sources]
    digests = "".join(f" {name}={teacher.digest}" for name, teacher in teachers.items())
    run = RunDirectory(config.output, run_digest(config, data, f"prefinetune{digests}"))
    known = _known(output, overwrite)
    names = tuple(item.task.name for item in data)
    families = tuple(family.name for family in config.family)
    if known.get("run") == run.name and not overwrite:
        return PrefinetuneResult(
            config.output, names, families, known["num_steps"], 0.0, time.monotonic() - started, was_there=True
        )
    if known and not overwrite:
        raise ConfigError(
            f"output = {config.output!r} holds the backbone of another configuration or of other examples; name "
            "another output, or pass --overwrite to replace it"
        )
    with ray_session() as resources:
        check_workers(config, resources, progress)
        if found := run.begin(config):
            progress.note(found)
        monitor = TrainingMonitor(run, progress, *([on_event] if on_event else []))
        monitor.record({"event": "run", "resources": str(resources), "versions": versions()})
        model, sources = prefinetuning_model(config, parts.backbone, data, teachers)
        phases = Phases(config, sources, resources, run, monitor, EventQueue(), evaluates=False)
        trained = phases.all_tasks(model)
    described = {"run": run.name, "num_steps": trained.num_steps, "tasks": names, "from": config.backbone.name}
    unfinished = Path(f"{output}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_prefinetuned(unfinished, model, parts.tokenizer, described)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(unfinished, output)
    speed = monitor.examples_per_s(trained.phase)
    run.discard()
    return PrefinetuneResult(config.output, names, families, trained.num_steps, speed, time.monotonic() - started)


def _sources(config: Config, parts: Parts, progress: Progress) -> tuple[dict[str, TokenTeacher], list[TaskData]]:
    """Source -> its teacher, of those that have one; and the texts of all."""
    teachers: dict[str, TokenTeacher] = {}
    data = []
    for source in config.source:
        teacher = load_teacher(source, parts.tokenizer, config.backbone.max_tokens)
        if teacher is not None:
            teachers[source.name] = teacher
        item = read_source(source, teacher, parts.text_tokenizer, config.train.seed)
        data.append(replace(item, rate=source.rate))
        progress.advance(1, f"{source.name}: {counted(len(item.train), 'text' if teacher else 'pair')}")
    return teachers, data


def _local(output: str) -> Path:
    """The directory to write to.

    Raises:
        ConfigError: It is on object storage.
    """
    place = storage.absolute(output)
    if storage.is_remote(place):
        raise ConfigError(
            f"output = {output!r} is on object storage, where backbone.name cannot name it; name a local directory"
        )
    return Path(place)


def _known(output: Path, overwrite: bool) -> dict[str, Any]:
    """What an earlier call has left at the output."""
    known = read_described(output)
    if not known and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"output = {str(output)!r} is there already and is no backbone of mtop prefinetune"
            f"{', so --overwrite does not replace it' if overwrite else ''}; name another directory"
        )
    return known
