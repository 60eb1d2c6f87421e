"""Which failures of training workers another attempt may get over, and which it would only repeat.

A worker that is lost (its node, its memory) is started again and resumes from the last checkpoint. An error that Python
code raises is another matter: the same one a second time would come a third time, and a full disk stays full.
"""

from __future__ import annotations

import re
import traceback
from typing import Any

import ray
from ray.exceptions import RayError

from mtop_batch.errors import JobError, one_line
from mtop_batch.storage import is_disk_full

_ANSWER_TIMEOUT_S = 10.0
# What a worker raises because another one is gone says nothing of itself.
_OF_OTHERS = re.compile(r"gloo|nccl|connection (?:closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)
_MEMORY = re.compile(r"low on memory\..* was (\S+) used / (\S+) limit", re.DOTALL)
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(?:\.\d+)?", re.IGNORECASE)


class Failures:
    """The errors that workers of a training raised; make it in the driver and hand it to the workers.

    If what it keeps is lost, workers are started again as often as `max_failures` says.

    Args:
        run_uri: Where the training keeps its checkpoints.
    """

    def __init__(self, run_uri: str) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Failures).remote(run_uri)

    def add(self, error: Exception, rank: int) -> JobError | None:
        """Note what the worker of this rank raised; returns what ends the training, if another attempt is of no use."""
        kind = _kind(error)
        return self._ask("add", one_line(error, with_type=True), kind and f"{rank} {kind}", is_disk_full(error))

    def last_word(self) -> JobError | None:
        """What ends the training, if an attempt before this one found that another would be of no use."""
        return self._ask("last_word")

    def _ask(self, method: str, *arguments: object) -> JobError | None:
        try:
            message: str | None = ray.get(getattr(self._actor, method).remote(*arguments), timeout=_ANSWER_TIMEOUT_S)
        except RayError:
            return None
        return None if message is None else JobError(message)


def reason(error: BaseException) -> str:
    """Why Ray gave a training up, in a line: the last of its message, which may be a traceback.

    >>> reason(ValueError("Worker 3 failed\\nNo space left"))
    'No space left'
    """
    if found := _MEMORY.search(str(error)):  # what follows is Ray's advice, of many lines
        used, limit = found.groups()
        return (
            f"too little memory on a node: {used} of {limit} were in use, so Ray ended workers there; give the node "
            "more, or less to do beside this"
        )
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _kind(error: Exception) -> str:
    """What two errors have in common that are the same: type, place and message but for its numbers."""
    if _OF_OTHERS.search(f"{type(error).__name__}: {error}"):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__} {place} {_NUMBER.sub('#', one_line(error))}"


class _Failures:
    """The actor behind `Failures`."""

    def __init__(self, run_uri: str) -> None:
        self._run_uri = run_uri
        self._seen: set[str] = set()
        self._last_word: str | None = None

    def add(self, error: str, kind: str, disk_is_full: bool) -> str | None:
        if disk_is_full:
            self._last_word = (
                f"the disk is full: {error}. Training writes to {self._run_uri}, and for a moment to the temporary "
                "directory (TMPDIR); free some space, and the same command resumes"
            )
        elif kind in self._seen:
            self._last_word = (
                f"training failed twice with the same error, so it was not tried again: {error}; the same command "
                "resumes from the last checkpoint, if there is one"
            )
        elif kind:
            self._seen.add(kind)
        return self._last_word

    def last_word(self) -> str | None:
        return self._last_word
