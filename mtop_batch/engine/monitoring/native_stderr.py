"""What native code writes to standard error, without the lines that would only worry people.

Ray's core writes past Python to file descriptor 2: into the middle of a progress bar, and in every labelling run that
its actors' arguments lie in the object store. They do, and they stay there until the run is over.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_UNWANTED = (b"has constructor arguments in the object store and max_restarts > 0",)


@contextmanager
def without_unwanted_lines() -> Iterator[None]:
    """While the block runs, pass file descriptor 2 on line by line, but for some lines; Python writes past that.

    Enter it before what asks whether standard error is a terminal, such as a progress bar.
    """
    try:
        real = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    reader, writer = os.pipe()
    before = sys.stderr
    before.flush()
    os.dup2(writer, 2)
    os.close(writer)
    if _is_descriptor_2(before):
        raw = io.FileIO(real, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=before.encoding, errors=before.errors, line_buffering=True
        )
    thread = threading.Thread(target=_pass_on, args=(reader, real), name="native stderr", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(real, 2)  # ends the pipe, but for children that still run
        thread.join(timeout=1)


def _is_descriptor_2(file: io.TextIOBase | object) -> bool:
    try:
        return isinstance(file, io.TextIOBase) and file.fileno() == 2
    except OSError:
        return False


def _pass_on(reader: int, real: int) -> None:
    rest = b""
    while data := os.read(reader, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        wanted = [line + b"\n" for line in lines if not any(unwanted in line for unwanted in _UNWANTED)]
        os.write(real, b"".join(wanted))
    os.write(real, rest)
    os.close(reader)
    os.close(real)
