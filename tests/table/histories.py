"""Histories of a label table, drawn by seed: commands interleaved at every storage operation, kills between any two of
them, writes and deletions that arrive long after their run is dead, changed sources, refusals, clocks that jump.

After every operation a plain reader looks: each article once, with labels of one content and one definition per task.

PYTHONPATH=. python -m tests.table.histories 2000      # so many histories; prints how many operations
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
from typing import Any
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
from mtop_batch.table.definition import Definition
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.publisher import publish
from mtop_batch.table.row_ranges import slice_rows
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.store import LabelFile, record_of
from mtop_batch.table.vacuum import find_garbage, remove_garbage
from tests.labelling.support import articles, definition, expected_label, label_unit

NUM_SOURCES, COMMANDS = 3, 8
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


class History:
    """One label table and its corpus, and what happens to them.

    Args:
        root: An empty directory.
        seed: Decides everything.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.corpus, self.labels = root / "corpus", root / "labels"
        self.corpus.mkdir()
        self.contents: dict[str, dict[tuple[int, str], list[str]]] = {}
        self.late: list[Callable[[], object]] = []
        self.published: set[str] = set()
        self.running: list[Command] = []
        self.log: list[str] = []
        self.num_operations = 0
        self._local = threading.local()
        self._clock = datetime(2026, 11, 26, tzinfo=UTC)

    # --- the corpus ---

    def write_source(self, name: str) -> None:
        start = self.rng.randrange(10_000)
        columns = articles(self.rng.randint(1, 5), start)
        path = self.corpus / name
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.table(columns), temporary)
        os.replace(temporary, path)
        os.utime(path, ns=(self.num_operations, 10**9 * (len(self.log) + 1) + self.num_operations))
        info = storage.stat(str(path))
        self.contents.setdefault(name, {})[info.size, info.version] = columns["id"]
        self.note(f"write {name}")

    def remove_source(self, name: str) -> None:
        (self.corpus / name).unlink()
        self.note(f"remove {name}")

    # --- commands, as the engine runs them, without the lease ---

    def label(self, wanted: Definition, *, prune: bool, shows: bool) -> None:
        plan = plan_labels(str(self.corpus), str(self.labels), wanted, prune=prune)
        run = self.run_id()
        write_run(plan.labels, run, wanted, plan.corpus)
        for file in plan.damaged:
            storage.delete(file.uri(plan.labels))
        for unit in plan.units:
            with suppress(UnreadableSource):  # it has changed since it was listed
                label_unit(plan.corpus, plan.labels, wanted, unit, run)
        if shows:
            publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run, orphans=plan.removals)

    def roll_back(self, wanted: Definition) -> None:
        sources = stored_sources(str(self.labels))
        publish(str(self.labels), wanted.view, wanted.kinds, sources, self.run_id(), require_all=False)

    def vacuum(self) -> None:
        remove_garbage(str(self.labels), find_garbage(str(self.labels), keep_runs=2), force=True)

    def run_id(self) -> str:
        self._clock += timedelta(seconds=self.rng.choice([1, 1, 1, -600, 900]))
        return new_run_id(self._clock)

    def draw_command(self) -> Command:
        wanted = definition(
            {"a": self.rng.choice("12"), **({"b": self.rng.choice("12")} if self.rng.random() < 0.7 else {})}
        )
        kind = self.rng.choices(["label", "roll back", "vacuum"], [7, 2, 1])[0]
        prune, shows = self.rng.random() < 0.2, self.rng.random() < 0.9
        runs: dict[str, Callable[[], None]] = {
            "label": partial(self.label, wanted, prune=prune, shows=shows),
            "roll back": partial(self.roll_back, wanted),
            "vacuum": self.vacuum,
        }
        return Command(f"{kind} {dict(wanted.fingerprints)} prune={prune} shows={shows}", runs[kind])

    # --- interleaving: one thread at a time, a step is one write ---

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
        """Let a command do its next write, or fail there; then look."""
        command.fate = fate
        command.turn.release()
        command.stopped.acquire()
        self.num_operations += 1
        if command.done.is_set():
            self.running.remove(command)
            expected = (Killed, MtopError, FileNotFoundError)
            assert command.failure is None or isinstance(command.failure, expected), self.story(command.failure)
            self.note(f"end {command.name}: {command.failure!r:.80}")
        self.look()

    def before_write(self, name: str, write: Callable[[], Any]) -> Any:
        """What a write becomes: done, refused, lost with its process, or under way when that dies."""
        command: Command | None = getattr(self._local, "command", None)
        if command is None or getattr(self._local, "is_writing", False):
            return write()
        command.stopped.release()
        command.turn.acquire()
        if command.fate == "late":
            self.late.append(write)
            self.note(f"killed, {name} under way: {command.name}")
        if command.fate in ("kill", "late"):
            raise Killed
        if command.fate == "refuse":
            raise StorageError(f"{name} was refused")
        self._local.is_writing = True
        try:
            found = write()
        finally:
            self._local.is_writing = False
        if command.fate == "kill after":
            raise Killed
        return found

    # --- what readers see ---

    def look(self) -> None:
        seen: set[str] = set()
        for path in sorted((self.labels / "current").rglob("*.parquet")):
            parquet = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
            footer = PublishedFooter.decode(record_of(parquet.metadata), parquet.metadata.num_rows)
            self.check(parquet.read(), footer)
            seen.add(footer.source.path)
        gone = {name for name in self.published - seen if (self.corpus / name).exists() and name not in self.removable}
        assert not gone, self.story(f"readers miss {gone}")
        self.published |= seen
        self.published -= {name for name in self.published if name not in seen}

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
            if to_start and (not self.running or (len(self.running) < 2 and self.rng.random() < 0.3)):
                self.start(self.draw_command())
                to_start -= 1
            self.disturb()
            if self.running:
                fates = ["go", "kill", "kill after", "late", "refuse"]
                self.step(self.rng.choice(self.running), self.rng.choices(fates, [60, 1, 1, 2, 1])[0])
        for write in self.late:
            self.arrive(write)
        self.end_quietly()

    def disturb(self) -> None:
        if self.rng.random() < 0.05:
            name = f"s{self.rng.randrange(NUM_SOURCES)}.parquet"
            exists = (self.corpus / name).exists()
            if exists and self.rng.random() < 0.3 and len(list(self.corpus.iterdir())) > 1:
                self.remove_source(name)
            else:
                self.write_source(name)
        if self.rng.random() < 0.02:
            self.damage()
        if self.late and self.rng.random() < 0.1:
            self.arrive(self.late.pop(self.rng.randrange(len(self.late))))
            self.look()

    def arrive(self, write: Callable[[], object]) -> None:
        self.note("a late write arrives")
        self.num_operations += 1
        with suppress(MtopError, OSError):
            write()

    def damage(self) -> None:
        files = sorted((self.labels / "_store").rglob("*.parquet"))
        if files:
            path = self.rng.choice(files)
            path.write_bytes(path.read_bytes()[: self.rng.randrange(8)])
            self.note(f"damage {path.name}")

    def end_quietly(self) -> None:
        wanted = definition({"a": "1", "b": "2"})
        for _ in range(2):
            self.label(wanted, prune=True, shows=True)
        self.label(wanted, prune=True, shows=True)
        self.look()
        plan = plan_labels(str(self.corpus), str(self.labels), wanted)
        assert not plan.has_work, self.story(plan)
        infos = {info.path: info for info in storage.list_files(str(self.corpus))}
        shown = {}
        for path in (self.labels / "current").rglob("*.parquet"):
            parquet = pq.ParquetFile(path)
            footer = PublishedFooter.decode(record_of(parquet.metadata), parquet.metadata.num_rows)
            shown[footer.source.path] = footer
        assert shown.keys() == infos.keys(), self.story(shown.keys())
        for name, footer in shown.items():
            assert footer.source == SourceFile(name, infos[name].size, infos[name].version), self.story(name)
            found = {task: made.fingerprint for task, made in footer.tasks.items()}
            assert found == {"a": "1", "b": "2"}, self.story(found)


@contextmanager
def patched(history: History) -> Iterator[None]:
    """Storage whose writes wait for their turn; everything of one command in one thread, nothing waits for a disk."""

    def waiting(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: history.before_write(name, partial(write, *args, **options))

    def in_turn(function: Callable[[Any], Any], items: Iterable[Any], *_: object, **__: object) -> Iterator[Any]:
        return map(function, list(items))

    with ExitStack() as stack:
        for name in WRITES:
            module = conditional if hasattr(conditional, name) and name not in ("delete", "write_bytes") else storage
            stack.enter_context(mock.patch.object(module, name, waiting(name, getattr(module, name))))
        stack.enter_context(mock.patch.object(storage, "in_threads", in_turn))
        stack.enter_context(mock.patch.object(os, "fsync", return_value=None))
        stack.enter_context(mock.patch.object(staleness, "slice_rows", partial(slice_rows, slice_rows=2)))
        yield


def run_history(seed: int) -> int:
    """One history; how many storage operations it had.

    Raises:
        AssertionError: A reader saw what it must never see, or the table did not recover.
    """
    with tempfile.TemporaryDirectory() as root:
        history = History(Path(root), seed)
        with patched(history):
            history.happen()
        return history.num_operations


__all__ = ["LabelFile", "run_history"]


def main(number: int, first: int = 0) -> None:
    """Run histories and say how many operations they had."""
    operations = 0
    for seed in range(first, first + number):
        try:
            operations += run_history(seed)
        except AssertionError as failure:
            print(f"seed {seed}: {failure}", flush=True)
            raise SystemExit(1) from failure
    print(f"{number:,} histories, {operations:,} operations")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
