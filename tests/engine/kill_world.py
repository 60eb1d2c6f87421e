"""Where the kill tests happen: a corpus, a bundle and an undisturbed label table on a disk and on a real S3 server, a
cluster of two nodes, and `mtop label` as a process of its own."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.local_cluster import (
    LocalCluster,
    Process,
    add_node,
    find_process,
    kill_node,
    processes_of,
    start_cluster,
    stop_cluster,
)
from mtop_batch import Task, storage
from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.kinds.mtop import MTOPModel
from tests.conftest import WORDS, make_backbone, make_tokenizer
from tests.engine.label_readers import Sources, contents, label_files, num_rows, reports
from tests.s3 import S3Server, s3_server

Storage = Literal["disk", "s3"]
RayKind = Literal["own", "cluster"]

TASKS = [
    Task("politics", text=("title", "body")),
    Task("mood", labels=("bad", "neutral", "good"), text=("title", "body")),
    Task("length", kind="regression", labels=(), text=("title", "body")),
    Task("emotions", kind="multi-label", labels=("joy", "fear", "anger"), text=("title", "body")),
    Task("names", kind="token", labels=("PER", "LOC"), text=("title", "body")),
]
UNIT_ROWS = 50
# A dead node is noticed within seconds, not half a minute; the rest of Ray is as users have it.
_SETTINGS = {"RAY_health_check_period_ms": "500", "RAY_health_check_initial_delay_ms": "500"}
_POLL_S = 0.02


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbs.

    Args:
        files: Its label files and published files, with one run id in place of its own.
        num_articles: Rows of the corpus.
        first_label_s: Seconds from its start to its first label file.
    """

    files: dict[str, bytes]
    num_articles: int
    first_label_s: float

    @property
    def num_label_files(self) -> int:
        """Of the store."""
        return sum(name.startswith("_store/") for name in self.files)

    @property
    def num_cells(self) -> int:
        """Articles x tasks."""
        return self.num_articles * len(TASKS)


class RunEnded(AssertionError):
    """The run ended before the moment that was waited for."""


@dataclass
class Run:
    """`mtop label` in a process of its own, which leads a session; killed where its block ends before it does."""

    process: subprocess.Popen[bytes]
    driver: Process
    labels: str
    log: Path
    cluster: LocalCluster | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def processes(self) -> set[Process]:
        """The processes of the Ray that does the work, and the driver."""
        return processes_of([self.driver, *(self.cluster.nodes if self.cluster else ())])

    def workers(self, title: str) -> list[Process]:
        """Those of Ray's workers whose title begins so; it tells what a worker is doing."""
        return sorted(process for process in self.processes() if _title(process).startswith(f"ray::{title}"))

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 120.0) -> None:
        """Wait until it is so while the run goes on.

        Raises:
            RunEnded: The run ended before.
            AssertionError: It took too long.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise RunEnded(f"the run ended before its moment came:\n{self.output}")
            assert time.monotonic() < deadline, f"the moment did not come:\n{self.output}"
            time.sleep(_POLL_S)

    def end(self, timeout_s: float = 300.0) -> int:
        """Wait until the run and everything it started has ended; its exit code, or minus the signal.

        Raises:
            AssertionError: It hangs, or leaves workers behind.
        """
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run hangs:\n{self.output}") from None
        deadline = time.monotonic() + 180  # an agent of Ray's that was still starting notices late that it is alone
        while left := (self.workers("Map") if self.cluster else self.processes()):
            assert time.monotonic() < deadline, f"left running: {[_title(process) for process in left]}"
            time.sleep(_POLL_S)
        return code

    @property
    def output(self) -> str:
        """What people saw."""
        return self.log.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line of what people saw."""
        return (self.output.splitlines() or [""])[-1]


class World:
    """The storages, the corpus, the bundle, the cluster; made by `open_world`."""

    def __init__(self, root: Path, server: S3Server, cluster: LocalCluster) -> None:
        self.server = server
        self.cluster = cluster
        self._root = root
        self._undisturbed: dict[Storage, Undisturbed] = {}
        self.sources = {where: _write_corpus(f"{self.base(where)}/corpus") for where in ("disk", "s3")}
        for where in self.sources:
            _save_bundle(f"{self.base(where)}/model")

    def base(self, where: str) -> str:
        """Where the bundle, the corpus and the label tables lie."""
        return str(self._root / "disk") if where == "disk" else f"s3://{self.server.bucket}/kills"

    def start(
        self,
        where: Storage,
        ray: RayKind,
        labels: str,
        *options: str,
        with_lease: bool = True,
        keys: Mapping[str, str] = MappingProxyType({}),
    ) -> Run:
        """Start `mtop label` on the cluster, or with a Ray of its own, and perhaps with other keys of the S3 server."""
        base = self.base(where)
        module = "mtop_batch.cli" if with_lease else "tests.engine.label_without_lease"
        command = [sys.executable, "-m", module, "label", "--model", f"{base}/model"]
        command += ["--corpus", f"{base}/corpus", "--labels", labels, "--unit-rows", str(UNIT_ROWS)]
        command += ["--num-actors", "2", *options]
        environment = {**os.environ, **(self.cluster.environment if ray == "cluster" else {}), **keys}
        descriptor, log = tempfile.mkstemp(".log", "run-", self._root)
        with os.fdopen(descriptor, "wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Run(process, find_process(process.pid), labels, Path(log), self.cluster if ray == "cluster" else None)

    def undisturbed(self, where: Storage) -> Undisturbed:
        """The table that every disturbed one must come to equal; labelled at the first call."""
        if where not in self._undisturbed:
            labels = f"{self.base(where)}/undisturbed"
            started = time.monotonic()
            run = self.start(where, "cluster", labels)
            run.wait_for(lambda: label_files(labels))
            first_label_s = time.monotonic() - started
            assert run.end() == 0, run.output
            (report,) = reports(labels)
            assert report["errors"] > 0
            files = contents(labels)
            self._undisturbed[where] = Undisturbed(files, num_rows(labels), first_label_s)
            assert num_rows(labels) == sum(len(ids) for ids in self.sources[where].values())
        return self._undisturbed[where]

    def replace_node(self) -> None:
        """End the cluster's second node, of which only the raylet may have ended, and start another."""
        head, lost = self.cluster.nodes[0], self.cluster.nodes[-1]
        kill_node(lost)
        deadline = time.monotonic() + 60
        while self.cluster.num_alive_nodes() != 1:
            assert time.monotonic() < deadline, "the lost node is not noticed"
            time.sleep(0.2)
        self.cluster = add_node(self.cluster, cpus=2)
        self.cluster = replace(self.cluster, nodes=(head, self.cluster.nodes[-1]))


@contextmanager
def open_world(root: Path) -> Iterator[World]:
    """A world below `root`; its servers and its cluster run until the block ends, with their variables set."""
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        server = stack.enter_context(s3_server(root / "server"))
        # Ray's files go where a socket's path is short enough, and away in the end.
        ray_files = tempfile.mkdtemp(prefix="mtop-", dir="/tmp")
        stack.callback(shutil.rmtree, ray_files, ignore_errors=True)
        for name, value in {**server.environment, **_SETTINGS, "RAY_TMPDIR": ray_files}.items():
            environment.setenv(name, value)
        environment.delenv("RAY_ADDRESS", raising=False)
        stack.callback(stop_cluster, root / "cluster")
        yield World(root, server, start_cluster(root / "cluster", nodes=2, cpus_per_node=2))


def _write_corpus(uri: str) -> Sources:
    """Fourteen source files of 20 to 260 articles in two partitions, a few of which cannot be labelled."""
    sources: dict[str, list[str]] = {}
    for number in range(14):
        rng = random.Random(number)
        name = f"date=2026-11-{19 + number % 2}/part {number}.parquet"
        texts: list[str | None] = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(20 + 20 * number)]
        for row in rng.sample(range(len(texts)), 2):
            texts[row] = rng.choice([None, " "])
        ids = [f"{number}/{row}" for row in range(len(texts))]
        columns = {"id": ids, "title": [text and text[:12] for text in texts], "body": texts}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        storage.write_bytes(storage.join(uri, name), sink.getvalue())
        sources[name] = ids
    return sources


def _save_bundle(uri: str) -> None:
    model = MTOPModel.from_backbone(make_backbone(), TASKS, prompt_attention="isolated", max_tokens=32, seed=0)
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")


def _title(process: Process) -> str:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
