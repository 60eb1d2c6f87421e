"""Histories of a label table, drawn at random: commands interleaved at every storage operation, kills between any two
of them, writes and deletions that arrive long after their run is dead or twice, changed sources, refusals, clocks that
jump.

After every operation that changes something a plain reader looks: each article once, with labels of one content and
one definition per task. On an object store an operation is a request, reads and listings too; on a disk it is a write.

PYTHONPATH=. python -m tests.table.histories 2000 s3   # so many histories; prints how many operations
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile, UnreadableSource
from mtop_batch.engine.publish import stored_sources
from mtop_batch.errors import MtopError, StorageError
from mtop_batch.labelling.plan import staleness
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.storage import conditional
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.definition import Definition
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.publisher import publish
from mtop_batch.table.row_ranges import slice_rows
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.store import LabelFile, record_of
from mtop_batch.table.vacuum import find_garbage, remove_garbage
from tests.labelling.support import articles, definition, expected_label, label_unit
from tests.table.fake_s3 import FakeS3, refusal, serving

StoreKind = Literal["disk", "s3"]
NUM_SOURCES, COMMANDS = 3, 8
# Steps of a history on S3 for one on a disk, about: there reads are steps too.
READS_PER_WRITE = 4
WRITES = ("create", "replace_version", "replace", "delete_version", "delete", "write_bytes")


class Killed(BaseException):
    """The process of a command is dead."""


@dataclass
class Command:
    """A command under way, in a thread that stops before every write until it is its turn."""

    name: str
    run: Callable[[], None]
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    fate: str = "go"
    failure: BaseException | None = None


class Place(Protocol):
    """Where corpus and labels lie, past the operations that histories disturb."""

    root: str

    def put(self, path: str, data: bytes) -> None: ...
    def get(self, path: str) -> bytes: ...
    def remove(self, path: str) -> None: ...
    def paths(self, below: str) -> list[str]: ...


class Disk:
    """A directory; no two contents have the same time."""

    def __init__(self, root: str) -> None:
        self.root, self._time = root, 0

    def put(self, path: str, data: bytes) -> None:
        target = Path(self.root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(data)
        self._time += 1
        os.utime(temporary, (self._time, self._time))
        os.replace(temporary, target)

    def get(self, path: str) -> bytes:
        return Path(self.root, path).read_bytes()

    def remove(self, path: str) -> None:
        Path(self.root, path).unlink()

    def paths(self, below: str) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in Path(self.root, below).rglob("*.parquet"))


class Bucket:
    """A bucket of an object store in memory."""

    root = "s3://bucket"

    def __init__(self, store: FakeS3) -> None:
        self.store = store

    def put(self, path: str, data: bytes) -> None:
        self.store.objects[f"bucket/{path}"] = data

    def get(self, path: str) -> bytes:
        return self.store.objects[f"bucket/{path}"]

    def remove(self, path: str) -> None:
        del self.store.objects[f"bucket/{path}"]

    def paths(self, below: str) -> list[str]:
        keys = sorted(key.removeprefix("bucket/") for key in self.store.objects)
        return [key for key in keys if key.startswith(f"{below}/") and key.endswith(".parquet")]


class History:
    """One label table and its corpus, and what happens to them.

    Args:
        kind: What the table lies on.
        root: An empty directory, for a disk.
        rng: Decides everything.
    """

    def __init__(self, kind: StoreKind, root: str, rng: random.Random) -> None:
        self.rng = rng
        self.s3 = FakeS3(self.on_operation) if kind == "s3" else None
        self.place: Place = Bucket(self.s3) if self.s3 else Disk(root)
        self.corpus, self.labels = f"{self.place.root}/corpus", f"{self.place.root}/labels"
        self.steps = READS_PER_WRITE if self.s3 else 1
        self.contents: dict[str, dict[tuple[int, str], list[str]]] = {}
        self.late: list[Callable[[], object]] = []
        self.published: set[str] = set()
        self.running: list[Command] = []
        self.log: list[str] = []
        self.num_operations = 0
        self.has_changed = False
        self._local = threading.local()
        self._clock = datetime(2026, 11, 26, tzinfo=UTC)

    # --- the corpus ---

    def write_source(self, name: str) -> None:
        columns = articles(self.rng.randint(1, 5), self.rng.randrange(10_000))
        content = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), content)
        self.place.put(f"corpus/{name}", content.getvalue().to_pybytes())
        info = self.sources()[name]
        self.contents.setdefault(name, {})[info.size, info.version] = columns["id"]
        self.note(f"write {name}")

    def remove_source(self, name: str) -> None:
        self.place.remove(f"corpus/{name}")
        self.note(f"remove {name}")

    def sources(self) -> dict[str, FileInfo]:
        return {info.path: info for info in storage.list_files(self.corpus)}

    # --- commands, as the engine runs them, without the lease ---

    def label(self, wanted: Definition, *, prune: bool, shows: bool, jump: int = 1) -> None:
        plan = plan_labels(self.corpus, self.labels, wanted, prune=prune)
        run = self.run_id(jump)
        write_run(plan.labels, run, wanted, plan.corpus)
        for file in plan.damaged:
            storage.delete(file.uri(plan.labels))
        for unit in plan.units:
            with suppress(UnreadableSource):  # it has changed since it was listed
                label_unit(plan.corpus, plan.labels, wanted, unit, run)
        if shows:
            publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run, orphans=plan.removals)

    def roll_back(self, wanted: Definition, *, jump: int) -> None:
        sources = stored_sources(self.labels)
        publish(self.labels, wanted.view, wanted.kinds, sources, self.run_id(jump), require_all=False)

    def vacuum(self) -> None:
        remove_garbage(self.labels, find_garbage(self.labels, keep_runs=2), force=True)

    def run_id(self, jump: int) -> str:
        self._clock += timedelta(seconds=jump)
        return new_run_id(self._clock)

    def draw_command(self) -> Command:
        wanted = definition(
            {"a": self.rng.choice("12"), **({"b": self.rng.choice("12")} if self.rng.random() < 0.7 else {})}
        )
        kind = self.rng.choices(["label", "roll back", "vacuum"], [7, 2, 1])[0]
        prune, shows = self.rng.random() < 0.2, self.rng.random() < 0.9
        jump = self.rng.choice([1, 1, 1, -600, 900])
        runs: dict[str, Callable[[], None]] = {
            "label": partial(self.label, wanted, prune=prune, shows=shows, jump=jump),
            "roll back": partial(self.roll_back, wanted, jump=jump),
            "vacuum": self.vacuum,
        }
        return Command(f"{kind} {dict(wanted.fingerprints)} prune={prune} shows={shows}", runs[kind])

    # --- interleaving: one thread at a time, a step is one operation ---

    def start(self, command: Command) -> None:
        self.note(f"start {command.name}")
        self.running.append(command)

        def body() -> None:
            self._local.command = command
            try:
                command.turn.acquire()
                command.run()
            except BaseException as failure:
                command.failure = failure
            command.done.set()
            command.stopped.release()

        threading.Thread(target=body, daemon=True).start()

    def step(self, command: Command, fate: str) -> None:
        """Let a command do its next operation, or fail there; then look, if it can have changed something."""
        command.fate, self.has_changed = fate, False
        command.turn.release()
        command.stopped.acquire()
        self.num_operations += 1
        if command.done.is_set():
            self.running.remove(command)
            expected = (Killed, MtopError, FileNotFoundError)
            assert command.failure is None or isinstance(command.failure, expected), self.story(command.failure)
            self.note(f"end {command.name}: {command.failure!r:.80}")
        if self.has_changed:
            self.look()

    def on_operation(self, name: str, operation: Callable[[], Any], changes: bool) -> Any:
        """What an operation becomes: done, done twice, refused, lost with its process, or under way when that dies."""
        command: Command | None = getattr(self._local, "command", None)
        if command is None or getattr(self._local, "is_inside", False):
            return operation()
        command.stopped.release()
        command.turn.acquire()
        if command.fate == "late" and changes:
            self.late.append(operation)
            self.note(f"killed, {name} under way: {command.name}")
        if command.fate in ("kill", "late"):
            raise Killed
        if command.fate == "refuse":
            raise refusal() if self.s3 else StorageError(f"{name} was refused")
        self.has_changed = changes
        self._local.is_inside = True
        try:
            if command.fate == "twice" and changes:  # the answer was lost, and the client asks again
                self.note(f"{name} twice: {command.name}")
                with suppress(OSError):
                    operation()
            found = operation()
        finally:
            self._local.is_inside = False
        if command.fate == "kill after":
            raise Killed
        return found

    # --- what readers see ---

    def look(self) -> None:
        seen: set[str] = set()
        for parquet, footer in self.shown():
            self.check(parquet.read(), footer)
            seen.add(footer.source.path)
        gone = self.published - seen - self.removable
        assert not gone, self.story(f"readers miss {gone}")
        self.published = seen

    def shown(self) -> Iterator[tuple[pq.ParquetFile, PublishedFooter]]:
        for path in self.place.paths("labels/current"):
            parquet = pq.ParquetFile(pa.BufferReader(self.place.get(path)))
            footer = PublishedFooter.decode(record_of(parquet.metadata), parquet.metadata.num_rows)
            if parquet.metadata.num_rows:  # on S3 the file of a source that is gone is emptied: that has a condition
                yield parquet, footer

    @property
    def removable(self) -> set[str]:
        """Sources that were gone at some time: a run that saw it so may remove their rows."""
        return {line.removeprefix("remove ") for line in self.log if line.startswith("remove ")}

    def check(self, table: pa.Table, footer: PublishedFooter) -> None:
        ids = self.contents[footer.source.path][footer.source.size, footer.source.version]
        assert table["id"].to_pylist() == ids, self.story(f"{footer.source.path}: {table['id'].to_pylist()}")
        for task, made in footer.tasks.items():
            expected = [
                expected_label(task, made.fingerprint, f"title {name[1:]}", f"body {name[1:]}")[0] for name in ids
            ]
            assert table[f"{task}_label"].to_pylist() == expected, self.story(f"{footer.source.path}: {task}")

    def story(self, what: object) -> str:
        return "\n".join([*self.log, f"{what}"])

    def note(self, line: str) -> None:
        self.log.append(line)

    # --- the whole ---

    def happen(self) -> None:
        """Draw and run a history, then a quiet run: the table is that of an undisturbed one."""
        for number in range(NUM_SOURCES - 1):
            self.write_source(f"s{number}.parquet")
        to_start = COMMANDS
        while to_start or self.running:
            if to_start and (not self.running or (len(self.running) < 2 and self.rng.random() < 0.3 / self.steps)):
                self.start(self.draw_command())
                to_start -= 1
            self.disturb()
            if self.running:
                fates = ["go", "kill", "kill after", "late", "refuse", "twice"]
                weights = [60 * self.steps, 1, 1, 3, 1, 3 if self.s3 else 0]
                self.step(self.rng.choice(self.running), self.rng.choices(fates, weights)[0])
        last = [write for write in self.late if self.rng.random() < 0.5]
        for write in self.late:
            if write not in last:
                self.arrive(write)
        before = self.current()
        self.end_quietly()
        self.arrive_last(last, before)
        self.end_quietly()

    def disturb(self) -> None:
        if self.rng.random() < 0.05 / self.steps:
            name = f"s{self.rng.randrange(NUM_SOURCES)}.parquet"
            sources = self.place.paths("corpus")
            if f"corpus/{name}" in sources and len(sources) > 1 and self.rng.random() < 0.3:
                self.remove_source(name)
            else:
                self.write_source(name)
        if self.rng.random() < 0.02 / self.steps:
            self.damage()
        if self.late and self.rng.random() < 0.1 / self.steps:
            self.arrive(self.late.pop(self.rng.randrange(len(self.late))))
            self.look()

    def arrive(self, write: Callable[[], object]) -> None:
        self.note("a late write arrives")
        self.num_operations += 1
        with suppress(MtopError, OSError):
            write()

    def arrive_last(self, writes: list[Callable[[], object]], before: dict[str, bytes]) -> None:
        """Writes of dead runs that arrive after a quiet run: what that has replaced is not what they were planned
        from any more."""
        after = self.current()
        replaced = {path: data for path, data in after.items() if before.get(path) != data}
        for write in writes:
            self.arrive(write)
            self.look()
            now = self.current()
            assert all(now.get(path) == data for path, data in replaced.items()), self.story("a late write has won")

    def current(self) -> dict[str, bytes]:
        return {path: self.place.get(path) for path in self.place.paths("labels/current")}

    def damage(self) -> None:
        if files := self.place.paths("labels/_store"):
            path = self.rng.choice(files)
            self.place.put(path, self.place.get(path)[: self.rng.randrange(8)])
            self.note(f"damage {path}")

    def end_quietly(self) -> None:
        wanted = definition({"a": "1", "b": "2"})
        for _ in range(2):
            self.label(wanted, prune=True, shows=True)
        self.label(wanted, prune=True, shows=True)
        self.look()
        plan = plan_labels(self.corpus, self.labels, wanted)
        assert not plan.has_work, self.story(plan)
        sources, shown = self.sources(), {footer.source.path: footer for _, footer in self.shown()}
        assert shown.keys() == sources.keys(), self.story(shown.keys())
        for name, footer in shown.items():
            assert footer.source == SourceFile(name, sources[name].size, sources[name].version), self.story(name)
            found = {task: made.fingerprint for task, made in footer.tasks.items()}
            assert found == {"a": "1", "b": "2"}, self.story(found)


@contextmanager
def patched(history: History) -> Iterator[None]:
    """Storage whose operations wait for their turn; all of a command in one thread, nothing waits for a disk."""

    def waiting(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: history.on_operation(name, partial(write, *args, **options), True)

    def in_turn(function: Callable[[Any], Any], items: Iterable[Any], *_: object, **__: object) -> Iterator[Any]:
        return map(function, list(items))

    with ExitStack() as stack:
        if history.s3:
            stack.enter_context(serving(history.s3))
        else:
            for name in WRITES:
                module = (
                    conditional if hasattr(conditional, name) and name not in ("delete", "write_bytes") else storage
                )
                stack.enter_context(mock.patch.object(module, name, waiting(name, getattr(module, name))))
            stack.enter_context(mock.patch.object(os, "fsync", return_value=None))
        stack.enter_context(mock.patch.object(storage, "in_threads", in_turn))
        stack.enter_context(mock.patch.object(staleness, "slice_rows", partial(slice_rows, slice_rows=2)))
        yield


def run_history(kind: StoreKind, rng: random.Random) -> int:
    """One history; how many storage operations it had.

    Raises:
        AssertionError: A reader saw what it must never see, or the table did not recover.
    """
    with tempfile.TemporaryDirectory() as root:
        history = History(kind, root, rng)
        with patched(history):
            history.happen()
        return history.num_operations


__all__ = ["LabelFile", "StoreKind", "run_history"]


def main(number: int, kind: StoreKind, first: int = 0) -> None:
    """Run histories and say how many operations they had."""
    assert kind in get_args(StoreKind), kind
    operations = 0
    for seed in range(first, first + number):
        try:
            operations += run_history(kind, random.Random(seed))
        except AssertionError as failure:
            print(f"seed {seed}: {failure}", flush=True)
            raise SystemExit(1) from failure
    print(f"{number:,} histories on {kind}, {operations:,} operations")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))  # type: ignore[arg-type]
