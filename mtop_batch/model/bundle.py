"""Bundles: a trained model with its tokenizer, tasks, metrics and fingerprints in one directory.

    config.json          settings, tasks, fingerprints and the checksums of the other files; written last
    model.safetensors    all weights
    tokenizer files      as transformers writes them
    metrics.json         task -> metric -> value
    training.json        the resolved configuration
    README.md            the model card, free to be edited

`MTOPModel.from_pretrained` and `transformers.AutoTokenizer.from_pretrained` load a local bundle as well; `load_bundle`
also loads it from object storage and refuses one that is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtop_batch import storage
from mtop_batch.errors import BundleError, MtopError
from mtop_batch.model.card import model_card
from mtop_batch.model.fingerprints import json_digest, task_fingerprints, tokenizer_digest, vector_fingerprint
from mtop_batch.model.mtop import MTOPModel, tensor_name
from mtop_batch.model.mtop_config import MTOPConfig
from mtop_batch.model.vectors import PROBE_TENSORS, StackedProbes
from mtop_batch.tasks import Task

FORMAT = 1
_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's `config.json` says: enough to plan a labelling run without loading any weights.

    Args:
        tasks: In the model's order.
        fingerprints: Of every task, by name, in the same order.
        vector_fingerprint: Of document vectors; empty in bundles of versions that did not know them.
        max_tokens: Where texts are cut.
        uri: Where it was read.
        name: The last part of the URI.
        digest: Of everything in the bundle but the card.
    """

    tasks: tuple[Task, ...]
    fingerprints: dict[str, str]
    vector_fingerprint: str
    max_tokens: int
    uri: str
    name: str
    digest: str


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Args:
        model: In evaluation mode, float32, on the CPU.
        tokenizer: The fast tokenizer it was trained with.
        fingerprints: Of every task, by name, in the model's order.
        uri: Where it was loaded from.
        name: The last part of the URI.
        digest: Of everything in the bundle but the card; two bundles with the same digest are the same.
        backbone_name: What `backbone.name` of the training configuration was.
        metrics: Task -> metric -> value.
        training_config: The resolved configuration it was trained with.
    """

    model: MTOPModel
    tokenizer: PreTrainedTokenizerBase
    fingerprints: dict[str, str]
    uri: str
    name: str
    digest: str
    backbone_name: str
    metrics: dict[str, dict[str, float]]
    training_config: dict[str, Any]


def bundle_name(uri: str) -> str:
    """The name of the bundle at `uri`: the last part of its path.

    >>> bundle_name("s3://models/news/2026-11/")
    '2026-11'
    """
    return storage.absolute(uri).rsplit("/", 1)[-1]


def save_bundle(
    uri: str,
    model: MTOPModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    metrics: Mapping[str, Mapping[str, float]],
    training_config: Mapping[str, Any],
    backbone_name: str,
) -> dict[str, str]:
    """Write a bundle, `config.json` last: while that is missing, there is no bundle.

    A bundle that is already there is replaced: its `config.json` goes first. If writing fails or is killed, what is
    left has no `config.json` (or, when only the local preparation failed, the old bundle is untouched), and running
    it again puts it right.

    Args:
        uri: A directory, local or on object storage.
        model: Weights are stored in the type they have.
        tokenizer: Set to neither truncate nor pad by itself; transformers' own calls set both each time.
        metrics: Task -> metric -> value.
        training_config: JSON-ready.
        backbone_name: What `backbone.name` of the configuration was.

    Returns:
        The fingerprint of every task.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    tokenizer_sha = tokenizer_digest(tokenizer)
    fingerprints = task_fingerprints(model, tokenizer_sha)
    described = {
        "format": FORMAT,
        "backbone": backbone_name,
        "fingerprints": fingerprints,
        "vector_fingerprint": vector_fingerprint(model, tokenizer_sha),
    }
    with tempfile.TemporaryDirectory(prefix="mtop_bundle-") as name:
        directory = Path(name)
        model.save_pretrained(directory, max_shard_size="1TB")
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(directory)
        _write_json(directory / "metrics.json", metrics)
        _write_json(directory / "training.json", training_config)
        _seal(directory, described)
        card = model_card(
            bundle_name(uri), model.tasks, metrics, training_config, backbone_name, model.config.max_tokens
        )
        (directory / _CARD).write_text(card)
        _put(directory, uri)
    return fingerprints


def load_bundle(uri: str) -> Bundle:
    """Load a bundle after checking that it is whole and unchanged; no pickle is read and no remote code is run.

    One on object storage is copied to a directory of this user below the system's temporary directory, named by the
    bundle's digest, which all processes of a machine share; a copy that was damaged there is fetched anew.

    Raises:
        BundleError: There is no bundle, it is incomplete or damaged, or another version wrote it.
        LabelTableError: The storage cannot be reached or refuses.
    """
    config = _read_config(uri)
    directory = _checked_directory(uri, config)
    described = config["bundle"]
    try:
        model = MTOPModel.from_pretrained(str(directory), use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, KeyError, MtopError) as error:
        raise BundleError(f"the bundle {uri} cannot be loaded: {error}; train it again with this version") from error
    return Bundle(
        model=model.eval(),
        tokenizer=_load_tokenizer(directory, uri),
        fingerprints={name: described["fingerprints"][name] for name in model.task_names},
        uri=uri,
        name=bundle_name(uri),
        digest=described["digest"],
        backbone_name=described["backbone"],
        metrics=json.loads((directory / "metrics.json").read_bytes()),
        training_config=json.loads((directory / "training.json").read_bytes()),
    )


def read_bundle_info(uri: str) -> BundleInfo:
    """Read what a bundle says of itself, without its weights.

    Raises:
        BundleError: There is no bundle, its `config.json` is damaged, or another version wrote it.
        LabelTableError: The storage cannot be reached or refuses.
    """
    config = _read_config(uri)
    tasks = tuple(Task.from_dict(entry["task"]) for entry in config["tasks"])
    described = config["bundle"]
    return BundleInfo(
        tasks=tasks,
        fingerprints={task.name: described["fingerprints"][task.name] for task in tasks},
        vector_fingerprint=described.get("vector_fingerprint", ""),
        max_tokens=config["max_tokens"],
        uri=uri,
        name=bundle_name(uri),
        digest=described["digest"],
    )


def load_probes(uri: str, tasks: Sequence[str]) -> StackedProbes:
    """Load the weights of some probes alone; everything else as `load_bundle` does it.

    Args:
        uri: The bundle.
        tasks: At least one; all probes of the bundle.
    """
    directory = _checked_directory(uri, _read_config(uri))
    with safe_open(directory / _WEIGHTS, framework="pt") as weights:
        probes = [{key: weights.get_tensor(tensor_name(task, key)) for key in PROBE_TENSORS} for task in tasks]
    return StackedProbes.stack(probes)


def load_bundle_tokenizer(uri: str) -> PreTrainedTokenizerBase:
    """Load a bundle's tokenizer alone; everything else as `load_bundle` does it."""
    config = _read_config(uri)
    return _load_tokenizer(_checked_directory(uri, config, without=_WEIGHTS), uri)


def _load_tokenizer(directory: Path, uri: str) -> PreTrainedTokenizerBase:
    try:
        config = MTOPConfig.from_pretrained(str(directory))
        return AutoTokenizer.from_pretrained(str(directory), config=config, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise BundleError(
            f"the tokenizer of {uri} cannot be loaded: {error}; train it again with this version"
        ) from error


def _checked_directory(uri: str, config: dict[str, Any], *, without: str = "") -> Path:
    """A local directory with the bundle's files, all of them checked but one."""
    directory = _fetch(uri, config) if storage.is_remote(uri) else Path(storage.absolute(uri))
    _check_files(directory, {name: sha for name, sha in config["bundle"]["files"].items() if name != without}, uri)
    return directory


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _seal(directory: Path, described: dict[str, Any]) -> None:
    """Add to `config.json` what the bundle holds, the checksums of its files, and a checksum of all that."""
    config = json.loads((directory / _CONFIG).read_bytes())
    files = {path.name: _sha256(path) for path in sorted(directory.iterdir()) if path.name != _CONFIG}
    config["bundle"] = {**described, "files": files}
    config["bundle"]["digest"] = json_digest(config)
    _write_json(directory / _CONFIG, config)


def _put(directory: Path, uri: str) -> None:
    """Copy a directory's files to the URI, `config.json` last."""
    storage.delete(storage.join(uri, _CONFIG))
    for path in sorted(directory.iterdir(), key=lambda path: (path.name == _CONFIG, path.name)):
        storage.upload(path, storage.join(uri, path.name))


def _read_config(uri: str) -> dict[str, Any]:
    """The checked content of a bundle's `config.json`."""
    try:
        config = json.loads(storage.read_bytes(storage.join(uri, _CONFIG)))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"there is no bundle at {uri}: it has no {_CONFIG}; check the path, or train one with `mtop train`"
        ) from None
    except ValueError as error:
        raise BundleError(f"{_CONFIG} of the bundle {uri} is damaged ({error}); write the bundle again") from error
    if not isinstance(config, dict) or config.get("model_type") != MTOPConfig.model_type:
        raise BundleError(f"{uri} holds a model of another kind, not an MTOP bundle; train one with `mtop train`")
    described = config.get("bundle")
    if not isinstance(described, dict):
        raise BundleError(f"{uri} holds an MTOP model but no bundle; write it with mtop_batch.model.save_bundle")
    if described.get("format") != FORMAT:
        raise BundleError(
            f"the bundle {uri} has format {described.get('format')!r}, this version reads {FORMAT}; "
            "use the version of mtop_batch that wrote it, or train again"
        )
    unsealed = {**config, "bundle": {key: value for key, value in described.items() if key != "digest"}}
    if described.get("digest") != json_digest(unsealed):
        raise BundleError(f"{_CONFIG} of the bundle {uri} was changed after it was written; write the bundle again")
    return config


def _check_files(directory: Path, files: Mapping[str, str], uri: str) -> None:
    for name, sha256 in files.items():
        if not (directory / name).is_file():
            raise BundleError(f"the bundle {uri} lacks {name}; copy or write the bundle again")
        if _sha256(directory / name) != sha256:
            raise BundleError(f"{name} of the bundle {uri} is damaged or was changed; copy or write the bundle again")


def _fetch(uri: str, config: dict[str, Any]) -> Path:
    """A local copy of a remote bundle."""
    cache = Path(tempfile.gettempdir()) / f"mtop_batch-{os.getuid()}"
    directory = cache / config["bundle"]["digest"]
    if directory.is_dir():
        try:
            _check_files(directory, config["bundle"]["files"], uri)
        except BundleError:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            return directory
    cache.mkdir(mode=0o700, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=cache))
    try:
        for name in config["bundle"]["files"]:
            storage.download(storage.join(uri, name), partial / name)
        _write_json(partial / _CONFIG, config)
        partial.rename(directory)
    except FileNotFoundError as error:
        raise BundleError(f"the bundle {uri} is incomplete ({error}); copy or write the bundle again") from error
    except OSError:
        if not directory.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
