"""Ray sessions: refusals without a cluster, and a local Ray in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from mtop_batch.engine import session
from mtop_batch.engine.session import Resources, num_cores, ray_session
from mtop_batch.errors import ConfigError, JobError
from tests.shared_ray import stop_shared_ray

SCRIPT = """
import os, ray
from mtop_batch.engine.session import num_cores, ray_session

@ray.remote
def worker_token():
    return os.environ["RAY_AUTH_TOKEN"]

with ray_session(spare_cpus=1) as resources:
    assert (resources.num_cpus, resources.num_nodes, resources.may_grow) == (num_cores() + 1, 1, False), resources
    assert ray.get(worker_token.remote()) == os.environ["RAY_AUTH_TOKEN"]
    with ray_session() as same:
        assert same == resources
    assert ray.is_initialized()
assert not ray.is_initialized()
"""


@pytest.fixture(autouse=True)
def _no_ray() -> None:
    stop_shared_ray()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", r"no Ray cluster answers at RAY_ADDRESS = '127\.0\.0\.1:1' \(.*refused\); start it, or unset"),
        ("ray://head:10001", r"'ray://head:10001' is not the address .* use host:port"),
        ("http://head:8265", r"send the job there with `ray job submit`"),
        ("nonsense", r"no Ray cluster answers at RAY_ADDRESS = 'nonsense'"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=message), ray_session():
        pass
    assert not ray.is_initialized()


def test_a_local_ray_has_a_token_of_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize(("length", "is_long"), [(20, False), (200, True)])
def test_a_long_temporary_directory_is_left_for_what_needs_no_sockets(length: int, is_long: bool) -> None:
    default = "/" + "x" * length
    expected = {"_temp_dir": "/tmp/ray", "object_spilling_directory": default} if is_long else {}
    assert session._directories(default) == expected


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/tmp/ray"), Exception("The current node timed out")]
)
def test_a_ray_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(JobError, match=r"Ray cannot start on this machine: .*(denied|timed out).*RAY_TMPDIR"),
        ray_session(),
    ):
        pass


def test_resources_read_as_a_phrase() -> None:
    assert str(Resources(3, num_gpus=0, num_nodes=1, may_grow=False, num_cores=2)) == "1 node, 2 CPUs, no GPU"
    assert str(Resources(1, num_gpus=2, num_nodes=1, may_grow=False)) == "1 node, 1 CPU, 2 GPUs"
    assert str(Resources(num_cpus=8, num_gpus=1, num_nodes=2, may_grow=True)) == "2 nodes, 8 CPUs, 1 GPU"
    assert num_cores() >= 1
