"""Checkpoints of a training that runs in one process, on a local disk or on object storage."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtop_batch import storage
from mtop_batch.training.checkpoint import WRITTEN_LAST
from mtop_batch.training.loop import WriteCheckpoint


class TaskCheckpoints:
    """The checkpoint of a task that has a model of its own, in the run's directory; the last one replaces the others.

    Args:
        run_uri: The run's directory. Where this process does not see it, nothing is kept.
        task: The task's name.
    """

    def __init__(self, run_uri: str, task: str) -> None:
        self._uri = storage.join(run_uri, "tasks", f"{task}.checkpoint")
        self._is_visible = storage.is_remote(run_uri) or Path(run_uri).is_dir()

    def save(self, write: WriteCheckpoint | None, metrics: Mapping[str, Any]) -> None:
        """Keep a checkpoint, as `fit` asks for it; a kill in the middle leaves none."""
        del metrics
        if write is None or not self._is_visible:
            return
        with tempfile.TemporaryDirectory(prefix="mtop_checkpoint-") as directory:
            write(Path(directory))
            storage.delete(storage.join(self._uri, WRITTEN_LAST))
            for path in sorted(Path(directory).iterdir(), key=lambda path: path.name == WRITTEN_LAST):
                storage.upload(path, storage.join(self._uri, path.name))

    def read(self, directory: Path) -> Path | None:
        """The last checkpoint, copied to this directory; None if there is none that is whole."""
        if not storage.is_file(storage.join(self._uri, WRITTEN_LAST)):
            return None
        for info in storage.list_files(self._uri):
            storage.download(storage.join(self._uri, info.path), directory / info.path)
        return directory

    def discard(self) -> None:
        """Remove it, if there is one."""
        for info in storage.list_files(self._uri):
            storage.delete(storage.join(self._uri, info.path))
