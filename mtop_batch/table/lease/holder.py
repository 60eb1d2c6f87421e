"""Who holds the lease on a label table: the content of its file, and whether that process can still be alive."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from mtop_batch.errors import LabelTableError

FORMAT = 1


@dataclass(frozen=True)
class Holder:
    """The content of the lease file: who holds the lease, or held it last.

    Args:
        run: The run that holds it.
        host: Where its driver runs; `pid` there; `machine` and `started` distinguish both from others of the same name.
        since: When the run got the lease.
        fence: One more than the holder's before.
        ttl_s: Without renewal the lease ends after this.
        renewed_at: When it was last renewed, by the holder's clock; `renewals` counts.
        released: The holder gave it back.
    """

    run: str
    host: str
    pid: int
    machine: str
    started: str
    since: datetime
    fence: int
    ttl_s: float
    renewed_at: datetime
    renewals: int = 0
    released: bool = False

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, default=datetime.isoformat, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> Holder:
        """The holder that the lease file at `uri` names.

        Raises:
            LabelTableError: It is damaged or of another version.
        """
        try:
            fields = json.loads(data)
            if fields.pop("format") != FORMAT:
                raise ValueError("it is of another format")
            for name in ("since", "renewed_at"):
                fields[name] = datetime.fromisoformat(fields[name])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabelTableError(
                f"{uri} cannot be read as a lease: {error}; if no run is going on, delete this file"
            ) from error

    def __str__(self) -> str:
        return f"run {self.run} (process {self.pid} on {self.host}, since {in_utc(self.since)})"

    @classmethod
    def this_process(cls, run: str, fence: int, ttl_s: float, now: datetime) -> Holder:
        """This process as the holder of a new lease."""
        pid = os.getpid()
        return cls(
            run=run,
            host=socket.gethostname(),
            pid=pid,
            machine=_machine(),
            started=_process(pid)[1],
            since=now,
            fence=fence,
            ttl_s=ttl_s,
            renewed_at=now,
        )

    @property
    def expires(self) -> datetime:
        """When the lease ends if it is not renewed, by the holder's clock."""
        return self.renewed_at + timedelta(seconds=self.ttl_s)

    def has_ended(self) -> bool:
        """Whether the holder is known to be dead: a process of this machine that is gone, or whose id is another's."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is there, and another user's
            pass
        state, started = _process(self.pid)
        return state in ("Z", "X") or (bool(started) and started != self.started)


def in_utc(moment: datetime) -> str:
    """A time for people.

    >>> in_utc(datetime(2026, 11, 20, 2, 0, 0, 123456, tzinfo=UTC))
    '2026-11-20T02:00:00Z'
    """
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _machine() -> str:
    """The scope in which process ids are unique: this boot of this machine and a pid namespace; "" where unknown.

    A host name alone would not do: containers on the host's network share it, and not the processes.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{socket.gethostname()} {file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """State and start time of a process as in proc(5), fields 3 and 22; empty where they cannot be read."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
