"""The files of a bundle: what they say of it, whether they are whole, and its tokenizer.

Nothing here imports torch, which takes seconds and hundreds of megabytes, or transformers, unless the tokenizer is
loaded: the driver of a labelling job and the processes that read and write need no more of a bundle than this.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open

from mtop_batch import storage
from mtop_batch.decisions.identity import decision_hashes
from mtop_batch.decisions.rules import rule_groups
from mtop_batch.errors import BundleError, TaskError, one_line
from mtop_batch.families import EncoderPasses
from mtop_batch.json_text import to_json
from mtop_batch.model.foreign import foreign_settings
from mtop_batch.tasks import Task, VectorInput, check_task_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase  # slow to import, for those who tokenise nothing

FORMAT = 3
CONFIG, WEIGHTS, DECISIONS = "config.json", "model.safetensors", "decisions.json"
_TEXT_LIMITS = {"max_tokens", "max_windows", "window_overlap"}
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]


class _TaskEntry(BaseModel):
    task: dict[str, Any]


class _Described(BaseModel):
    backbone: str
    fingerprints: dict[str, _Hash]
    vector_fingerprint: str
    pass_per_task: bool
    families: dict[str, Any] = {}
    files: dict[_FileName, _Hash]
    digest: _Hash


class _Config(BaseModel):
    """What this module and the loading of a bundle take from its configuration."""

    model_type: str
    max_tokens: Annotated[int, Field(gt=0)]
    max_windows: Annotated[int, Field(gt=0)] = 1
    window_overlap: Annotated[int, Field(ge=0)] = 0
    inputs: list[VectorInput] = []
    tasks: list[_TaskEntry]
    backbone_config: dict[str, Any]
    bundle: _Described


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's `config.json` says: enough to plan a labelling run without loading any weights.

    Args:
        tasks: In the model's order.
        kind: Of the model.
        fingerprints: The score hash of every task, by name, in the same order.
        decisions: The decision hash of every task, by name, in the same order; empty for one that decides as every task
            does.
        vector_fingerprint: Of document vectors; empty if the model has none.
        passes: How often a text goes through the encoder.
        text_limits: How much of a text is read, as `TextTokenizer` takes it.
        inputs: What is read beside each text.
        uri: Where it was read.
        name: The last part of the URI.
        digest: Of everything in the bundle but the card.
        run: Digest of the training run that made it; empty if none is known.
    """

    tasks: tuple[Task, ...]
    kind: str
    fingerprints: dict[str, str]
    decisions: dict[str, str]
    vector_fingerprint: str
    passes: EncoderPasses
    text_limits: dict[str, int]
    inputs: tuple[VectorInput, ...]
    uri: str
    name: str
    digest: str
    run: str = ""


def bundle_name(uri: str) -> str:
    """The name of the bundle at `uri`: the last part of its path.

    >>> bundle_name("s3://models/news/2026-11/")
    '2026-11'
    """
    return storage.absolute(uri).rsplit("/", 1)[-1]


def read_bundle_info(uri: str) -> BundleInfo:
    """Read what a bundle says of itself, without its weights.

    Raises:
        BundleError: There is no bundle, its `config.json` is damaged, or another version wrote it.
        LabelTableError: The storage cannot be reached or refuses.
    """
    config = read_config(uri)
    tasks, read = _tasks(config), _Config.model_validate(config)
    described = config["bundle"]
    return BundleInfo(
        tasks=tasks,
        kind=config["model_type"],
        fingerprints={task.name: described["fingerprints"][task.name] for task in tasks},
        decisions=decision_hashes(tasks, described["fingerprints"]),
        vector_fingerprint=described["vector_fingerprint"],
        passes=EncoderPasses(described["pass_per_task"], **described.get("families", {})),
        text_limits=read.model_dump(include=_TEXT_LIMITS),
        inputs=tuple(read.inputs),
        uri=uri,
        name=bundle_name(uri),
        digest=described["digest"],
        run=described.get("run", ""),
    )


def read_decisions(uri: str) -> dict[str, Any]:
    """What was fitted to decide the labels of a bundle's tasks, by task; nothing where nothing was.

    Raises:
        BundleError: The file is damaged.
        LabelTableError: The storage cannot be reached or refuses.
    """
    try:
        found = json.loads(storage.read_bytes(storage.join(storage.absolute(uri), DECISIONS)))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise BundleError(f"{DECISIONS} of the bundle {uri} is damaged ({error}); write the bundle again") from error
    return found if isinstance(found, dict) else {}


def check_bundle(uri: str) -> None:
    """Check that a bundle is whole and unchanged, without loading it.

    One on object storage is copied as by `load_bundle`.

    Raises:
        BundleError, LabelTableError: As for `load_bundle`.
    """
    checked_directory(uri, read_config(uri))


def load_bundle_tokenizer(uri: str) -> PreTrainedTokenizerBase:
    """Load a bundle's tokenizer alone; everything else as `load_bundle` does it."""
    config = read_config(uri)
    return load_tokenizer(checked_directory(uri, config, without=WEIGHTS), uri)


def load_probes(uri: str, tasks: Sequence[str]) -> list[dict[str, npt.NDArray[np.float32]]]:
    """Load the weights of some probes alone; everything else as `load_bundle` does it.

    Args:
        uri: The bundle.
        tasks: Probes of the bundle.

    Returns:
        For each, `weight` (C, D) and `bias` (C).
    """
    directory = checked_directory(uri, read_config(uri))
    try:
        with safe_open(directory / WEIGHTS, framework="numpy") as weights:
            tensors = [
                {key: weights.get_tensor(f"task_modules.task_{task}.{key}") for key in ("weight", "bias")}
                for task in tasks
            ]
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{WEIGHTS} of {uri} cannot be loaded: {one_line(error)}; write the bundle again") from error
    return [{key: value.astype(np.float32) for key, value in probe.items()} for probe in tensors]


def load_tokenizer(directory: Path, uri: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a bundle's directory; `uri` is for messages.

    Raises:
        BundleError: It cannot be loaded.
    """
    from transformers import PreTrainedTokenizerFast

    try:
        # Its rules are in tokenizer.json; the class of its family would add nothing but the import of torch.
        return PreTrainedTokenizerFast.from_pretrained(str(directory))
    except Exception as error:  # the library fails in many ways, one of which is an exception without a class
        raise BundleError(
            f"the tokenizer of {uri} cannot be loaded: {one_line(error)}; train it again with this version"
        ) from error


def checked_directory(uri: str, config: dict[str, Any], *, without: str = "") -> Path:
    """A local directory with the bundle's files, all of them checked but one."""
    uri = storage.absolute(uri)
    directory = _fetch(uri, config) if storage.is_remote(uri) else Path(uri)
    _check_files(directory, {name: sha for name, sha in config["bundle"]["files"].items() if name != without}, uri)
    return directory


def read_config(uri: str) -> dict[str, Any]:
    """The checked content of a bundle's `config.json`."""
    try:
        config = json.loads(storage.read_bytes(storage.join(storage.absolute(uri), CONFIG)))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"there is no bundle at {uri}: it has no {CONFIG}; check the path, or train one with `mtop train`"
        ) from None
    except ValueError as error:
        raise BundleError(f"{CONFIG} of the bundle {uri} is damaged ({error}); write the bundle again") from error
    described = config.get("bundle") if isinstance(config, dict) else None
    if not isinstance(described, dict):
        raise BundleError(
            f"{uri} holds a model but no bundle; train one with `mtop train`, or write this one with "
            "mtop_batch.model.bundle.bundle.save_bundle"
        )
    if described.get("format") != FORMAT:
        raise BundleError(
            f"the bundle {uri} has format {described.get('format')!r}, this version reads {FORMAT}; "
            "use the version of mtop_batch that wrote it, or train again"
        )
    unsealed = {**config, "bundle": {key: value for key, value in described.items() if key != "digest"}}
    if described.get("digest") != json_digest(unsealed):
        raise BundleError(f"{CONFIG} of the bundle {uri} was changed after it was written; write the bundle again")
    if problem := _problem(config):
        raise BundleError(f"{CONFIG} of the bundle {uri} cannot be right: {problem}; write the bundle again")
    return config


def _problem(config: dict[str, Any]) -> str | None:
    """What is wrong with a configuration that has the right checksum, if anything: it may come from anywhere."""
    try:
        described = _Config.model_validate(config).bundle
        tasks = _tasks(config)
        names = [task.name for task in tasks]
        check_task_names(names)
        rule_groups(tasks)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (TaskError, TypeError) as error:
        return one_line(error)
    if missing := set(names) - described.fingerprints.keys():
        return f"bundle.fingerprints lacks {sorted(missing)[0]!r}"
    if WEIGHTS not in described.files:
        return f"bundle.files lacks {WEIGHTS!r}"
    for key, value in foreign_settings(config).items():
        return f"{key} = {value!r} asks for other code or weights than the bundle's own"
    return None


def _tasks(config: dict[str, Any]) -> tuple[Task, ...]:
    return tuple(Task.from_dict(entry["task"]) for entry in config["tasks"])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs."""
    path.write_text(to_json(value, indent=2) + "\n")


def _check_files(directory: Path, files: Mapping[str, str], uri: str) -> None:
    for name, sha256 in files.items():
        if not (directory / name).is_file():
            raise BundleError(f"the bundle {uri} lacks {name}; copy or write the bundle again")
        if file_digest(directory / name) != sha256:
            raise BundleError(f"{name} of the bundle {uri} is damaged or was changed; copy or write the bundle again")


def _fetch(uri: str, config: dict[str, Any]) -> Path:
    """A local copy of a remote bundle."""
    cache = _private_cache()
    directory = cache / config["bundle"]["digest"]
    if directory.is_dir():
        if _is_copy(directory, config, uri):
            return directory
        shutil.rmtree(directory, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(dir=cache))
    try:
        for name in config["bundle"]["files"]:
            storage.download(storage.join(uri, name), partial / name)
        write_json(partial / CONFIG, config)
        partial.rename(directory)
    except FileNotFoundError as error:
        raise BundleError(f"the bundle {uri} is incomplete ({error}); copy or write the bundle again") from error
    except OSError:
        if not directory.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _is_copy(directory: Path, config: dict[str, Any], uri: str) -> bool:
    """Whether a directory of the cache has what the bundle has."""
    try:
        _check_files(directory, config["bundle"]["files"], uri)
        return bool(json.loads((directory / CONFIG).read_text()) == config)
    except (BundleError, OSError, ValueError):
        return False


def _private_cache() -> Path:
    """Where copies of remote bundles lie: a directory that nobody but this user can read or change.

    Raises:
        BundleError: It is somebody else's, or others may use it.
    """
    cache = Path(tempfile.gettempdir()) / f"mtop_batch-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    status = cache.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise BundleError(
            f"{cache}, where copies of remote bundles are kept, is not a directory of this user alone; remove it, run "
            f"`chmod 700 {cache}` if it is yours, or set TMPDIR to another place"
        )
    return cache


def file_digest(path: Path) -> str:
    """A hash of a file: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """A hash of JSON-ready values, whatever the order of their keys: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
