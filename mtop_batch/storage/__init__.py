"""Files by URI: a local path, `s3://...`, or any other URL that fsspec knows.

What a person types becomes an address by `absolute`; all other functions take addresses.

A write is atomic: a reader sees the old file or the whole new one. `FileNotFoundError` means that the file is not
there; storage that does not answer, or refuses, is a `StorageError`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa

from mtop_batch.errors import ConfigError, LabelTableError
from mtop_batch.storage.addresses import absolute, check_address, is_remote, local_path_of, path_below
from mtop_batch.storage.clients import (
    error_code,
    explained,
    filesystem,
    fsspec_filesystem,
    is_disk_full,
    is_refusal,
    s3_options,
)
from mtop_batch.storage.local import DANGLING_LINK, FileInfo, is_hidden, list_local, local_info, replacing

_COPY_BYTES = 8 << 20
_AHEAD_PER_THREAD = 16
# What object stores call "the content changed if this changed", best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "updated", "last_modified", "created")

__all__ = [
    "DANGLING_LINK",
    "FileInfo",
    "absolute",
    "check_address",
    "check_directory",
    "check_file",
    "delete",
    "download",
    "error_code",
    "exists",
    "explained",
    "file_place",
    "filesystem",
    "fsspec_filesystem",
    "in_threads",
    "is_disk_full",
    "is_file",
    "is_hidden",
    "is_refusal",
    "is_remote",
    "join",
    "list_files",
    "path_below",
    "read_bytes",
    "s3_options",
    "stat",
    "upload",
    "write_bytes",
]

T = TypeVar("T")
R = TypeVar("R")


def join(uri: str, *parts: str) -> str:
    """`uri` and the parts below it, with one `/` between them; nothing else is changed.

    Raises:
        LabelTableError: A part is empty, starts with `/` or has a component `..`, and so could name a place outside.
    """
    for part in parts:
        if not part or part.startswith("/") or ".." in PurePosixPath(part).parts:
            raise LabelTableError(f"path {part!r} does not stay below {uri}; rename the file")
    return "/".join([uri.rstrip("/"), *parts])


def list_files(root: str, suffix: str = "", *, hidden: bool = False) -> list[FileInfo]:
    """All files below `root`, or `root` itself if it is a file, sorted by path.

    Args:
        root: A directory, a prefix or a file; one that does not exist has no files.
        suffix: Only files whose path ends so.
        hidden: Also those whose names say that they are not data (`is_hidden`).

    Raises:
        StorageError: The storage cannot be reached or refuses, or the bucket does not exist.
    """
    found = _list_remote(root) if is_remote(root) else list_local(local_path_of(root), hidden=hidden)
    wanted = (info for info in found if info.path.endswith(suffix) and (hidden or not is_hidden(info.path)))
    return sorted(wanted, key=lambda info: info.path)


def stat(uri: str) -> FileInfo:
    """Size and version of one file; `path` is its name.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: The storage cannot be reached or refuses.
    """
    with explained(uri):
        if not is_remote(uri):
            return local_info(local_path_of(uri), _name(uri))
        fs, path = fsspec_filesystem(uri)
        found = fs.info(path)
    if found["type"] == "directory":
        raise FileNotFoundError(f"{uri} is a directory, not a file")
    return _remote_info(found, _name(uri))


def is_file(uri: str) -> bool:
    """Whether there is a file (not a directory) at `uri`.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        return os.path.isfile(local_path_of(uri))
    try:
        stat(uri)
    except FileNotFoundError:
        return False
    return True


def exists(uri: str) -> bool:
    """Whether there is a file at `uri` or anything below it.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        return os.path.exists(local_path_of(uri))
    fs, path = fsspec_filesystem(uri)
    try:
        with explained(uri):
            fs.info(path)
    except FileNotFoundError:
        return False
    return True


def check_directory(uri: str, option: str) -> None:
    """Make sure that files can lie below `uri`, before work starts.

    Args:
        uri: The address of a directory, which need not exist.
        option: Who names it, for the message.

    Raises:
        ConfigError: It is a file or a link that leads nowhere, or lies below one.
        StorageError: The storage cannot be reached or refuses.
    """
    places = [uri] if is_remote(uri) else [uri, *map(str, Path(uri).parents)]
    if file := next(filter(is_file, places), None):
        raise ConfigError(f"{option} {uri}: {file} is a file; name a directory")
    if link := next((place for place in places if os.path.islink(place) and not os.path.exists(place)), None):
        raise ConfigError(
            f"{option} {uri}: {link} is a link that leads nowhere; make its target, or name another place"
        )


def check_file(uri: str, option: str) -> None:
    """Make sure that `uri` can be written as a file, before work starts; arguments and errors as `check_directory`."""
    if not is_remote(uri):
        if os.path.isdir(uri):
            raise ConfigError(f"{option} {uri} is a directory; name a file")
        if above := next((parent for parent in Path(uri).parents if parent.is_file()), None):
            raise ConfigError(f"{option} {uri}: {above} is a file, and no directory; name a file elsewhere")


def file_place(typed: str, option: str) -> str:
    """The address of a file that a person names to be written; arguments and errors as `check_file` and `absolute`."""
    place = absolute(typed)
    check_file(place, option)
    return place


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: There is no such file.
        StorageError: The storage cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    with _reading(uri), fs.open_input_file(path) as file:
        return bytes(file.read())


def write_bytes(uri: str, data: bytes | pa.Buffer, *, unfinished: str | None = None) -> None:
    """Write a file, whole or not at all; missing directories above it are created.

    If it fails, what was there before is still there. A process killed in the middle may leave a file `.tmp-*` on a
    local disk, and nothing that can be seen on an object store.

    Args:
        uri: The file.
        data: Its content.
        unfinished: On a local disk, the directory of the file until it is whole; beside it by default. It must be on
            the same disk.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    with explained(uri):
        if not is_remote(uri):
            path = local_path_of(uri)
            with replacing(path, unfinished) as temporary, open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return
        fs, path = filesystem(uri)
        # One write of everything: pyarrow completes an upload when the stream closes, also after an exception.
        with fs.open_output_stream(path) as stream:
            stream.write(data)


def delete(uri: str) -> None:
    """Remove a file; one that is not there is fine.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    try:
        with explained(uri):
            if not is_remote(uri):
                os.remove(local_path_of(uri))
                return
            fs, path = fsspec_filesystem(uri)
            fs.rm_file(path)
    except FileNotFoundError:
        return


def upload(local_path: str | Path, uri: str) -> None:
    """Copy a local file to `uri`, whole or not at all.

    Raises:
        StorageError: The storage cannot be reached or refuses.
    """
    with pa.memory_map(str(local_path)) as file:
        write_bytes(uri, file.read_buffer())


def download(uri: str, local_path: str | Path) -> None:
    """Copy a file to a local path, whole or not at all.

    Raises:
        FileNotFoundError: There is no such file at `uri`.
        StorageError: The storage cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    with (
        _reading(uri),
        fs.open_input_file(path) as source,
        replacing(str(local_path)) as temporary,
        open(temporary, "wb") as target,
    ):
        while chunk := source.read(_COPY_BYTES):
            target.write(chunk)


def in_threads(
    function: Callable[[T], R], items: Iterable[T], threads: int = 16, *, ahead: int | None = None
) -> Iterator[R]:
    """`map` for work that waits for storage: results in order, the first exception raised.

    Args:
        function: What to do with each item.
        items: Are taken as they are needed.
        threads: So many at once.
        ahead: Most results that are made before they are asked for; by default some for each thread.
    """
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) >= (ahead or _AHEAD_PER_THREAD * threads):
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    with explained(uri):
        try:
            yield
        except NotADirectoryError as error:  # what should be a directory above it is a file
            raise FileNotFoundError(*error.args) from error


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def _remote_info(info: dict[str, Any], path: str) -> FileInfo:
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    if isinstance(version, datetime):  # a listing may tell the same time as a number
        version = version.timestamp()
    return FileInfo(path, int(info["size"] or 0), str(version).strip('"'))


def _list_remote(root: str) -> list[FileInfo]:
    fs, path = fsspec_filesystem(root)
    try:
        with explained(root):
            found = fs.find(path, detail=True)
    except FileNotFoundError:
        return []
    return [
        _remote_info(info, name[len(path) :].lstrip("/") or _name(name))
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")
    ]
