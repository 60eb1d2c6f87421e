"""Stragglers: units that take much longer than most, which is where to look when a night is too short."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Any

_MIN_S = 30.0
_TIMES_MEDIAN = 3.0
_MAX_NAMED = 5


@dataclass
class Stragglers:
    """Finds units that take more than 30 s and more than three times the median, and keeps the slowest few."""

    _seconds: list[float] = field(default_factory=list)
    _candidates: list[tuple[float, str, dict[str, float]]] = field(default_factory=list)

    def add(self, unit: str, stage_seconds: dict[str, float]) -> bool:
        """Whether this unit is a straggler, by what the units before it took.

        Args:
            unit: The unit, as messages name it.
            stage_seconds: Seconds per stage.
        """
        seconds = sum(stage_seconds.values())
        insort(self._seconds, seconds)
        if seconds > _MIN_S:
            self._candidates.append((seconds, unit, stage_seconds))
            self._candidates.sort(key=lambda candidate: -candidate[0])
            del self._candidates[_MAX_NAMED:]
        return self._is_straggler(seconds)

    @property
    def median_s(self) -> float:
        """Seconds of the unit in the middle so far (the faster of two); 0 if there is none."""
        return self._seconds[(len(self._seconds) - 1) // 2] if self._seconds else 0.0

    def slowest(self) -> list[dict[str, Any]]:
        """The slowest five of the stragglers, by what all units took: each with its seconds, also per stage."""
        return [
            {"unit": unit, "seconds": round(seconds, 3), **{f"{stage}_s": round(s, 3) for stage, s in stages.items()}}
            for seconds, unit, stages in self._candidates
            if self._is_straggler(seconds)
        ]

    def _is_straggler(self, seconds: float) -> bool:
        return seconds > max(_MIN_S, _TIMES_MEDIAN * self.median_s)
