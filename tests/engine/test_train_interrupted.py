"""A training whose whole process is killed: the same command goes on, on a local disk and on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mtop_batch import storage
from mtop_batch.engine.monitoring.events import Event
from tests.engine.conftest import MakeConfig
from tests.s3 import s3_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import json, os, signal, sys
from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train

config = Config.model_validate_json(sys.argv[1])
kill_after = float(sys.argv[2])

def handle(event):
    print(json.dumps(event), flush=True)
    if event["event"] == "evaluation" and event["epoch"] >= kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

with Progress() as progress:
    train(config, progress=progress, on_event=handle)
"""


def run(config: Any, kill_after: float = float("inf")) -> tuple[int, list[Event], str]:
    """Train in a process of its own, with its own local Ray; exit code, events, and what people saw."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, config.model_dump_json(), str(kill_after)],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def weights(output: str) -> dict[str, Tensor]:
    return load(storage.read_bytes(storage.join(output, "model.safetensors")))


@pytest.fixture(scope="module")
def sections(dropout_backbone_dir: Path) -> dict[str, Any]:
    return {"backbone": {"name": str(dropout_backbone_dir)}, "train": {"epochs": 6}}


@pytest.fixture(scope="module")
def undisturbed(
    make_config: MakeConfig, sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Tensor], list[Event]]:
    config = make_config(tmp_path_factory.mktemp("undisturbed") / "bundle", **sections)
    code, events, said = run(config)
    assert code == 0, said
    return weights(config.output), events


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "models" / "bundle")
        return
    with s3_server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{server.bucket}/models/bundle"


def test_the_same_command_goes_on_and_ends_with_the_same_weights(
    make_config: MakeConfig, sections: dict[str, Any], undisturbed: tuple[dict[str, Tensor], list[Event]], output: str
) -> None:
    config = make_config(output, **sections)
    code, _, _ = run(config, kill_after=3)  # the first checkpoint is then known to Ray Train for certain
    assert code == -9
    assert not storage.exists(output)
    code, events, said = run(config)
    assert code == 0, said
    assert f"resuming the interrupted run in {output}.training" in said
    [start] = [event for event in events if event["event"] == "start"]  # of training: warm starts were kept
    assert 0 < start["step"] < start["num_steps"]
    expected, expected_events = undisturbed
    last, last_expected = ([e for e in es if e["event"] == "evaluation"][-1] for es in (events, expected_events))
    assert last["metrics"] == last_expected["metrics"]
    for name, tensor in weights(output).items():
        assert torch.equal(tensor, expected[name]), name
    assert not storage.list_files(output + ".training")
    kept = storage.read_bytes(storage.join(output, "training.jsonl")).splitlines()
    assert sum(json.loads(line)["event"] == "run" for line in kept) == 2


def test_another_configuration_starts_anew(make_config: MakeConfig, sections: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(tmp_path / "bundle", **sections)
    assert run(config, kill_after=1)[0] == -9
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 1, "epochs": 1.0})})
    code, events, said = run(other)
    assert code == 0, said
    assert "had another configuration or other examples: starting from the beginning" in said
    assert all(event["step"] == 0 for event in events if event["event"] == "start")
