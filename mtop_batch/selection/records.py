"""What trainings for a selection came to, kept by the digests of their jobs so that none is done twice.

<kept>/<digest>.npz             a record
<kept>/<digest>.unfinished/     what an interrupted job left (`mtop_batch.training.unfinished`)
<kept>/<digest>.safetensors     what a task learned alone, for all jobs that begin with it
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mtop_batch import storage
from mtop_batch.json_text import to_json
from mtop_batch.selection.importance import FloatArray
from mtop_batch.selection.jobs import Job
from mtop_batch.training.unfinished import Unfinished, unfinished_in


@dataclass(frozen=True)
class Record:
    """What a job came to.

    Args:
        score: The own metric of the task that it is for, on its evaluation examples; NaN if that is undefined.
        num_steps: Of its trainings.
        seconds: It took.
        utilities: Task -> how useful a bandit found it.
        gradients: (R, L, H) Of the examples of a task that was measured; none otherwise.
    """

    score: float
    num_steps: int
    seconds: float
    utilities: dict[str, float] = field(default_factory=dict)
    gradients: FloatArray = field(default_factory=lambda: np.empty((0, 0, 0), np.float32))

    def to_bytes(self) -> bytes:
        """As a file, without code in it."""
        values = {key: getattr(self, key) for key in ("score", "num_steps", "seconds", "utilities")}
        sink = io.BytesIO()
        np.savez(sink, about=np.array(to_json(values)), gradients=self.gradients)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            values: dict[str, Any] = json.loads(str(arrays["about"]))
            record = cls(**values, gradients=arrays["gradients"])
        return record if record.score is not None else replace(record, score=float("nan"))


Execute = Callable[[Sequence[Job]], Iterable[tuple[Job, Record]]]
"""Runs jobs in any order, and gives each with its record when it is done."""


class KeptRecords:
    """The records of a directory.

    Args:
        uri: Local or on object storage; None to know them no longer than this object.
        execute: Does what has no record yet.
    """

    def __init__(self, uri: str | None, execute: Execute) -> None:
        self.reused: list[str] = []
        """Titles of the jobs whose records were there, in the order of the asking."""
        self.done: list[str] = []
        """Those of the jobs that were done now."""
        self._uri = uri
        self._execute = execute
        self._found: dict[str, Record] = {}

    def __call__(self, jobs: Sequence[Job]) -> list[Record]:
        """The record of each job.

        Raises:
            MtopError: A job cannot be done; the records of those done before stay.
        """
        unknown = {job.digest: job for job in jobs if job.digest not in self._found}
        missing = []
        for digest, job in unknown.items():
            known = self._read(digest)
            if known is None:
                missing.append(job)
            else:
                self._found[digest] = known
                self.reused.append(job.title)
        for job, record in self._execute(missing) if missing else ():
            if self._uri is not None:
                storage.write_bytes(record_uri(self._uri, job.digest), record.to_bytes())
            self._found[job.digest] = record
            self.done.append(job.title)
        return [self._found[job.digest] for job in jobs]

    def _read(self, digest: str) -> Record | None:
        if self._uri is None:
            return None
        try:
            return Record.from_bytes(storage.read_bytes(record_uri(self._uri, digest)))
        except FileNotFoundError:
            return None


def record_uri(kept: str, digest: str) -> str:
    """Where the record of a job lies."""
    return storage.join(kept, f"{digest}.npz")


def unfinished_of(kept: str | None, job: Job) -> Unfinished:
    """What an interrupted job left, and what its tasks learned alone; None to keep nothing."""
    warm_starts = {} if kept is None else job.warm_starts
    learned = {name: storage.join(str(kept), f"{digest}.safetensors") for name, digest in warm_starts.items()}
    return unfinished_in(kept, job.digest, learned)
