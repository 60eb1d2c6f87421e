"""Retrying while storage does not answer, with events that say so while a stage is still at work on a unit."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, TypeVar

from mtop_batch.errors import StorageError, StorageFull

# Pauses between attempts, until the retry timeout ends. An attempt at S3 takes most of a minute by itself.
RETRY_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
DEFAULT_RETRY_TIMEOUT_S = 120.0

EventSink = Callable[[dict[str, Any]], None]
"""Takes the events of a unit while a stage is still at work on it."""
WAITING, ANSWERED, GAVE_UP, ACTOR_STARTED = "waiting", "answered", "gave up", "actor started"
TRIED_ALONE = "tried alone"
"""The events: storage fails a unit for the first time; it works again; it did not until the retry timeout ended; a
labelling actor has loaded its bundle; and units that have killed their processes are tried again, one by one."""

T = TypeVar("T")


def ignore_event(event: dict[str, Any]) -> None:
    """An event sink that drops every event."""


def with_retries(action: Callable[[], T], unit: str, event_sink: EventSink, retry_timeout_s: float) -> tuple[T, int]:
    """Call `action`, and again after a pause while storage does not answer; deterministic names make that safe.

    Args:
        action: What to do.
        unit: For which unit, as messages name it.
        event_sink: Called when storage does not answer, and when it does again.
        retry_timeout_s: Gives up when storage still does not answer after so long; an attempt that has begun is waited
            for.

    Returns:
        What the action returned, and the number of retries.

    Raises:
        StorageError: Storage did not answer for `retry_timeout_s`, or is full.
        LabelTableError: Another error of the label table; a retry would not help.
    """
    started = time.monotonic()

    def send(event: str, reason: str = "") -> None:
        event_sink({"event": event, "unit": unit, "reason": reason, "waited_s": time.monotonic() - started})

    pauses = chain(RETRY_PAUSES_S, repeat(RETRY_PAUSES_S[-1]))
    retries = 0
    while True:
        try:
            value = action()
            break
        except StorageFull:
            raise
        except StorageError as error:
            gives_up = time.monotonic() - started >= retry_timeout_s
            if gives_up or not retries:
                send(GAVE_UP if gives_up else WAITING, str(error))
            if gives_up:
                raise
            retries += 1
            time.sleep(next(pauses))
    if retries:
        send(ANSWERED)
    return value, retries
