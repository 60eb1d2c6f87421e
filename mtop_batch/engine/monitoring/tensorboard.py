"""TensorBoard's event files of a training: beside its JSON lines in the run's directory, and then beside the bundle."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from mtop_batch import storage

DIRECTORY = "tensorboard"


class TensorBoard:
    """Writes a file for each process that works at a run; those that were there are left as they are.

    On a local disk TensorBoard sees every point at once; to other storage the file is copied after every evaluation.

    Args:
        run_uri: The run's directory.
    """

    name = "TensorBoard"

    def __init__(self, run_uri: str) -> None:
        self._uri = storage.join(run_uri, DIRECTORY)
        self._temporary = tempfile.TemporaryDirectory(prefix="mtop_tensorboard-")
        remote = storage.is_remote(self._uri)
        self._directory = Path(self._temporary.name) if remote else Path(self._uri)
        self._directory.mkdir(parents=True, exist_ok=True)
        earlier = [info.path for info in storage.list_files(self._uri)]
        self._last: dict[str, int] = {}
        for path in earlier:
            for event in _read(storage.read_bytes(storage.join(self._uri, path))):
                self._last |= {value.tag: event.step for value in event.summary.value}
        # Two that begin in the same second would have one name.
        self._writer = EventsWriter(str(self._directory / "events"), f".{len(earlier)}")
        (self._path,) = self._directory.glob(f"events.*.{len(earlier)}")
        self._is_open = True

    def last_step(self, curve: str) -> int:
        """The last step of a curve in the files that were there; -1 if there is none."""
        return self._last.get(curve, -1)

    def write(self, values: Mapping[str, float], step: int, time_s: float) -> None:
        """Add a point to each of some curves."""
        for curve, value in values.items():
            self._writer.write_event(Event(summary=scalar(curve, value), step=step, wall_time=time_s))
        self._writer.flush()

    def keep(self) -> None:
        """Copy the file to the run's directory, where that is not on this machine."""
        if storage.is_remote(self._uri):
            storage.upload(self._path, storage.join(self._uri, self._path.name))

    def finish(self, output: str) -> None:
        """Copy the files of the run to those of its bundle, in place of what is there."""
        self._close()
        self.keep()
        target = storage.join(storage.absolute(output), DIRECTORY)
        for info in storage.list_files(target):
            storage.delete(storage.join(target, info.path))
        for info in storage.list_files(self._uri):
            storage.write_bytes(storage.join(target, info.path), storage.read_bytes(storage.join(self._uri, info.path)))

    def close(self, *, failed: bool) -> None:
        """Keep what was written of a training that ends before it is done; nothing is left on this machine's disk."""
        self._close()
        if failed:
            self.keep()
        self._temporary.cleanup()

    def _close(self) -> None:
        if self._is_open:
            self._writer.close()
            self._is_open = False


def _read(data: bytes) -> Iterator[Event]:
    """The events of a file, of which the last may have been cut off.

    Each is a length (8 bytes), its checksum (4), the event, and its checksum (4).
    """
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        start, place = place + 12, place + 16 + length
        if place > len(data):
            return
        yield Event.FromString(data[start : start + length])
