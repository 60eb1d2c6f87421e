"""Events of Ray workers on their way to the driver: what a job is doing, as plain dictionaries.

They are not results: losing the queue loses lines of a log and nothing else.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

Event = dict[str, Any]

_TAKE_TIMEOUT_S = 10.0


class EventQueue:
    """Carries events to the driver; make it there, and hand it to the workers, which call `emit`."""

    def __init__(self) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Events).remote()

    def emit(self, event: Event) -> None:
        """Send an event; this waits for nothing, and does not fail if the queue is lost."""
        self._actor.put.remote(event)

    def take(self) -> list[Event]:
        """The events sent since the last call, in order; none if the queue is lost or does not answer."""
        try:
            events: list[Event] = ray.get(self._actor.take.remote(), timeout=_TAKE_TIMEOUT_S)
        except RayError:
            return []
        return events


class _Events:
    """The actor behind an `EventQueue`."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events
