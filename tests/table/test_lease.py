"""The lease on a label table: one writer at a time, whatever dies, stops or comes back late."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from mtop_batch import storage
from mtop_batch.errors import LabelTableError
from mtop_batch.storage import conditional
from mtop_batch.table.lease.holder import Holder
from mtop_batch.table.lease.lease import Clock, Lease, LeaseToken, hold_lease
from tests.s3 import S3Server, s3_server

NOW = datetime(2026, 11, 20, 2, tzinfo=UTC)

# A driver in a process of its own: takes the lease; at each line of its input says what its checks answer; releases.
DRIVER = """
import sys
from mtop_batch.table.lease.lease import hold_lease

def answer(check):
    try:
        check()
        return "holds"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

labels, run, ttl_s = sys.argv[1:]
with hold_lease(labels, run, ttl_s=float(ttl_s)) as lease:
    print("ready", flush=True)
    for _ in sys.stdin:
        print(answer(lease.check), "|", answer(lease.token.check), flush=True)
"""


class FakeClock(Clock):
    """Time that passes only in `sleep`."""

    def __init__(self, now: datetime = NOW) -> None:
        self.start, self.passed_s = now, 0.0

    def monotonic(self) -> float:
        return self.passed_s

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.passed_s)

    def sleep(self, duration_s: float) -> None:
        self.passed_s += duration_s


class WrongClock(Clock):
    """A wall clock that is an hour off."""

    def now(self) -> datetime:
        return super().now() - timedelta(hours=1)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for key, value in server.environment.items():
            patch.setenv(key, value)
        # The bucket comes a moment after the server.
        wait_for(lambda: not failure(lambda: conditional.read(f"s3://{server.bucket}/x")))
        yield server


@pytest.fixture
def s3_labels(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for key, value in s3.environment.items():
        monkeypatch.setenv(key, value)
    return f"s3://{s3.bucket}/{uuid4().hex}/labels"


@pytest.fixture(params=["local", "s3"])
def labels(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A label table that does not exist yet, on a disk and on S3."""
    return str(tmp_path / "labels") if request.param == "local" else request.getfixturevalue("s3_labels")


@contextmanager
def driver(labels: str, run: str, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    command = [sys.executable, "-c", DRIVER, labels, run, str(ttl_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    """What the checks of another process answer: the lease's and its token's."""
    assert process.stdin
    assert process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def lease_uri(labels: str) -> str:
    return storage.join(labels, "_lease.json")


def holder_of(labels: str) -> Holder:
    return Holder.from_json(storage.read_bytes(lease_uri(labels)), labels)


def write_holder(labels: str, holder: Holder) -> None:
    storage.write_bytes(lease_uri(labels), holder.to_json())


def holder_elsewhere(renewed_at: datetime = NOW, ttl_s: float = 60.0) -> Holder:
    """A holder on a machine that this one cannot look into."""
    return replace(Holder.this_process("old-run", 7, ttl_s, renewed_at), host="node-7", pid=4711, machine="other")


def failure(check: Callable[[], object]) -> str:
    """The message with which a check fails, "" if it does not."""
    try:
        check()
    except LabelTableError as error:
        return str(error)
    return ""


def wait_until_lost(lease: Lease) -> str:
    """The message with which the lease's check begins to fail."""
    wait_for(lambda: failure(lease.check))
    return failure(lease.check)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# --- one at a time ----------------------------------------------------------------------------------------------


def test_a_second_run_stops_at_once_and_says_who_holds_the_table_and_since_when(labels: str) -> None:
    with hold_lease(labels, "first") as lease:
        since = holder_of(labels).since.strftime("%Y-%m-%dT%H:%M:%SZ")
        started = time.monotonic()
        with pytest.raises(LabelTableError) as caught, hold_lease(labels, "second"):
            pass
        assert time.monotonic() - started < 2
        assert f"{labels} is being written by run first (process {os.getpid()} on " in str(caught.value)
        assert f"since {since}" in str(caught.value)
        assert "expires at" in str(caught.value)
        lease.check()
        lease.token.check()


def test_of_many_that_start_at_once_one_gets_the_table(labels: str) -> None:
    barrier, inside, refused = threading.Barrier(8), [], []
    all_tried = threading.Semaphore(0)

    def run(name: str) -> None:
        barrier.wait()
        try:
            with hold_lease(labels, name):
                inside.append(name)
                for _ in range(7):
                    assert all_tried.acquire(timeout=10)
        except LabelTableError as error:
            refused.append(str(error))
            all_tried.release()

    threads = [threading.Thread(target=run, args=(f"run-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1
    assert all(f"written by run {inside[0]} " in message for message in refused)
    assert len(refused) == 7


def test_the_lease_is_free_after_the_block_and_the_fence_rises(labels: str) -> None:
    with hold_lease(labels, "first") as first:
        pass
    with pytest.raises(ZeroDivisionError), hold_lease(labels, "second"):
        raise ZeroDivisionError
    with hold_lease(labels, "third") as third:
        assert (first.token.fence, third.token.fence) == (1, 3)
        with pytest.raises(LabelTableError, match=r"run first no longer holds .* run third .* took it over"):
            first.token.check()
    for check in (third.check, third.token.check):
        with pytest.raises(LabelTableError, match="released"):
            check()


def test_other_stores_get_a_lease_too() -> None:
    labels = f"memory://bucket-{uuid4().hex}/labels"
    with hold_lease(labels, "first") as lease:
        lease.token.check()
        with pytest.raises(LabelTableError, match="written by run first"), hold_lease(labels, "second"):
            pass


def test_the_lease_is_no_data(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path), "run"):
        assert sorted(os.listdir(tmp_path)) == ["_lease.json", "_lease.lock"]
        assert storage.list_files(str(tmp_path)) == []


# --- holders that die or stop -----------------------------------------------------------------------------------


def test_the_lease_of_a_killed_run_on_this_machine_is_taken_over_at_once(labels: str) -> None:
    notes: list[str] = []
    with driver(labels, "killed", ttl_s=60) as process:
        with pytest.raises(LabelTableError, match=rf"run killed \(process {process.pid} on"), hold_lease(labels, "r"):
            pass
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not yet reaped
        started = time.monotonic()
        with hold_lease(labels, "next", note=notes.append) as lease:
            assert time.monotonic() - started < 2
            assert lease.token.fence == 2
    assert len(notes) == 1
    assert "took over the lease" in notes[0]
    assert "run killed" in notes[0]


def test_a_suspended_run_that_comes_back_late_cannot_write(labels: str) -> None:
    with driver(labels, "late", ttl_s=0.4) as late:
        late.send_signal(signal.SIGSTOP)
        time.sleep(0.25)  # over half a ttl: it seems dead
        with hold_lease(labels, "next", ttl_s=5) as lease:
            late.send_signal(signal.SIGCONT)
            by_lease, by_token = ask(late).split("|")
            assert "LeaseLost: run late" in by_lease
            assert "run late no longer holds the lease" in by_token
            assert "run next" in by_token
            late.communicate()  # it leaves its block, and must not release what is not its own
            lease.token.check()
            assert holder_of(labels).run == "next"
            assert not holder_of(labels).released


def test_a_suspended_run_whose_lease_nobody_took_goes_on(tmp_path: Path) -> None:
    with driver(str(tmp_path), "slow", ttl_s=0.3) as slow:
        slow.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        slow.send_signal(signal.SIGCONT)
        wait_for(lambda: ask(slow) == "holds | holds\n")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_silent_holder_elsewhere_is_watched_for_its_ttl_by_our_own_clock(tmp_path: Path, hours: int) -> None:
    labels, clock = str(tmp_path), FakeClock()
    notes: list[str] = []
    write_holder(labels, holder_elsewhere(NOW + timedelta(hours=hours)))
    with hold_lease(labels, "next", clock=clock, note=notes.append) as lease:
        assert lease.token.fence == 8
    assert 60 <= clock.passed_s < 62
    assert [note.split(" ")[0] for note in notes] == ["run", "took"]
    assert "run old-run (process 4711 on node-7, since 2026-11-20T" in notes[0]


def test_a_crashed_holder_elsewhere_is_refused_only_while_it_may_be_alive(tmp_path: Path) -> None:
    write_holder(str(tmp_path), holder_elsewhere())
    with (
        pytest.raises(LabelTableError, match="expires at 2026-11-20T02:01:00Z: run the same command then"),
        hold_lease(str(tmp_path), "next", clock=FakeClock(NOW + timedelta(seconds=25))),
    ):
        pass
    with hold_lease(str(tmp_path), "next", clock=FakeClock(NOW + timedelta(seconds=35))) as lease:
        lease.check()


def test_a_holder_whose_wall_clock_is_wrong_is_refused_once_it_is_seen_renewing(labels: str) -> None:
    notes: list[str] = []
    with hold_lease(labels, "skewed", ttl_s=1.5, clock=WrongClock()) as lease:
        with pytest.raises(LabelTableError, match="by run skewed"), hold_lease(labels, "next", note=notes.append):
            pass
        lease.token.check()
    assert ["seems dead" in note for note in notes] == [True]


def test_a_process_id_that_is_another_process_by_now_is_a_dead_holder(tmp_path: Path) -> None:
    alive = Holder.this_process("old", 1, 60, datetime.now(UTC))
    assert not alive.has_ended()
    assert replace(alive, started="1").has_ended()
    assert not replace(alive, started="1", machine="another boot").has_ended()
    write_holder(str(tmp_path), replace(alive, started="1"))
    with hold_lease(str(tmp_path), "next") as lease:
        lease.check()


# --- losing it --------------------------------------------------------------------------------------------------


def test_a_holder_learns_that_it_was_taken_over(labels: str) -> None:
    with hold_lease(labels, "mine", ttl_s=1.0) as lease:
        write_holder(labels, holder_elsewhere())
        assert "run old-run (process 4711 on node-7" in wait_until_lost(lease)
    assert holder_of(labels) == holder_elsewhere()


def test_a_deleted_lease_is_a_lost_lease(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path), "mine", ttl_s=1.0) as lease:
        storage.delete(lease_uri(str(tmp_path)))
        assert "was deleted" in wait_until_lost(lease)
    assert not (tmp_path / "_lease.json").exists()


def test_a_lease_fails_its_checks_while_storage_does_not_answer_and_holds_again_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_: str) -> conditional.Snapshot:
        raise LabelTableError("the server is down")

    notes: list[str] = []
    with hold_lease(str(tmp_path), "mine", ttl_s=0.3, note=notes.append) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(conditional, "read", down)
            with pytest.raises(LabelTableError, match="the server is down"):
                lease.token.check()
            assert "could not renew its lease" in (message := wait_until_lost(lease))
            assert "the server is down" in message
        wait_for(lambda: not failure(lease.check))
        lease.token.check()
        monkeypatch.setattr(conditional, "read", down)
    assert ["the server is down" in note for note in notes] == [True]


def test_a_lease_that_ran_out_is_renewed_by_its_check_if_nobody_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_keep", lambda _: None)  # the thread's next try is still to come
    with hold_lease(str(tmp_path), "mine") as lease:
        lease._renewed -= 61  # its ttl is 60 s
        lease.check()
        assert holder_of(str(tmp_path)).renewals == 1
        write_holder(str(tmp_path), holder_elsewhere())
        lease._renewed -= 61
        assert "run old-run" in failure(lease.check)


def test_a_token_travels_and_asks_storage_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = conditional.read

    def counted(uri: str) -> conditional.Snapshot | None:
        reads.append(uri)
        return read(uri)

    with hold_lease(str(tmp_path), "mine") as lease:
        token: LeaseToken = pickle.loads(pickle.dumps(lease.token))
        monkeypatch.setattr(conditional, "read", counted)
        for _ in range(1000):
            token.check()
        assert reads == [lease_uri(str(tmp_path))]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 2}', b'{"format": 1, "since": "x"}'])
def test_a_damaged_lease_is_named(tmp_path: Path, content: bytes) -> None:
    storage.write_bytes(lease_uri(str(tmp_path)), content)
    with (
        pytest.raises(LabelTableError, match=r"_lease\.json cannot be read as a lease: .* delete this file"),
        hold_lease(str(tmp_path), "mine"),
    ):
        pass


# --- compare and swap -------------------------------------------------------------------------------------------


def test_a_file_is_replaced_only_if_it_is_still_what_was_read(labels: str) -> None:
    uri = storage.join(labels, "x.json")
    assert conditional.read(uri) is None
    assert conditional.replace(uri, None, b"1")
    assert not conditional.replace(uri, None, b"2")
    seen = conditional.read(uri)
    assert seen
    assert conditional.replace(uri, seen, b"3")
    assert not conditional.replace(uri, seen, b"4")
    assert storage.read_bytes(uri) == b"3"
    storage.delete(uri)
    assert not conditional.replace(uri, seen, b"5")
    assert conditional.read(uri) is None


def test_a_repeated_request_that_meets_its_own_change_has_succeeded(s3_labels: str) -> None:
    uri = storage.join(s3_labels, "x.json")
    assert conditional.replace(uri, None, b"1")
    assert conditional.replace(uri, None, b"1")


def test_an_outage_is_not_a_missing_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    token = LeaseToken("s3://bucket/labels", "mine", 1, 60)
    with pytest.raises(LabelTableError, match=r"at 127\.0\.0\.1 cannot be reached"):
        token.check()
    with pytest.raises(LabelTableError, match="cannot be reached"):
        conditional.replace(token.uri, None, b"x")


def test_a_lock_that_another_process_keeps_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditional, "_LOCK_TIMEOUT_S", 0.05)
    uri = str(tmp_path / "x.json")
    with (
        conditional._locked(uri, str(tmp_path / "x.lock")),
        pytest.raises(LabelTableError, match=r"x\.lock is locked by another process"),
    ):
        conditional.replace(uri, None, b"1")


def test_a_disk_without_locks_is_compared_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    uri = str(tmp_path / "x.json")
    assert conditional.replace(uri, None, b"1")
    assert not conditional.replace(uri, None, b"2")
