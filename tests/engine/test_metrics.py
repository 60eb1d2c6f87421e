"""What Prometheus finds at a node of Ray while a run goes on."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest

from mtop_batch.engine.monitoring.metrics import COUNTERS, EXPORTED
from mtop_batch.engine.session import _set_local_defaults, ray_session
from mtop_batch.errors import ConfigError
from tests.shared_ray import stop_shared_ray

SCRIPT = """
import re, sys, time, urllib.request
from mtop_batch.engine.monitoring.metrics import EXPORTED, RunMetrics
from mtop_batch.engine.session import ray_session
from mtop_batch.labelling.run.stages import UnitResult

with ray_session():
    metrics = RunMetrics("s3://news/labels", 100, 2)
    stages = {"read": 1.0, "tokenise": 2.0, "model": 3.0, "write": 4.0}
    counts = {"rows": 10, "labelled": 9, "errors": 1, "cells": 20, "num_tokens": 50, "retries": 1}
    metrics.unit_done(UnitResult("a", seconds=stages, **counts))
    metrics.unit_done(UnitResult("b", unreadable="damaged"))
    metrics.actor_lost()
    metrics.waiting(3)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        time.sleep(1)
        try:
            text = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics", timeout=5).read().decode()
        except OSError:
            continue
        found = {line.split("{")[0]: line for line in text.splitlines() if line.startswith("ray_mtop_")}
        if found.keys() >= EXPORTED:
            break
    print("\\n".join(f"{name} {line.rsplit(' ', 1)[1]} {'s3://news/labels' in line}" for name, line in found.items()))
"""


@pytest.mark.slow
def test_prometheus_finds_the_metrics_where_they_are_asked_for() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(port)],
        env={**environment, "MTOP_METRICS_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = {name: (float(value), tagged) for name, value, tagged in map(str.split, run.stdout.splitlines())}
    assert found.keys() == EXPORTED
    assert found["ray_mtop_articles_labelled_total"] == (9.0, "True")
    assert found["ray_mtop_articles_left"] == (90.0, "True")
    assert found["ray_mtop_write_seconds_total"] == (4.0, "True")
    assert found["ray_mtop_unreadable_files_total"] == (1.0, "True")


def test_no_port_is_opened_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, expected in (({}, "0"), ({"MTOP_METRICS_PORT": "8080"}, "1")):
        environment = dict(variables)
        _set_local_defaults(environment)
        assert environment["RAY_enable_metrics_collection"] == expected
    stop_shared_ray()
    monkeypatch.setenv("MTOP_METRICS_PORT", "eight")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="MTOP_METRICS_PORT = 'eight' is not a port"), ray_session():
        pass


def test_names_are_those_that_prometheus_allows() -> None:
    assert all(re.fullmatch(r"ray_mtop_[a-z_]+", name) for name in EXPORTED)
    assert not any(name.endswith("_total") for name in COUNTERS)  # Ray appends it
