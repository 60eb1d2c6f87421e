"""Files by URI: a local path, `s3://...`, or any other URL that fsspec knows.

Two clients serve S3. Bulk data goes through pyarrow's own, which waits out a server that is down for most of a
minute; listings and questions about single keys go through s3fs, which tells etags and answers within seconds
that a server cannot be reached. Endpoint, region and credentials come from the standard AWS environment variables
(`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...) and never stand in a message.

A write is atomic: a reader sees the old file or the whole new one. `FileNotFoundError` means that the file is not
there; storage that does not answer, or refuses, is a `LabelTableError`.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from mtop_batch.errors import ConfigError, LabelTableError, MtopError

# Attempts wait 25 ms, 50 ms, ...: 11 of them give a server about 50 seconds to come back.
_S3_ATTEMPTS = 11
_COPY_BYTES = 8 << 20
_AHEAD_PER_THREAD = 16
DANGLING_LINK = "dangling link"
"""The version of a local link that leads nowhere; its size is 0."""
# What object stores call "the content changed if this changed", best first.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "mtime", "LastModified", "updated", "last_modified", "created")

T = TypeVar("T")
R = TypeVar("R")


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


def is_remote(uri: str) -> bool:
    """Whether `uri` is a URL of a storage service, not a path on this machine."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """The URI in the form that means the same file in every process: local paths made absolute, no `/` at the end."""
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(_local(uri))


def join(uri: str, *parts: str) -> str:
    """`uri` and the parts below it, with one `/` between them; nothing else is changed.

    Raises:
        LabelTableError: A part is empty, starts with `/` or has a component `..`, and so could name a place outside.
    """
    for part in parts:
        if not part or part.startswith("/") or ".." in PurePosixPath(part).parts:
            raise LabelTableError(f"path {part!r} does not stay below {uri}; rename the file")
    return "/".join([uri.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of `uri` and its path there: what reads and writes bulk data.

    Raises:
        ConfigError: The URL's scheme is not known here, or it carries credentials.
    """
    if not is_remote(uri):
        return pafs.LocalFileSystem(), _local(uri)
    if _scheme(uri) == "s3":
        return _pyarrow_s3(_s3_settings()), _s3_path(uri)
    fs, path = fsspec_filesystem(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def list_files(root: str, suffix: str = "") -> list[FileInfo]:
    """All files below `root`, or `root` itself if it is a file, sorted by path.

    Files and directories whose names start with `_` or `.` are left out: they are not data. A root that does not
    exist has no files.

    Raises:
        LabelTableError: The storage cannot be reached or refuses, or the bucket does not exist.
    """
    found = _list_remote(root) if is_remote(root) else _list_local(_local(root))
    visible = (info for info in found if info.path.endswith(suffix) and not is_hidden(info.path))
    return sorted(visible, key=lambda info: info.path)


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path starts with `_` or `.`."""
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def stat(uri: str) -> FileInfo:
    """Size and version of one file; `path` is its name.

    Raises:
        FileNotFoundError: There is no such file.
        LabelTableError: The storage cannot be reached or refuses.
    """
    with explained(uri):
        if not is_remote(uri):
            info = _local_info(_local(uri), _name(uri))
            is_directory = os.path.isdir(_local(uri))
        else:
            fs, path = fsspec_filesystem(uri)
            found = fs.info(path)
            info, is_directory = _remote_info(found, _name(uri)), found["type"] == "directory"
    if is_directory:
        raise FileNotFoundError(f"{uri} is a directory, not a file")
    return info


def is_file(uri: str) -> bool:
    """Whether there is a file (not a directory) at `uri`.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        return os.path.isfile(_local(uri))
    try:
        stat(uri)
    except FileNotFoundError:
        return False
    return True


def exists(uri: str) -> bool:
    """Whether there is a file at `uri` or anything below it.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        return os.path.exists(_local(uri))
    fs, path = fsspec_filesystem(uri)
    try:
        with explained(uri):
            fs.info(path)
    except FileNotFoundError:
        return False
    return True


def read_bytes(uri: str) -> bytes:
    """The content of a file.

    Raises:
        FileNotFoundError: There is no such file.
        LabelTableError: The storage cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    with explained(uri), fs.open_input_file(path) as file:
        return bytes(file.read())


def write_bytes(uri: str, data: bytes | pa.Buffer, *, unfinished: str | None = None) -> None:
    """Write a file, whole or not at all; directories above it are made.

    If it fails, what was there before is still there. A process killed in the middle may leave a file `.tmp-*` on a
    local disk, and nothing that can be seen on an object store.

    Args:
        uri: The file.
        data: Its content.
        unfinished: On a local disk, the directory of the file until it is whole; beside it by default. It must be on
            the same disk.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    with explained(uri):
        if not is_remote(uri):
            path = _local(uri)
            with _replacing(path, unfinished) as temporary, open(temporary, "wb") as file:
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
        LabelTableError: The storage cannot be reached or refuses.
    """
    try:
        with explained(uri):
            if not is_remote(uri):
                os.remove(_local(uri))
                return
            fs, path = fsspec_filesystem(uri)
            fs.rm_file(path)
    except FileNotFoundError:
        return


def upload(local_path: str | Path, uri: str) -> None:
    """Copy a local file to `uri`, whole or not at all.

    Raises:
        LabelTableError: The storage cannot be reached or refuses.
    """
    with pa.memory_map(str(local_path)) as file:
        write_bytes(uri, file.read_buffer())


def download(uri: str, local_path: str | Path) -> None:
    """Copy a file to a local path, whole or not at all.

    Raises:
        FileNotFoundError: There is no such file at `uri`.
        LabelTableError: The storage cannot be reached or refuses.
    """
    fs, path = filesystem(uri)
    with (
        explained(uri),
        fs.open_input_file(path) as source,
        _replacing(str(local_path)) as temporary,
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


# --- local disk -------------------------------------------------------------------------------------------------


def _local(uri: str) -> str:
    return uri.removeprefix("file://")


def _name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


@contextmanager
def _replacing(path: str, unfinished: str | None = None) -> Iterator[str]:
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


def _local_info(full_path: str, path: str) -> FileInfo:
    status = os.stat(full_path)
    return FileInfo(path, status.st_size, str(status.st_mtime_ns))


def _list_local(root: str) -> Iterator[FileInfo]:
    with explained(root):
        if os.path.isfile(root):
            yield _local_info(root, os.path.basename(root))
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
            elif entry.is_symlink():  # It leads nowhere: keep it in sight, reading it will say so.
                yield FileInfo(path, 0, DANGLING_LINK)


# --- object stores ----------------------------------------------------------------------------------------------


def _scheme(uri: str) -> str:
    scheme = uri.split("://", 1)[0]
    return "s3" if scheme == "s3a" else scheme


def _s3_path(uri: str) -> str:
    path = uri.split("://", 1)[1].rstrip("/")
    if "@" in path.split("/", 1)[0]:
        raise ConfigError(
            "an s3:// URI must not carry credentials; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return path


def _s3_settings() -> tuple[tuple[str, str], ...]:
    """The AWS variables of the environment: what a client depends on, and so the key under which it is kept."""
    return tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))


def _s3_endpoint() -> str | None:
    """The endpoint without a `user:password@`, which S3 has no use for and clients repeat in their messages."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    return endpoint and re.sub(r"//[^/]*@", "//", endpoint)


@lru_cache(maxsize=4)
def _pyarrow_s3(_settings: tuple[tuple[str, str], ...]) -> pafs.S3FileSystem:
    options: dict[str, Any] = {"region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")}
    if endpoint := _s3_endpoint():
        parts = urlsplit(endpoint)
        options |= {"endpoint_override": parts.netloc + parts.path, "scheme": parts.scheme}
        options["region"] = options["region"] or "us-east-1"
    return pafs.S3FileSystem(
        retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one request
        connect_timeout=5,
        request_timeout=60,
        **options,
    )


@lru_cache(maxsize=4)
def _s3fs(_settings: tuple[tuple[str, str], ...]) -> Any:
    return fsspec.filesystem("s3", endpoint_url=_s3_endpoint(), use_listings_cache=False, skip_instance_cache=True)


def fsspec_filesystem(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a remote URI, which does not remember listings, and the path there.

    Raises:
        ConfigError: The URL's scheme is not known here, or it carries credentials.
    """
    if _scheme(uri) == "s3":
        return _s3fs(_s3_settings()), _s3_path(uri)
    if urlsplit(uri).password:
        raise ConfigError(
            f"a {_scheme(uri)}:// URI must not carry a password; give it by fsspec's environment variables or "
            "configuration files (FSSPEC_...)"
        )
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"storage {_scheme(uri)}:// cannot be used: {error}; use a local path or s3://") from error
    return fs, path.rstrip("/")


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


# --- failures ---------------------------------------------------------------------------------------------------


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn whatever a storage client raises into one line that says what to do; a missing file stays what it is."""
    try:
        yield
    except MtopError:
        raise
    except FileNotFoundError as error:
        if error_code(error) != "NoSuchBucket":
            raise
        raise _failure(uri, error) from error
    except Exception as error:  # botocore, aiohttp and pyarrow share no base class
        raise _failure(uri, error) from error


def _failure(uri: str, error: Exception) -> LabelTableError:
    reason = _without_secrets(" ".join(str(error).split())) or type(error).__name__
    if not is_remote(uri):
        return LabelTableError(f"cannot use {uri}: {reason}; check that the path is right and may be used by this user")
    place = f"{uri} at {urlsplit(_s3_endpoint() or '').hostname or 'AWS'}" if _scheme(uri) == "s3" else uri
    if error_code(error) == "NoSuchBucket":
        return LabelTableError(f"{place}: the bucket does not exist; create it, or check the URI and AWS_ENDPOINT_URL")
    if is_refusal(error):
        return LabelTableError(
            f"access to {place} was refused: {reason}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_SESSION_TOKEN and what they are allowed to do"
        )
    return LabelTableError(
        f"{place} cannot be reached: {reason}; check that the service runs and that AWS_ENDPOINT_URL is right"
    )


def is_refusal(error: Exception) -> bool:
    """Whether a storage client's exception means that the credentials are missing, wrong or not enough."""
    pattern = "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NoCredentials|PartialCredentials|EXPIRED_TOKEN"
    return isinstance(error, PermissionError) or bool(re.search(pattern, f"{type(error).__name__}: {error}"))


def error_code(error: Exception) -> str:
    """The S3 error code behind an exception of s3fs, "" if there is none."""
    response = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _without_secrets(message: str) -> str:
    for key in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        if secret := os.environ.get(key):
            message = message.replace(secret, "***")
    return re.sub(r"//[^/@\s]+@", "//", message)
