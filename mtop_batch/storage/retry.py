"""Waiting for storage that does not answer, and telling of it while a stage is still at work on a unit."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, TypeVar

from mtop_batch.errors import DamagedLabelFile, LabelTableError, LeaseLost

# Storage that does not answer is asked again after these pauses, until the job's patience ends. An attempt at S3 takes
# most of a minute by itself.
RETRY_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
DEFAULT_PATIENCE_S = 120.0

News = Callable[[dict[str, Any]], None]
"""Takes what happens to a unit while a stage is still at work on it."""
WAITING, ANSWERED, GAVE_UP, ACTOR_STARTED = "waiting", "answered", "gave up", "actor started"
"""The events of news: storage fails a unit for the first time; it works again; it did not until patience ended; and a
labelling actor has loaded its bundle."""

T = TypeVar("T")


def silent(event: dict[str, Any]) -> None:
    """News that nobody wants to hear."""


def patiently(action: Callable[[], T], unit: str, news: News, patience_s: float) -> tuple[T, int]:
    """Do it, and again after a pause while storage does not answer; deterministic names make that safe.

    Args:
        action: What to do.
        unit: For which unit, as messages name it.
        news: Is told when storage does not answer, and when it does again.
        patience_s: So long storage may not answer; an attempt that has begun is waited for.

    Returns:
        What the action returned, and how often storage was asked again.

    Raises:
        LabelTableError: Storage did not answer for `patience_s`, or waiting would not help.
    """
    started = time.monotonic()

    def tell(event: str, reason: str = "") -> None:
        news({"event": event, "unit": unit, "reason": reason, "waited_s": time.monotonic() - started})

    pauses = chain(RETRY_PAUSES_S, repeat(RETRY_PAUSES_S[-1]))
    retries = 0
    while True:
        try:
            value = action()
            break
        except (LeaseLost, DamagedLabelFile):
            raise
        except LabelTableError as error:
            gives_up = time.monotonic() - started >= patience_s
            if gives_up or not retries:
                tell(GAVE_UP if gives_up else WAITING, str(error))
            if gives_up:
                raise
            retries += 1
            time.sleep(next(pauses))
    if retries:
        tell(ANSWERED)
    return value, retries
