"""What an interrupted training run leaves behind, and where the same command finds it again.

    <output>.training/
      <digest>/                        one run: a configuration and its examples
        config.json                    that configuration
        events.jsonl                   the events so far
      tensorboard/                   and some of their numbers for TensorBoard
        tasks/<task>.safetensors       what each task learned alone: a warm start, an added task, or a model of its own
        tasks/<task>.checkpoint/       the last checkpoint of a task's own model, until that has been learned
        teachers/<number>.safetensors  what a teacher said of unlabelled texts, and
        teachers/<number>.training/    its own run, until it has said so
        checkpoint_*/                  as Ray Train names them, two at most, and
        checkpoint_manager_snapshot.json   Ray Train's own note of which of them count

It lies beside the bundle, on the same storage, and goes when the bundle is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.fs as pafs
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2.api.result import Result
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import Tokens
from mtop_batch.engine.monitoring.events import Event
from mtop_batch.engine.outputs import interrupted_runs
from mtop_batch.json_text import to_json
from mtop_batch.training.settings import TaskData
from mtop_batch.training.soft_labels import FloatArray
from mtop_batch.training.task_checkpoints import TaskCheckpoints

_WITHOUT_EFFECT = {"num_workers", "max_failures", "tensorboard", "mlflow"}
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_CHECKPOINT = re.compile(r"checkpoint_\d.*")


def run_digest(config: Config, data: Sequence[TaskData], base: str = "") -> str:
    """What names a run: it changes with whatever means that an earlier, unfinished one cannot be resumed.

    The number of workers and of tolerated failures does not count, nor does who else is told: the result is the same.

    Args:
        config: Of the run.
        data: Its examples.
        base: Digest of what else it starts from: a bundle, or unlabelled texts.
    """
    left_out: Any = {"output": True, "train": _WITHOUT_EFFECT, "add_tasks": {"max_failures"}}
    values = config.model_dump(mode="json", exclude=left_out)
    digest = hashlib.sha256(json.dumps([version("mtop-batch"), values, base], sort_keys=True).encode())
    for item in data:
        for examples in (item.train, item.eval):
            if examples is not None:
                _update(digest, examples)
    return digest.hexdigest()[:16]


def tokens_digest(tokens: Tokens) -> str:
    """Changes with any token of any text."""
    digest = hashlib.sha256()
    _update_tokens(digest, tokens)
    return digest.hexdigest()[:16]


def _update(digest: Any, examples: LabelledTokens) -> None:
    _update_tokens(digest, examples.tokens)
    digest.update(np.ascontiguousarray(examples.labels))
    if examples.tags is not None:
        digest.update(np.ascontiguousarray(examples.tags))
    for of in examples.vectors:
        for array in (of.values, of.offsets):
            digest.update(np.ascontiguousarray(array))


def _update_tokens(digest: Any, tokens: Tokens) -> None:
    for array in (tokens.values, tokens.offsets, tokens.first_lengths):
        digest.update(np.ascontiguousarray(array))


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
        self.remove_unfinished_checkpoints()
        others = {info.path.split("/")[0] for info in storage.list_files(self.root)} - {self.name}
        is_known = storage.is_file(self._path("config.json"))
        storage.write_bytes(self._path("config.json"), _json(config.model_dump(mode="json"), indent=2))
        self._read_events()
        if is_known:
            step = self._checkpoint_step()
            if step is not None:
                return f"resuming the interrupted run in {self.uri}, training from step {step}"
            learned = len(storage.list_files(self._path("tasks"), ".json"))
            return f"resuming the interrupted run in {self.uri}, " + (
                f"in which {learned} tasks have been learned alone" if learned else "which has no checkpoint yet"
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
        """Keep what a task learned alone, and JSON-ready values that go with it; its checkpoint is no longer needed."""
        storage.write_bytes(self._path("tasks", f"{task}.json"), _json(result or {}))
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        storage.write_bytes(self._path("tasks", f"{task}.safetensors"), save(contiguous))
        TaskCheckpoints(self.uri, task).discard()

    def of_teacher(self, number: int) -> str:
        """The output of a teacher's training, beside which its own run lies."""
        return self._path("teachers", str(number))

    def soft_labels(self, number: int) -> FloatArray | None:
        """What a teacher said; None if it has not yet."""
        try:
            arrays = load_arrays(storage.read_bytes(self._path("teachers", f"{number}.safetensors")))
        except FileNotFoundError:
            return None
        said: FloatArray = arrays["soft_labels"]
        return said

    def keep_soft_labels(self, number: int, said: FloatArray) -> None:
        """Keep what a teacher said."""
        storage.write_bytes(self._path("teachers", f"{number}.safetensors"), save_arrays({"soft_labels": said}))

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
        _remove_tree(self.root)

    def remove_unfinished_checkpoints(self) -> None:
        """Remove checkpoints that Ray Train has not noted: those of a write that failed or was cut short.

        Raises:
            LabelTableError: The storage cannot be reached or refuses.
        """
        names = {info.path.split("/")[0] for info in storage.list_files(self.uri)}
        if not storage.is_remote(self.uri) and os.path.isdir(self.uri):
            names |= set(os.listdir(self.uri))  # those without a file
        for name in sorted(names - self._noted_checkpoints()):
            if _CHECKPOINT.fullmatch(name):
                _remove_tree(self._path(name))

    def _noted_checkpoints(self) -> set[str]:
        try:
            note = json.loads(storage.read_bytes(self._path(_SNAPSHOT)))
            return {result["checkpoint_dir_name"] for result in note["checkpoint_results"]}
        except FileNotFoundError:
            return set()
        except (ValueError, KeyError, TypeError):  # `begin` removes it
            return set()

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


def _remove_tree(uri: str) -> None:
    with storage.explained(uri):
        if storage.is_remote(uri):
            fs, path = storage.fsspec_filesystem(uri)
            fs.rm(path, recursive=True)
        else:
            shutil.rmtree(uri)


def _json(value: Any, indent: int | None = None) -> bytes:
    return to_json(value, indent=indent).encode()
