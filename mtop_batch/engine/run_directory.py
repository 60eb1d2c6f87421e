"""What an interrupted training run leaves behind, and where the same command finds it again.

    <output>.training/
      <digest>/                        one run: a configuration and its examples
        config.json                    that configuration
        events.jsonl                   the events so far
        tasks/<task>.safetensors       what each task learned alone: a warm start, or an added task
        checkpoint_*/                  as Ray Train names them, two at most, and
        checkpoint_manager_snapshot.json   Ray Train's own note of which of them count

It lies beside the bundle, on the same storage, and goes when the bundle is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.fs as pafs
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2.api.result import Result
from safetensors.torch import load, save
from torch import Tensor

import mtop_batch
from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.data.examples import LabelledTokens
from mtop_batch.engine.events import Event
from mtop_batch.training.settings import TaskData

_SNAPSHOT = "checkpoint_manager_snapshot.json"


def run_digest(config: Config, data: Sequence[TaskData], base: str = "") -> str:
    """What names a run: it changes with whatever means that an earlier, unfinished one cannot be resumed.

    The number of workers and of tolerated failures does not count: the result is the same.

    Args:
        config: Of the run.
        data: Its examples.
        base: Digest of the bundle that it starts from, if it does.
    """
    left_out: Any = {"output": True, "train": {"num_workers", "max_failures"}, "add_tasks": {"max_failures"}}
    values = config.model_dump(mode="json", exclude=left_out)
    digest = hashlib.sha256(json.dumps([mtop_batch.__version__, values, base], sort_keys=True).encode())
    for item in data:
        for examples in (item.train, item.eval):
            if examples is not None:
                _update(digest, examples)
    return digest.hexdigest()[:16]


def _update(digest: Any, examples: LabelledTokens) -> None:
    tokens = examples.tokens
    for array in (tokens.values, tokens.offsets, tokens.first_lengths, examples.labels):
        digest.update(np.ascontiguousarray(array))


def interrupted_runs(output: str) -> str:
    """Below which URI the runs of an output lie."""
    return storage.absolute(output) + ".training"


class RunDirectory:
    """One run's directory; see the module's text for what is in it.

    Args:
        output: Where the bundle is to go.
        digest: Of the run.
    """

    def __init__(self, output: str, digest: str) -> None:
        self.root = interrupted_runs(output)
        self.name = digest
        self.uri = storage.join(self.root, digest)
        self.events: list[Event] = []

    def begin(self, config: Config) -> str:
        """Make the directory, or find what an interrupted run left in it.

        Returns:
            A line for people about what was found; empty if there is nothing to say.

        Raises:
            LabelTableError: The storage cannot be reached or does not let us write.
        """
        others = {info.path.split("/")[0] for info in storage.list_files(self.root)} - {self.name}
        is_known = storage.is_file(self._path("config.json"))
        storage.write_bytes(self._path("config.json"), _json(config.model_dump(mode="json"), indent=2))
        self._read_events()
        if is_known:
            step = self._checkpoint_step()
            return f"resuming the interrupted run in {self.uri}, " + (
                f"training from step {step}" if step is not None else "which has no checkpoint yet"
            )
        if others:
            return (
                f"an interrupted run in {self.root} had another configuration or other examples: starting from the "
                "beginning"
            )
        return ""

    def storage(self) -> tuple[pafs.FileSystem, str]:
        """File system and path below which Ray Train keeps its runs by name."""
        return storage.filesystem(self.root)

    def task(self, task: str) -> dict[str, Tensor] | None:
        """What a task learned alone; None if it is not there."""
        try:
            return load(storage.read_bytes(self._path("tasks", f"{task}.safetensors")))
        except FileNotFoundError:
            return None

    def task_result(self, task: str) -> dict[str, Any]:
        """What `keep_task` was told of a task whose tensors are there."""
        result: dict[str, Any] = json.loads(storage.read_bytes(self._path("tasks", f"{task}.json")))
        return result

    def keep_task(self, task: str, tensors: Mapping[str, Tensor], result: Mapping[str, Any] | None = None) -> None:
        """Keep what a task learned alone, and JSON-ready values that go with it."""
        storage.write_bytes(self._path("tasks", f"{task}.json"), _json(result or {}))
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        storage.write_bytes(self._path("tasks", f"{task}.safetensors"), save(contiguous))

    def keep_events(self) -> None:
        """Write the events so far, those of earlier attempts included."""
        storage.write_bytes(self._path("events.jsonl"), self.event_lines())

    def event_lines(self) -> bytes:
        """The events so far as JSON lines."""
        return b"".join(_json(event) + b"\n" for event in self.events)

    def discard(self) -> None:
        """Remove this run and all others of the same output.

        If it fails, what is left does no harm: the next run of the same output removes it.

        Raises:
            LabelTableError: The storage cannot be reached or refuses.
        """
        if not storage.is_remote(self.root):
            shutil.rmtree(self.root)
            return
        fs, path = storage.fsspec_filesystem(self.root)
        with storage.explained(self.root):
            fs.rm(path, recursive=True)

    def _checkpoint_step(self) -> int | None:
        """The step that Ray Train will resume from; a note of Ray Train's that cannot be read is removed.

        A driver killed while Ray Train writes its note leaves half of it, and another version of Ray does not read it:
        Ray Train would stop at either for good. Training then starts again, from the warm start that is kept.
        """
        if not storage.is_file(self._path(_SNAPSHOT)):
            return None
        fs, path = storage.filesystem(self.uri)
        try:
            metrics = Result.from_path(path, storage_filesystem=fs).metrics
        except (CheckpointManagerInitializationError, AssertionError, KeyError):
            storage.delete(self._path(_SNAPSHOT))
            return None
        return int(metrics["step"]) if metrics else None

    def _read_events(self) -> None:
        try:
            lines = storage.read_bytes(self._path("events.jsonl")).splitlines()
        except FileNotFoundError:
            return
        self.events = [json.loads(line) for line in lines]

    def _path(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False).encode()
