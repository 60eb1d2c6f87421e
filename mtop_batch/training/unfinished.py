"""What an unfinished run leaves behind, so that the next one goes on from there.

<uri>/alone/<task>.safetensors      what a task learned alone
<uri>/tasks/<training>.checkpoint/  the last checkpoint of the training of all tasks, or of a task's own model
<uri>/teacher-<n>.npy               what a teacher said of the texts without labels
<uri>/seconds.json                  how long its parts took so far
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load, save
from torch import Tensor

from mtop_batch import storage
from mtop_batch.training.loop import Save, WriteCheckpoint
from mtop_batch.training.soft_labels import FloatArray
from mtop_batch.training.task_checkpoints import TaskCheckpoints

_SUFFIX = ".unfinished"


class Unfinished:
    """The directory of an unfinished run, local or on object storage.

    Args:
        uri: Where; None to keep nothing.
        learned: Task -> file of what it learned alone, where other runs begin with the same; it stays when the run is
            finished.
    """

    def __init__(self, uri: str | None, learned: Mapping[str, str] | None = None) -> None:
        self._uri = uri
        self._learned = learned or {}
        self.on_kept: Callable[[], None] = lambda: None
        """Called whenever something that took time has been kept."""

    def seconds(self) -> dict[str, float]:
        """How long each part of the run took so far; empty if nothing is there."""
        if self._uri is None:
            return {}
        try:
            seconds: dict[str, float] = json.loads(storage.read_bytes(_seconds(self._uri)))
        except FileNotFoundError:
            return {}
        return seconds

    def keep_seconds(self, seconds: Mapping[str, float]) -> None:
        """Keep how long each part took so far."""
        if self._uri is not None:
            storage.write_bytes(_seconds(self._uri), json.dumps(seconds).encode())

    def part(self, name: str) -> Unfinished:
        """The directory of a part of the run, in this one."""
        return Unfinished(None if self._uri is None else storage.join(self._uri, name))

    def task(self, name: str) -> dict[str, Tensor] | None:
        """What a task learned alone; None if it is not there."""
        if self._uri is None:
            return None
        try:
            return load(storage.read_bytes(self._learned.get(name) or _alone(self._uri, name)))
        except FileNotFoundError:
            return None

    def keep_task(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep what a task learned alone."""
        if self._uri is not None:
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            storage.write_bytes(self._learned.get(name) or _alone(self._uri, name), save(contiguous))
        self.on_kept()

    def soft_labels(self, teacher: int) -> FloatArray | None:
        """What a teacher said; None if it is not there."""
        if self._uri is None:
            return None
        try:
            said: FloatArray = np.load(io.BytesIO(storage.read_bytes(_teacher(self._uri, teacher))), allow_pickle=False)
        except FileNotFoundError:
            return None
        return said

    def keep_soft_labels(self, teacher: int, said: FloatArray) -> None:
        """Keep what a teacher said."""
        if self._uri is not None:
            file = io.BytesIO()
            np.save(file, said, allow_pickle=False)
            storage.write_bytes(_teacher(self._uri, teacher), file.getvalue())
        self.on_kept()

    @contextmanager
    def checkpoints(self, training: str) -> Iterator[tuple[Path | None, Save | None]]:
        """The last checkpoint of a training, if there is one, and what keeps the next ones: for `fit`."""
        if self._uri is None:
            yield None, None
            return
        if not storage.is_remote(self._uri):
            Path(storage.absolute(self._uri)).mkdir(parents=True, exist_ok=True)
        kept = TaskCheckpoints(self._uri, training)

        def save_it(write: WriteCheckpoint | None, metrics: Mapping[str, Any]) -> None:
            kept.save(write, metrics)
            self.on_kept()

        with tempfile.TemporaryDirectory(prefix="mtop_checkpoint-") as directory:
            yield kept.read(Path(directory)), save_it

    def discard(self) -> None:
        """Remove everything: the run is finished."""
        if self._uri is None:
            return
        for info in storage.list_files(self._uri):
            storage.delete(storage.join(self._uri, info.path))
        if not storage.is_remote(self._uri):
            shutil.rmtree(storage.absolute(self._uri), ignore_errors=True)


def unfinished_in(directory: str | None, digest: str, learned: Mapping[str, str] | None = None) -> Unfinished:
    """What an interrupted run left in a directory of records: `<digest>.unfinished/`.

    Args:
        directory: Local or on object storage; None to keep nothing.
        digest: Of the run.
        learned: As for `Unfinished`.
    """
    return Unfinished(None if directory is None else storage.join(directory, f"{digest}{_SUFFIX}"), learned)


def discard_finished(directory: str, is_finished: Callable[[str], bool]) -> None:
    """Remove what is left beside records: their command was killed just after it had written them.

    Args:
        directory: Of records.
        is_finished: Says of a digest whether nothing goes on from what its run left.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    paths = [info.path for info in storage.list_files(directory)]
    left = {path.split("/")[0].removesuffix(_SUFFIX) for path in paths if f"{_SUFFIX}/" in path}
    for digest in filter(is_finished, left):
        unfinished_in(directory, digest).discard()


def _seconds(uri: str) -> str:
    return storage.join(uri, "seconds.json")


def _teacher(uri: str, number: int) -> str:
    return storage.join(uri, f"teacher-{number}.npy")


def _alone(uri: str, task: str) -> str:
    return storage.join(uri, "alone", f"{task}.safetensors")
