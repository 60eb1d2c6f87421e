"""Pieces of work that end the processes that work on them: by the memory they take, or by a fault in a library.

Ray does a piece again when its process dies, and would do so for ever. So each attempt is announced, and who begins
once too often gives up instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

MAX_KILLS = 2
_TIMEOUT_S = 10.0


class Attempts:
    """Counts the attempts that were begun and did not end; make it in the driver, and hand it to the workers.

    Losing the count costs attempts and nothing else.
    """

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Counts).remote()

    @contextmanager
    def attempt(self, work: str) -> Iterator[bool]:
        """Announce an attempt at some work; False if those before it have killed their processes too often."""
        try:
            begun: int = ray.get(self._actor.begin.remote(work), timeout=_TIMEOUT_S)
        except RayError:
            begun = 1
        if begun > MAX_KILLS:
            yield False
            return
        try:
            yield True
        finally:
            self._actor.end.remote(work)


class _Counts:
    """The actor behind `Attempts`."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, work: str) -> int:
        self._begun[work] += 1
        return self._begun[work]

    def end(self, work: str) -> None:
        del self._begun[work]
