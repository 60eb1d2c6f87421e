"""`--notify`: a summary whatever the end, and no end that depends on who takes it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.notify import check_notify_url, notify, summary
from mtop_batch.errors import BundleError, ConfigError

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that keeps what is posted, and answers as it is told."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.block_on_close = False
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/hook", posted
        finally:
            http.shutdown()


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, for ever."""
    for _ in range(100):
        try:
            handler.wfile.write(b"H")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def test_the_summary_is_posted() -> None:
    with server(status(200)) as (url, posted):
        assert notify(url, {"text": "done"}) is None
    assert posted == [{"text": "done"}]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (status(500), "500"),
        (status(404), "404"),
        (status(302, Location="http://127.0.0.1:1/"), "302"),
        (drip, "in time|line|timed out"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), "BadStatusLine|nonsense|in time"),
    ],
    ids=["broken", "gone", "elsewhere", "slow", "no HTTP"],
)
def test_who_does_not_take_it_is_told_in_time(answer: Answer, problem: str) -> None:
    with server(answer) as (url, _):
        started = time.monotonic()
        found = notify(url, {"text": "done"}, timeout_s=0.4)
    assert found is not None
    assert re.search(problem, found)
    assert time.monotonic() - started < 3


def test_a_server_that_is_down_is_told() -> None:
    assert "refused" in (notify("http://127.0.0.1:9/", {}, timeout_s=2) or "")


@pytest.mark.parametrize("url", ["host/path", "file:///etc/passwd", "ftp://host/x", "https://", ""])
def test_what_cannot_be_posted_to_is_refused_before_any_work(url: str) -> None:
    with pytest.raises(ConfigError, match="--notify"):
        check_notify_url(url)
    if url:
        with pytest.raises(ConfigError, match="--notify"):
            label_corpus(LabelOptions(model="nowhere", corpus="c", labels="l", notify=url))


def test_a_command_that_fails_before_its_run_begins_is_told_of_too() -> None:
    options = LabelOptions(model="nowhere", corpus="c", labels="l")
    with server(status(200)) as (url, posted):
        with pytest.raises(BundleError, match="there is no bundle"):
            label_corpus(LabelOptions(**{**vars(options), "notify": url}))
        with pytest.raises(BundleError):
            label_corpus(LabelOptions(**{**vars(options), "notify": url}), plan_only=True)
    assert [content["status"] for content in posted] == ["failed"]
    assert "there is no bundle" in posted[0]["text"]


def test_the_summary_says_why_the_gate_is_closed() -> None:
    gate = {"open": False, "reasons": [{"text": "politics: 70.0% labels change"}]}
    content = summary({"run": "r", "status": "gate closed", "gate": gate, "rows": 3}, "run r gate closed")
    assert content["text"] == "run r gate closed\npolitics: 70.0% labels change"
    assert (content["status"], content["rows"], content["gate_reasons"]) == (
        "gate closed",
        3,
        ["politics: 70.0% labels change"],
    )
