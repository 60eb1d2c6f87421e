"""Files on local disks: what a listing says of them, and replacing one as a whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from mtop_batch.storage.clients import explained

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}

DANGLING_LINK = "dangling link"
"""The version of a local link that leads nowhere, to itself, or to what may not be read; its size is 0."""


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
    """Whether a file of a relative path is no data, because a component starts with `_` or `.`.

    A directory `_year=2024` is a hive partition, and so is data. The path of a directory ends with `/`.

    >>> is_hidden("a/_b.parquet"), is_hidden("_b/a.parquet"), is_hidden("_year=2024/a.parquet"), is_hidden("_year=2024")
    (True, True, False, True)
    """
    *above, name = path.split("/")
    return name.startswith(("_", ".")) or any(
        part.startswith(".") or (part.startswith("_") and "=" not in part[2:]) for part in above
    )


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


def remove_empty_directories(path: str) -> None:
    """Remove a directory with nothing but empty directories in it: what is left where files were removed."""
    if os.path.isdir(path) and not os.path.islink(path):
        for directory, _, _ in os.walk(path, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(directory)


def local_info(full_path: str, path: str) -> FileInfo:
    """The file at `full_path`, under the name `path`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    try:
        status = os.stat(full_path)
    except NotADirectoryError as error:  # what should be a directory above it is a file
        raise FileNotFoundError(*error.args) from error
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(f"{full_path} is a directory, not a file")
    return FileInfo(path, status.st_size, str(status.st_mtime_ns))


def list_local(root: str, *, hidden: bool = False) -> Iterator[FileInfo]:
    """All files below a directory, or the file that `root` is; none if it is not there.

    What vanishes while it is listed is left out.

    Args:
        root: Where to begin.
        hidden: Look into hidden directories too, as far as they can be read.

    Raises:
        StorageError: A directory cannot be read.
    """
    with explained(root), suppress(FileNotFoundError, NotADirectoryError):
        if os.path.isfile(root):
            yield local_info(root, os.path.basename(root))
        else:
            yield from _walk(root, "", (), hidden)


def _walk(directory: str, prefix: str, above: tuple[str, ...], hidden: bool) -> Iterator[FileInfo]:
    """Files below a directory; links are followed, but not back up to a directory they lie in (`above`)."""
    real = os.path.realpath(directory)
    if real in above:
        return
    with os.scandir(directory) as entries:
        for entry in entries:
            path = prefix + entry.name
            try:
                if entry.is_dir():
                    if hidden or not is_hidden(entry.name + "/"):
                        yield from _walk(entry.path, path + "/", (*above, real), hidden)
                else:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield FileInfo(path, status.st_size, str(status.st_mtime_ns))
            except OSError as error:
                if entry.is_symlink():  # One bad link: list it, so that reading it gives the reason.
                    yield FileInfo(path, 0, DANGLING_LINK)
                elif not isinstance(error, FileNotFoundError | NotADirectoryError) and not is_hidden(path + "/"):
                    raise
