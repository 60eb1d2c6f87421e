"""The Ray session of a command: the cluster that RAY_ADDRESS names, or a local Ray of its own.

Ray's ports listen on every interface of the machine, and whoever reaches them can run code. A local Ray is
therefore given a token that only this process and its workers know; it is kept in the environment, so no token
file is left behind that would turn authentication on for clusters started later.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private.utils import get_num_cpus

from mtop_batch.errors import ConfigError, JobError, MtopError, one_line
from mtop_batch.lines import counted

_CONNECT_TIMEOUT_S = 10.0
# Ray puts sockets into <temporary directory>/session_2026-11-26_18-31-31_123456_1234567/sockets/plasma_store.
_LONGEST_TEMP_DIR = 107 - len("/session_2026-11-26_18-31-31_123456_1234567/sockets/plasma_store")
_SHORT_TEMP_DIR = "/tmp/ray"


@dataclass(frozen=True)
class Resources:
    """What Ray can give out at the moment."""

    num_cpus: int
    """Logical CPUs of all nodes."""
    num_gpus: int
    num_nodes: int
    may_grow: bool
    """Nodes may join: a cluster, whose autoscaler could add what is missing; not so for a local Ray."""
    num_cores: int = 0
    """CPU cores of the machine, where a local Ray offers more logical CPUs than there are; else 0."""

    def __str__(self) -> str:
        gpus = counted(self.num_gpus, "GPU") if self.num_gpus else "no GPU"
        return f"{counted(self.num_nodes, 'node')}, {counted(self.num_cores or self.num_cpus, 'CPU')}, {gpus}"


@contextmanager
def ray_session(*, spare_cpus: int = 0) -> Iterator[Resources]:
    """Ray for the time of a command.

    With RAY_ADDRESS set (as it is inside `ray job submit`) this connects to that cluster. Otherwise it starts a Ray
    on this machine, without dashboard or usage statistics, and stops it in the end. A Ray that this process has
    already initialised is used and left running.

    Args:
        spare_cpus: Logical CPUs that a local Ray offers beyond the machine's cores, so that short tasks still run
            while actors hold every core.

    Raises:
        ConfigError: RAY_ADDRESS is not the address of a cluster that this process can join, or nobody answers there.
        JobError: A local Ray cannot start.
    """
    if ray.is_initialized():
        yield _resources(may_grow=False)
        return
    address = os.environ.get("RAY_ADDRESS", "")
    is_cluster = address not in ("", "local")
    try:
        with _sigterm_as_it_was():
            if is_cluster:
                _connect(address)
            else:
                _start_local(num_cores() + spare_cpus)
        yield _resources(may_grow=is_cluster)
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """Put back a handler that Ray replaces by its own."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def num_cores() -> int:
    """CPU cores that this process may use; a container's limit counts."""
    return int(get_num_cpus(override_docker_cpu_warning=True))


def _connect(address: str) -> None:
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS = {address!r} is not the address of a cluster that this process can join: use host:port or "
            "'auto' on a node of the cluster, or send the job there with `ray job submit`"
        )
    try:
        _check_reachable(address)
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at RAY_ADDRESS = {address!r} ({one_line(error)}); start it, or unset "
            "RAY_ADDRESS to use a Ray of this machine's own"
        ) from error


def _check_reachable(address: str) -> None:
    """Ray itself would try an address where nobody listens for many minutes."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _start_local(num_cpus: int) -> None:
    _set_local_defaults(os.environ)
    try:
        ray.init(
            address="local",
            _metrics_export_port=_metrics_port(os.environ.get("MTOP_METRICS_PORT")),
            num_cpus=num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **_directories(get_default_ray_temp_dir()),
        )
    except MtopError:
        raise
    except Exception as error:  # Ray raises just that when its processes do not come up in time
        raise JobError(
            f"Ray cannot start on this machine: {one_line(error)}; look whether the machine is overloaded or short of "
            "memory, or set RAY_TMPDIR to a directory with a short path and some room"
        ) from error


def _directories(default: str) -> dict[str, Any]:
    """Where a local Ray keeps its sockets and what does not fit into memory, if its default cannot be.

    The paths of sockets are limited to about a hundred bytes; TMPDIR may be longer than what is left of these.
    """
    if len(os.fsencode(default)) <= _LONGEST_TEMP_DIR:
        return {}
    return {"_temp_dir": _SHORT_TEMP_DIR, "object_spilling_directory": default}


def _metrics_port(value: str | None) -> int | None:
    if not value:
        return None
    if not value.isdecimal() or not 1024 <= int(value) < 65536:
        raise ConfigError(f"MTOP_METRICS_PORT = {value!r} is not a port; use a number from 1024 to 65535")
    return int(value)


def _set_local_defaults(environ: MutableMapping[str, str]) -> None:
    environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's exporter listens on every interface, and asks for no token: only where somebody wants it.
    environ.setdefault("RAY_enable_metrics_collection", "1" if environ.get("MTOP_METRICS_PORT") else "0")
    # Ray turns authentication on by itself, and takes this token in place of writing one to ~/.ray.
    if "RAY_AUTH_MODE" not in environ and "RAY_AUTH_TOKEN_PATH" not in environ:
        environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _resources(*, may_grow: bool) -> Resources:
    totals = ray.cluster_resources()
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    num_cpus = int(totals.get("CPU", 0))
    cores = num_cores() if not may_grow and num_nodes == 1 and num_cpus > num_cores() else 0
    return Resources(num_cpus, int(totals.get("GPU", 0)), num_nodes, may_grow, cores)
