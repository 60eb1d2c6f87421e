"""How long the parts of a run take."""

from __future__ import annotations

import time

from mtop_batch.training.unfinished import Unfinished


class Clock:
    """Seconds of the parts of a run, those before an interruption too."""

    def __init__(self, unfinished: Unfinished) -> None:
        self._unfinished = unfinished
        self._seconds = unfinished.seconds()
        self._part: str | None = None
        self._last = time.monotonic()
        unfinished.on_kept = self._keep

    def start(self, part: str | None) -> None:
        """End the part that runs, and begin the next; None for time that somebody else counts."""
        self._count()
        self._part = part

    def stop(self) -> dict[str, float]:
        """End the last part."""
        self._count()
        return {part: round(seconds, 2) for part, seconds in self._seconds.items()}

    def _count(self) -> None:
        now = time.monotonic()
        if self._part is not None:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._last
        self._last = now

    def _keep(self) -> None:
        self._count()
        self._unfinished.keep_seconds(self._seconds)
