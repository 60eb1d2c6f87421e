"""One run at a time writes a label table: a lease on it, in the file `L/_lease.json`.

The holder renews the lease four times per ttl. A run that finds it held stops at once, unless the holder seems
dead: then it watches the file for a full ttl *of its own clock* and takes over if nobody renewed it, so that clocks
of different machines need not agree. Where the holder ran on the same machine and its process has ended, nobody
waits. Each taker raises the fence number (`conditional`): a holder that was suspended and comes back finds another
fence, can neither renew nor release, and its checks fail.

What a lease cannot do: a task that is suspended between its check and the end of its write still writes one file.
It has the name that its definition and unit give it, so it replaces a file of the same labels; had the source changed
meanwhile, the footer says of which content it is, and the next run replaces it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from mtop_batch import storage
from mtop_batch.errors import LabelTableError, LeaseLost, MtopError, one_line
from mtop_batch.storage import conditional
from mtop_batch.storage.conditional import Snapshot
from mtop_batch.table.lease.holder import Holder, in_utc

FILE_NAME = "_lease.json"
# Parts of the ttl. At 60 s they leave 45 s, at the worst, to a server that is down.
_RENEW_AFTER = 1 / 4
_RETRY_AFTER = 1 / 30
# A healthy holder has renewed less than this ago, with some room for clocks that disagree a little.
_FRESH = 1 / 2
_TAKE_ATTEMPTS = 10
_RELEASE_ATTEMPTS = 3
_JOIN_TIMEOUT_S = 5.0
# A token's good answer holds this long, or a tenth of the ttl.
_CHECK_EVERY_S = 1.0

_last_good_check: dict[LeaseToken, float] = {}


class Clock:
    """Time as the lease sees it; tests bring their own."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""
        return time.monotonic()

    def now(self) -> datetime:
        """The wall clock, which other machines may disagree with."""
        return datetime.now(UTC)

    def sleep(self, duration_s: float) -> None:
        """Wait."""
        time.sleep(duration_s)


@dataclass(frozen=True)
class LeaseToken:
    """The right to write under a lease, for tasks in other processes: plain data that can be pickled."""

    labels_uri: str
    run: str
    fence: int
    ttl_s: float

    def check(self) -> None:
        """Ask storage whether the lease is still this one; a good answer holds for up to a second in this process.

        Raises:
            LeaseLost: Another run has the lease, or it was released.
            StorageError: Storage does not answer.
        """
        asked = time.monotonic()
        last = _last_good_check.get(self)
        if last is not None and asked - last < min(_CHECK_EVERY_S, self.ttl_s / 10):
            return
        self.confirm(conditional.read(self.uri))
        _last_good_check[self] = asked

    @property
    def uri(self) -> str:
        """The lease file."""
        return storage.join(self.labels_uri, FILE_NAME)

    def confirm(self, snapshot: Snapshot | None) -> Holder:
        """The holder in the lease file as read, if that is still this lease's.

        Raises:
            LeaseLost: It is not.
        """
        lost = f"run {self.run} no longer holds the lease on {self.labels_uri} and stops writing:"
        after = "the same command does what is then missing"
        if snapshot is None:
            raise LeaseLost(f"{lost} {FILE_NAME} was deleted; {after}")
        found = Holder.from_json(snapshot.data, self.uri)
        if (found.run, found.fence) != (self.run, self.fence):
            raise LeaseLost(f"{lost} {found} took it over; {after} once that run has ended")
        if found.released:
            raise LeaseLost(f"{lost} it was released, so the run is over; {after}")
        return found


class Lease:
    """The lease of this process, renewed by a thread of its own until `release`.

    Args:
        token: What write tasks in other processes check.
        renewed: When the last successful write of the lease file began, by `clock`.
        note: Called with what goes wrong without ending the run.
    """

    def __init__(self, token: LeaseToken, renewed: float, clock: Clock, note: Callable[[str], None]) -> None:
        self.token = token
        self._renewed = renewed
        self._clock = clock
        self._note = note
        self._lost: str | None = None
        self._problem = "storage did not answer in time, or this process was suspended"
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise if this run may not write now; asks storage only when the lease has run out, so call it at will.

        Raises:
            LabelTableError: Another run took the lease over, or it could not be renewed within its ttl, nor now.
                (Should a later renewal succeed, because nobody took it meanwhile, the lease holds again.)
        """
        # After an outage, work goes on before the thread's next try; nobody may have taken the lease meanwhile.
        if self._lost is None and self._age_s() > self.token.ttl_s:
            self._renew()
        if self._lost:
            raise LeaseLost(self._lost)
        if (age := self._age_s()) > self.token.ttl_s:
            raise LeaseLost(
                f"run {self.token.run} could not renew its lease on {self.token.labels_uri} for {age:.0f} s and "
                f"stops writing: {self._problem}; the same command does what is then missing"
            )

    def release(self) -> None:
        """Give the lease back, so that the next run need not wait; failing that, it ends with its ttl."""
        self._ended.set()
        self._thread.join(_JOIN_TIMEOUT_S)
        try:
            for _ in range(_RELEASE_ATTEMPTS):
                if self._lost is None and self._write(released=True):
                    self._lost = f"run {self.token.run} has released its lease on {self.token.labels_uri}"
        except MtopError as error:
            self._note(f"the lease is not released, and ends by itself within {self.token.ttl_s:g} s: {error}")

    def _keep(self) -> None:
        wait_s = self.token.ttl_s * _RENEW_AFTER
        while not self._ended.wait(wait_s) and self._lost is None:
            wait_s = self.token.ttl_s * (_RENEW_AFTER if self._renew() else _RETRY_AFTER)

    def _age_s(self) -> float:
        return self._clock.monotonic() - self._renewed

    def _renew(self) -> bool:
        with self._renewing:  # two writers of one process would each take the other's write for its failure
            began = self._clock.monotonic()
            try:
                renewed = self._write()
            except Exception as error:  # whatever a storage client raises, the next try may succeed
                self._problem = one_line(error)
                return False
            if renewed:
                self._renewed = began
            return renewed

    def _write(self, released: bool = False) -> bool:
        """Renew or release; False if it did not succeed, or never will: then `_lost` says why."""
        snapshot = conditional.read(self.token.uri)
        try:
            holder = self.token.confirm(snapshot)
        except LabelTableError as error:
            self._lost = str(error)
            return False
        renewed = replace(holder, renewed_at=self._clock.now(), renewals=holder.renewals + 1, released=released)
        return conditional.replace(self.token.uri, snapshot, renewed.to_json())


@contextmanager
def hold_lease(
    labels_uri: str,
    run: str,
    *,
    ttl_s: float = 60.0,
    clock: Clock | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Lease]:
    """Hold the lease on a label table while the block runs.

    A lease whose holder seems dead is watched for the holder's ttl and then taken over, at once if the holder's
    process has ended on this machine. The lease is released when the block ends, also by an exception; a process
    that is killed leaves it to expire.

    Args:
        labels_uri: The label table.
        run: The run's id; no two runs have the same.
        ttl_s: Above 0. Longer than storage may fail to answer; a dead holder on another machine is waited for so long.
        clock: Time, for tests.
        note: Called when it waits, takes over or fails to release; one line each.

    Raises:
        LabelTableError: Another run holds the lease (the message says which), or storage does not answer.
    """
    clock = clock or Clock()
    labels_uri = storage.absolute(labels_uri)
    fence, renewed = _take(labels_uri, run, ttl_s, clock, note)
    lease = Lease(LeaseToken(labels_uri, run, fence, ttl_s), renewed, clock, note)
    try:
        yield lease
    finally:
        lease.release()


# --- taking the lease -------------------------------------------------------------------------------------------


def _take(labels_uri: str, run: str, ttl_s: float, clock: Clock, note: Callable[[str], None]) -> tuple[int, float]:
    """Get the lease: its fence, and when the write that got it began."""
    uri = storage.join(labels_uri, FILE_NAME)
    for _ in range(_TAKE_ATTEMPTS):
        seen, before = _wait_until_free(labels_uri, clock, note)
        began = clock.monotonic()
        holder = Holder.this_process(run, before.fence + 1 if before else 1, ttl_s, clock.now())
        # Read back, for storage that does not compare when it replaces: the last writer has it.
        if conditional.replace(uri, seen, holder.to_json()) and _holder(uri, conditional.read(uri)) == holder:
            if before and not before.released:
                note(f"took over the lease on {labels_uri} from {before}, which no longer renews it")
            return holder.fence, began
    raise LabelTableError(f"{uri} changes whenever it is written; find out what else writes it, and start again")


def _wait_until_free(
    labels_uri: str, clock: Clock, note: Callable[[str], None]
) -> tuple[Snapshot | None, Holder | None]:
    """The lease file at a moment when it may be replaced.

    Raises:
        LabelTableError: A run that seems alive holds the lease.
    """
    uri = storage.join(labels_uri, FILE_NAME)
    watched: Snapshot | None = None
    watched_since = 0.0
    while True:
        seen = conditional.read(uri)
        holder = _holder(uri, seen)
        if holder is None or holder.released or holder.has_ended():
            return seen, holder
        if watched is None:
            if abs(clock.now() - holder.renewed_at).total_seconds() <= holder.ttl_s * _FRESH:
                raise _held(labels_uri, holder)
            note(f"{holder} holds {labels_uri} but seems dead; taking over in {holder.ttl_s:g} s if it is not renewed")
            watched, watched_since = seen, clock.monotonic()
        elif seen != watched:
            raise _held(labels_uri, holder)
        elif clock.monotonic() - watched_since >= holder.ttl_s:
            return seen, holder
        clock.sleep(min(1.0, holder.ttl_s / 20))


def _holder(uri: str, snapshot: Snapshot | None) -> Holder | None:
    return Holder.from_json(snapshot.data, uri) if snapshot else None


def _held(labels_uri: str, holder: Holder) -> LabelTableError:
    return LabelTableError(
        f"{labels_uri} is being written by {holder}; one run at a time may write a label table. Wait until that run "
        f"ends, or stop it. If it is dead, its lease expires at {in_utc(holder.expires)}: run the same command then"
    )
