"""Encoders that have learned from source tasks before a run begins with them (`mtop_batch.training.prefinetuning`).

A pre-finetuning depends on the sources and on how it is done, and on no seed of a run. So it is kept by the digest of
these, for all runs of a directory:

<kept>/<digest>/               a backbone directory (`mtop_batch.model.prefinetuned`), `families.json` last
<kept>/<digest>.unfinished/    what an interrupted one left
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtop_batch import storage
from mtop_batch.config.load import validate
from mtop_batch.config.sections import Config
from mtop_batch.experiments.methods.families import family_of
from mtop_batch.experiments.runs.clock import Clock
from mtop_batch.experiments.runs.prepared import Source
from mtop_batch.experiments.runs.specs import RunSpec
from mtop_batch.experiments.runs.started import StartedRun
from mtop_batch.model.encoder.backbone import load_backbone
from mtop_batch.model.prefinetuned import FAMILIES_FILE, read_described, save_prefinetuned
from mtop_batch.training.one_process import Encoder, train_whole
from mtop_batch.training.prefinetuning import prefinetuning_model
from mtop_batch.training.settings import TaskData
from mtop_batch.training.unfinished import Unfinished

FORMAT = 1


@dataclass(frozen=True)
class Beginning:
    """What a training begins with.

    Args:
        config: Its own, with the backbone that is to be read.
        encoder: That backbone, loaded.
        seconds: What the pre-finetuning took, whenever it was done; none without one.
    """

    config: Config
    encoder: Encoder
    seconds: float = 0.0


@contextmanager
def beginning(run: StartedRun) -> Iterator[Beginning]:
    """Within the `with` block there is what a training of a run begins with.

    That is the encoder as pretrained where no source task is of a family of the training.
    """
    sources = _sources(run)
    if not sources:
        yield Beginning(run.config, run.encoder)
        return
    own, examples = _of_families(run, sources)
    digest = _digest(run.spec, own)
    place = None if run.kept is None else storage.join(run.kept, digest)
    unfinished = run.unfinished.part(digest) if place is None else Unfinished(f"{place}.unfinished")
    with tempfile.TemporaryDirectory(prefix="mtop_prefinetuned-") as name:
        directory = Path(name)
        if place is None or not _read(place, directory):
            _prefinetune(replace(run, config=own, unfinished=unfinished), examples, directory)
            if place is not None:
                _write(directory, place)
            unfinished.discard()
        begins = run.config.model_copy(update={"backbone": run.config.backbone.model_copy(update={"name": name})})
        seconds = float(read_described(directory)["seconds"])
        yield Beginning(begins, Encoder(load_backbone(name), run.encoder.tokenizer), seconds)


def _sources(run: StartedRun) -> list[Source]:
    """The source tasks of those families that the training's tasks are of; regressions cannot be learned from."""
    if run.spec.prefinetune is None:
        return []
    examples = run.examples
    sources = run.data.sources or [Source(task, examples[task.name].train) for task in run.config.task]
    wanted = {family_of(task.kind) for task in run.config.task}
    return [
        source for source in sources if family_of(source.config.kind) in wanted and source.config.kind != "regression"
    ]


def _of_families(run: StartedRun, sources: list[Source]) -> tuple[Config, list[TaskData]]:
    """How to learn from source tasks before a training, and the examples."""
    families = [family.model_dump() for family in run.config.family]
    tables = [
        {
            **source.config.model_dump(exclude={"reads", "class_weights", "rate"}),
            "family": family_of(source.config.kind) if families else None,
        }
        for source in sources
    ]
    prefinetune = dict(run.spec.prefinetune or {})
    del prefinetune["sources"]
    most = prefinetune.pop("max_examples")
    named = {table["family"] for table in tables}
    values = {
        "output": "none",
        "backbone": run.config.backbone.model_dump(),
        "train": prefinetune,
        "task": tables,
        "family": [family for family in families if family["name"] in named],
    }
    own = validate(values, "pre-finetuning", evaluates=False)
    examples = [source.examples.draw(most, own.train.seed) for source in sources]
    return own, [TaskData(task, drawn) for task, drawn in zip(own.tasks(), examples, strict=True)]


def _digest(spec: RunSpec, own: Config) -> str:
    """Of all that decides what comes out."""
    prefinetune = spec.prefinetune or {}
    values: dict[str, Any] = {
        "format": FORMAT,
        "prefinetune": prefinetune,
        "tasks": [task.name for task in own.task],
        "families": [family.model_dump() for family in own.family],
        "backbone": spec.backbone,
        "max_tokens": spec.max_tokens,
    }
    if not prefinetune["sources"]:
        values["examples"] = [spec.data_digest, spec.examples, spec.fraction]
        if spec.among:
            values["among"] = spec.among["digest"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _prefinetune(run: StartedRun, examples: list[TaskData], directory: Path) -> None:
    clock = Clock(run.unfinished)
    clock.start("prefinetune")
    model, sources = prefinetuning_model(run.config, copy.deepcopy(run.encoder.backbone), examples)
    trained = train_whole(model, run.config, sources, run.worker, run.unfinished, evaluates=False)
    seconds = clock.stop()["prefinetune"]
    save_prefinetuned(directory, model, run.encoder.tokenizer, {"num_steps": trained.num_steps, "seconds": seconds})


def _read(place: str, directory: Path) -> bool:
    """Fetch what is kept; whether it is there."""
    if not storage.is_file(storage.join(place, FAMILIES_FILE)):
        return False
    for info in storage.list_files(place):
        (directory / info.path).write_bytes(storage.read_bytes(storage.join(place, info.path)))
    return True


def _write(directory: Path, place: str) -> None:
    """Keep a directory; it counts when its last file is there."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name == FAMILIES_FILE):
        storage.write_bytes(storage.join(place, path.name), path.read_bytes())
