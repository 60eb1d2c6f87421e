"""Files on local disks: what a listing says of them, and replacing one as a whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from mtop_batch.storage.clients import explained

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}

DANGLING_LINK = "dangling link"
"""The version of a local link that leads nowhere; its size is 0."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in a listing.

    Args:
        path: Where it lies below the listed root, with `/` between components.
        size: Bytes.
        version: Changes when the content does: the etag on object stores, the modification time (ns) locally.
    """

    path: str
    size: int
    version: str


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path starts with `_` or `.`."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


@contextmanager
def replacing(path: str, unfinished: str | None = None) -> Iterator[str]:
    """A hidden path to write to; it becomes `path` if the block succeeds and is removed if not."""
    directory = os.path.dirname(path)
    for needed in filter(None, (directory, unfinished)):
        os.makedirs(needed, exist_ok=True)
    temporary = os.path.join(unfinished or directory, f".tmp-{uuid4().hex}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def create_local(path: str, data: bytes | pa.Buffer, unfinished: str) -> bool:
    """Write a file whole, unless there is one of its name; whether it was written."""
    if os.path.exists(path):
        return False
    for needed in (os.path.dirname(path), unfinished):
        os.makedirs(needed, exist_ok=True)
    temporary = os.path.join(unfinished, f".tmp-{uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.exists(path):
                return False
            os.replace(temporary, path)
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def local_info(full_path: str, path: str) -> FileInfo:
    """The file at `full_path`, under the name `path`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    status = os.stat(full_path)
    return FileInfo(path, status.st_size, str(status.st_mtime_ns))


def list_local(root: str) -> Iterator[FileInfo]:
    """All files below a directory, or the file that `root` is; none if it is not there.

    Raises:
        StorageError: A directory cannot be read.
    """
    with explained(root):
        if os.path.isfile(root):
            yield local_info(root, os.path.basename(root))
        elif os.path.exists(root):
            yield from _walk(root, "", ())


def _walk(directory: str, prefix: str, above: tuple[str, ...]) -> Iterator[FileInfo]:
    """Files below a directory; links are followed, but not back up to a directory they lie in (`above`)."""
    real = os.path.realpath(directory)
    if real in above:
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            path = prefix + entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, path + "/", (*above, real))
            elif entry.is_file():
                status = entry.stat()
                yield FileInfo(path, status.st_size, str(status.st_mtime_ns))
            elif entry.is_symlink():  # It leads nowhere: list it, so that reading it gives the reason.
                yield FileInfo(path, 0, DANGLING_LINK)
