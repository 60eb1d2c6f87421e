"""Waiting for storage that does not answer, and telling of it while a stage is still at work on a unit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from mtop_batch.errors import LabelTableError
from mtop_batch.labelling.footer import DamagedLabelFile
from mtop_batch.labelling.lease import LeaseLost

# Storage that does not answer gets these pauses (two minutes in all) to come back before the job gives up.
RETRY_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)

News = Callable[[dict[str, Any]], None]
"""Takes what happens to a unit while a stage is still at work on it."""
WAITING, ANSWERED, GAVE_UP, ACTOR_STARTED = "waiting", "answered", "gave up", "actor started"
"""The events of news: storage fails a unit for the first time; it works again; it did not for two minutes; and a
labelling actor has loaded its bundle."""

T = TypeVar("T")


def silent(event: dict[str, Any]) -> None:
    """News that nobody wants to hear."""


def patiently(action: Callable[[], T], unit: str, news: News) -> tuple[T, int]:
    """Do it, and again after a pause while storage does not answer; deterministic names make that safe.

    Args:
        action: What to do.
        unit: For which unit, as messages name it.
        news: Is told when storage does not answer, and when it does again.

    Returns:
        What the action returned, and how often storage was asked again.

    Raises:
        LabelTableError: Storage did not answer for two minutes, or waiting would not help.
    """
    started = time.monotonic()

    def tell(event: str, reason: str = "") -> None:
        news({"event": event, "unit": unit, "reason": reason, "waited_s": time.monotonic() - started})

    pauses = iter(RETRY_PAUSES_S)
    retries = 0
    while True:
        try:
            value = action()
            break
        except (LeaseLost, DamagedLabelFile):
            raise
        except LabelTableError as error:
            pause_s = next(pauses, None)
            if pause_s is None or not retries:
                tell(WAITING if pause_s is not None else GAVE_UP, str(error))
            if pause_s is None:
                raise
            retries += 1
            time.sleep(pause_s)
    if retries:
        tell(ANSWERED)
    return value, retries
