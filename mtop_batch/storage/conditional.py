"""Writes that succeed only if a file is still what it was: created once, or replaced if nobody else did.

On S3 the server compares: `If-None-Match: *` to create, `If-Match` with the etag read to replace. On a disk a file is
created by a hard link, which fails if the name is taken, and a comparison is made under an exclusive `flock` on a side
file, which holds between the processes of one machine and, where the mount supports locks (NFS does), between machines.
On other stores, and on disks without locks, nothing makes comparison and write one step: two writers within the same
few milliseconds can both succeed, and the last one stays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
from fsspec.asyn import sync

from mtop_batch import storage
from mtop_batch.errors import LabelTableError
from mtop_batch.storage.local import create_local, remove_empty_directories

# "It is not what you read", in the words of S3: changed, being changed at this moment, or gone.
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_LOCK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a file held when it was read; `etag` is "" where the content itself is compared."""

    data: bytes
    etag: str = ""


def read(uri: str) -> Snapshot | None:
    """The file as it is now; None if there is none.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    try:
        if _is_s3(uri):
            return _read_s3(uri)
        return Snapshot(storage.read_bytes(uri))
    except FileNotFoundError:
        return None


def replace(uri: str, seen: Snapshot | None, data: bytes) -> bool:
    """Write `data` if the file is still what was `seen` (None: if there still is none).

    Returns:
        Whether it was written. If not, somebody else changed the file, which stays as they left it.

    Raises:
        LabelTableError: The storage cannot be reached or refuses; the file may have been written or not.
    """
    if _is_s3(uri):
        return _replace_s3(uri, seen, data)
    with storage.explained(uri), _locked(uri, os.path.splitext(storage.absolute(uri))[0] + ".lock"):
        if read(uri) != seen:
            return False
        storage.write_bytes(uri, data)
        return True


def create(uri: str, data: bytes | pa.Buffer, *, unfinished: str) -> bool:
    """Write a file if there is none of its name; the first writer's content stays.

    Args:
        uri: The file.
        data: Its content.
        unfinished: On a local disk, the directory of the file until it is whole, on the same disk.

    Returns:
        Whether it was written. If not, there is a file of that name.

    Raises:
        LabelTableError: The storage cannot be reached or refuses; the file may have been written or not, whole.
    """
    if _is_s3(uri):
        return _put(uri, {"IfNoneMatch": "*"}, data)
    if storage.is_remote(uri):
        if storage.is_file(uri):
            return False
        storage.write_bytes(uri, data)
        return True
    with storage.explained(uri):
        return create_local(storage.absolute(uri), data, unfinished)


def replace_version(uri: str, version: str | None, data: bytes | pa.Buffer, *, lock: str, unfinished: str) -> bool:
    """Write a file if it still has the version that was listed (None: if there still is none).

    Args:
        uri: The file.
        version: As `storage.list_files` and `storage.stat` give it.
        data: Its content.
        lock: On a local disk, a file to hold locked meanwhile; it is created and stays.
        unfinished: On a local disk, the directory of the file until it is whole, on the same disk.

    Returns:
        Whether it was written. If not, somebody has written or removed it (on S3 it may even have been this very call,
        whose answer got lost): read it to know.

    Raises:
        LabelTableError: The storage cannot be reached or refuses; the file may have been written or not, whole.
    """
    if _is_s3(uri):
        return _put(uri, {"IfNoneMatch": "*"} if version is None else {"IfMatch": f'"{version}"'}, data)
    with storage.explained(uri), _locked(uri, lock):
        if _version(uri) != version:
            return False
        remove_empty_directories(storage.absolute(uri))
        storage.write_bytes(uri, data, unfinished=unfinished)
        return True


def delete_version(uri: str, version: str, *, lock: str) -> bool:
    """Remove a file if it still has the version that was listed; whether it is gone.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    with storage.explained(uri), _locked(uri, lock):
        found = _version(uri)
        if found == version:
            storage.delete(uri)
        return found in (None, version)


def delete_directory(uri: str) -> None:
    """Remove what some object stores keep of a directory without files: it would pass for a file of its name.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    if _is_s3(uri):
        fs, place = _client(uri)
        with storage.explained(uri):
            fs.call_s3("delete_object", Bucket=place["Bucket"], Key=f"{place['Key']}/")


def can_compare(uri: str, *, unfinished: str) -> bool:
    """Whether storage creates a file only once, tried with a small file that stays.

    Args:
        uri: The file to try with.
        unfinished: As for `create`.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    create(uri, b"{}", unfinished=unfinished)
    return not create(uri, b"{}", unfinished=unfinished)


def _version(uri: str) -> str | None:
    try:
        return storage.stat(uri).version
    except FileNotFoundError:
        return None


def _put(uri: str, condition: dict[str, str], data: bytes | pa.Buffer) -> bool:
    fs, place = _client(uri)
    with storage.explained(uri):
        try:
            fs.call_s3("put_object", **place, **condition, Body=bytes(data))
        except OSError as error:
            if storage.error_code(error) not in _CHANGED:
                raise
            return False
    return True


# --- S3 ---------------------------------------------------------------------------------------------------------


def _is_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def _client(uri: str) -> tuple[Any, dict[str, str]]:
    """The s3fs client, and bucket and key as its requests want them."""
    fs, path = storage.fsspec_filesystem(uri)
    bucket, _, key = path.partition("/")
    return fs, {"Bucket": bucket, "Key": key}


def _read_s3(uri: str) -> Snapshot:
    fs, place = _client(uri)

    async def get() -> Snapshot:
        response = await fs._call_s3("get_object", **place)
        async with response["Body"] as body:
            return Snapshot(await body.read(), response["ETag"])

    with storage.explained(uri):
        return sync(fs.loop, get)


def _replace_s3(uri: str, seen: Snapshot | None, data: bytes) -> bool:
    fs, place = _client(uri)
    condition = {"IfMatch": seen.etag} if seen else {"IfNoneMatch": "*"}
    with storage.explained(uri):
        try:
            fs.call_s3("put_object", **place, **condition, Body=data)
            return True
        except OSError as error:
            if storage.error_code(error) not in _CHANGED:
                raise
    # The client repeats a request whose answer was lost; then the change that it ran into is its own.
    now = read(uri)
    return now is not None and now.data == data


# --- disks ------------------------------------------------------------------------------------------------------


def _locked(uri: str, lock: str) -> AbstractContextManager[None]:
    """Keep other processes from replacing the file, where the storage can do that."""
    return nullcontext() if storage.is_remote(uri) else _flock(lock)


@contextmanager
def _flock(path: str) -> Iterator[None]:
    # The lock file is never removed: another process could hold the old one while a third locks the new one.
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab") as file:
        locked = _acquire(file)
        try:
            yield
        finally:
            # Closing would not do if another thread has forked: the child then holds the file open too.
            if locked:
                fcntl.flock(file, fcntl.LOCK_UN)


def _acquire(file: IO[bytes]) -> bool:
    """Lock the file; False if its disk has no locks."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise LabelTableError(
                    f"{file.name} is locked by another process for over {_LOCK_TIMEOUT_S:.0f} s; "
                    "find it with `fuser` or `lslocks` (it may be suspended) and end it"
                ) from error
            time.sleep(0.005)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
