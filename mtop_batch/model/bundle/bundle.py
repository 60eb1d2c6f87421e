"""Bundles: a trained model with its tokenizer, tasks, metrics and fingerprints in one directory.

    config.json          kind of model (`model_type`), settings, tasks, fingerprints and the checksums of the other
                         files; written last
    model.safetensors    all weights
    tokenizer files      as transformers writes them
    metrics.json         task -> metric -> value
    decisions.json       task -> what was fitted to decide its labels, and what that reaches; reliability.png shows it
    training.json        the resolved configuration
    README.md            the model card, free to be edited

`MTOPModel.from_pretrained` and `transformers.AutoTokenizer.from_pretrained` load a local bundle as well; `load_bundle`
also loads it from object storage and refuses one that is damaged.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mtop_batch import storage
from mtop_batch.decisions.identity import decision_hashes
from mtop_batch.errors import BundleError, one_line
from mtop_batch.model.bundle.card import model_card
from mtop_batch.model.bundle.files import (
    CONFIG,
    DECISIONS,
    FORMAT,
    bundle_name,
    checked_directory,
    file_digest,
    json_digest,
    load_tokenizer,
    read_config,
    read_decisions,
    write_json,
)
from mtop_batch.model.bundle.fingerprints import (
    task_fingerprints,
    tokenizer_digest,
    vector_fingerprint,
)
from mtop_batch.model.bundle.reliability import reliability_plot
from mtop_batch.model.encoder.backbone import quiet_transformers
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import model_class

_CARD, RELIABILITY = "README.md", "reliability.png"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Args:
        model: In evaluation mode, float32, on the CPU.
        tokenizer: The fast tokenizer it was trained with.
        fingerprints: The score hash of every task, by name, in the model's order.
        decisions: The decision hash of every task, likewise; empty for one that decides as every task does.
        uri: Where it was loaded from.
        name: The last part of the URI.
        digest: Of everything in the bundle but the card; two bundles with the same digest are the same.
        backbone_name: What `backbone.name` of the training configuration was.
        metrics: Task -> metric -> value.
        training_config: The resolved configuration it was trained with.
        decision_reports: Task -> what was fitted to decide its labels, on what, and what that reaches.
    """

    model: MultiTaskModel
    tokenizer: PreTrainedTokenizerBase
    fingerprints: dict[str, str]
    decisions: dict[str, str]
    uri: str
    name: str
    digest: str
    backbone_name: str
    metrics: dict[str, dict[str, float]]
    training_config: dict[str, Any]
    decision_reports: dict[str, Any]


def save_bundle(
    uri: str,
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    metrics: Mapping[str, Mapping[str, float]],
    training_config: Mapping[str, Any],
    backbone_name: str,
    run: str = "",
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Write a bundle, `config.json` last: while that is missing, there is no bundle.

    A bundle that is already there is replaced: its `config.json` goes first. If writing fails or is killed, what is
    left has no `config.json` (or, when only the local preparation failed, the old bundle is untouched); run it again.

    Args:
        uri: A directory, local or on object storage.
        model: Weights are stored in the type they have.
        tokenizer: Set to neither truncate nor pad by itself; transformers' own calls set both each time.
        metrics: Task -> metric -> value.
        training_config: JSON-ready.
        backbone_name: What `backbone.name` of the configuration was.
        run: Digest of the training run that made it (`engine.training.run_directory`); empty if none is known.
        decisions: Task -> what was fitted to decide its labels, as `training.calibration.fit_decisions` describes it.

    Returns:
        The fingerprint (score hash) of every task.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    tokenizer_sha = tokenizer_digest(tokenizer)
    fingerprints = task_fingerprints(model, tokenizer_sha)
    described = {
        "format": FORMAT,
        "backbone": backbone_name,
        "run": run,
        "fingerprints": fingerprints,
        "vector_fingerprint": vector_fingerprint(model, tokenizer_sha),
        "pass_per_task": model.pass_per_task,
    }
    if model.passes.layers:
        described["families"] = {key: value for key, value in asdict(model.passes).items() if key != "per_task"}
    with tempfile.TemporaryDirectory(prefix="mtop_bundle-") as name:
        directory = Path(name)
        with quiet_transformers():
            model.save_pretrained(directory, max_shard_size="1TB")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(directory)
        write_json(directory / "metrics.json", metrics)
        write_json(directory / "training.json", training_config)
        write_json(directory / DECISIONS, decisions or {})
        _seal(directory, described)
        plot = reliability_plot(decisions or {})
        if plot is not None:  # beside the card, and no part of the bundle's digest either
            (directory / RELIABILITY).write_bytes(plot)
        card = model_card(
            bundle_name(uri),
            model.config.model_type,
            model.tasks,
            metrics,
            training_config,
            backbone_name,
            model.config.text_limits,
            model.passes,
            decisions or {},
            RELIABILITY if plot is not None else "",
        )
        (directory / _CARD).write_text(card)
        _put(directory, uri)
    return fingerprints


def load_bundle(uri: str) -> Bundle:
    """Load a bundle after checking that it is whole and unchanged; no pickle is read and no remote code is run.

    One on object storage is copied to a directory of this user below the system's temporary directory, named by the
    bundle's digest, which all processes of a machine share; a copy that was damaged there is fetched again.

    Raises:
        BundleError: There is no bundle, it is incomplete or damaged, or another version wrote it.
        LabelTableError: The storage cannot be reached or refuses.
    """
    config = read_config(uri)
    directory = checked_directory(uri, config)
    described = config["bundle"]
    try:
        with quiet_transformers():
            loaded: Any = model_class(config["model_type"]).from_pretrained(
                str(directory), use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        metrics = parse_metrics((directory / "metrics.json").read_bytes())
        training_config = json.loads((directory / "training.json").read_bytes())
    except Exception as error:  # each kind of model and each encoder fails in its own ways
        raise BundleError(
            f"the bundle {uri} cannot be loaded: {one_line(error)}; train it again with this version"
        ) from error
    model, report = loaded
    if without := sorted(report["missing_keys"]):  # they would be random
        raise BundleError(f"the weights of the bundle {uri} lack {without[0]}; train it again with this version")
    return Bundle(
        model=model.eval(),
        tokenizer=load_tokenizer(directory, uri),
        fingerprints={name: described["fingerprints"][name] for name in model.task_names},
        decisions=decision_hashes(model.tasks, described["fingerprints"]),
        uri=uri,
        name=bundle_name(uri),
        digest=described["digest"],
        backbone_name=described["backbone"],
        metrics=metrics,
        training_config=training_config,
        decision_reports=read_decisions(str(directory)),
    )


def parse_metrics(data: bytes) -> dict[str, dict[str, float]]:
    """What `metrics.json` of a bundle says; null stands for a value that is no number."""
    found: dict[str, dict[str, float | None]] = json.loads(data)
    return {
        task: {name: math.nan if value is None else value for name, value in values.items()}
        for task, values in found.items()
    }


def _seal(directory: Path, described: dict[str, Any]) -> None:
    """Add to `config.json` what the bundle holds, the checksums of its files, and a checksum of all that."""
    config = json.loads((directory / CONFIG).read_bytes())
    files = {path.name: file_digest(path) for path in sorted(directory.iterdir()) if path.name != CONFIG}
    config["bundle"] = {**described, "files": files}
    config["bundle"]["digest"] = json_digest(config)
    write_json(directory / CONFIG, config)


def _put(directory: Path, uri: str) -> None:
    """Copy a directory's files to the URI, `config.json` last."""
    uri = storage.absolute(uri)
    storage.delete(storage.join(uri, CONFIG))
    for path in sorted(directory.iterdir(), key=lambda path: (path.name == CONFIG, path.name)):
        storage.upload(path, storage.join(uri, path.name))
