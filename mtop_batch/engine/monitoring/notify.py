"""`--notify URL`: tells somebody how a run has ended, whatever the end."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from mtop_batch.errors import ConfigError, one_line
from mtop_batch.lines import without_secrets

_TIMEOUT_S = 10.0
_MAX_REASONS = 20


def check_notify_url(url: str) -> None:
    """Refuse what cannot be posted to, before any work starts.

    Raises:
        ConfigError: It is no http or https URL.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"--notify {url!r} is not a URL; give one that takes a POST, such as https://host/path")


def _without_secrets(value: Any) -> Any:
    return without_secrets(value) if isinstance(value, str) else value


def summary(report: Mapping[str, Any], line: str) -> dict[str, Any]:
    """What is posted: `text`, which chat services show, and the numbers."""
    gate = report.get("gate")
    reasons = [reason["text"] for reason in gate["reasons"][:_MAX_REASONS]] if gate and not gate["open"] else []
    keys = ("run", "status", "failure", "labels", "bundle", "rows", "labelled", "errors", "cells_done", "seconds")
    return {
        "text": without_secrets("\n".join([line, *reasons])),
        **{key: _without_secrets(report.get(key)) for key in keys},
        "unreadable_files": len(report.get("unreadable_files", ())),
        "gate_reasons": reasons,
    }


def notify(url: str, content: Mapping[str, Any], timeout_s: float = _TIMEOUT_S) -> str | None:
    """Post JSON; returns why it was not taken, if so. It never raises, and never takes much longer than the timeout."""
    problem: list[str] = ["it did not answer in time"]

    def post() -> None:
        data = json.dumps(content).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="POST")
        try:
            with _OPENER.open(request, timeout=timeout_s):
                problem.clear()
        except Exception as error:
            problem[:] = [one_line(error, with_type=True)]

    # A server that sends a byte now and then keeps a socket's timeout from ever being over.
    thread = threading.Thread(target=post, name="notify", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return problem[0] if problem else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the summary to a place that nobody named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
