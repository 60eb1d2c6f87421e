"""The clients behind `mtop_batch.storage`, and what their failures mean.

Two clients serve S3. Bulk data goes through pyarrow's own, which waits out a server that is down for most of a
minute; listings and questions about single keys go through s3fs, which knows etags and says within seconds
that a server cannot be reached. Endpoint, region and credentials come from the standard AWS environment variables
(`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...) and never appear in a message.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs as pafs

from mtop_batch.errors import (
    AccessRefused,
    ConfigError,
    LabelTableError,
    MtopError,
    PathTaken,
    StorageError,
    StorageFull,
    one_line,
)
from mtop_batch.storage.addresses import check_address, is_remote, local_path_of

# Attempts wait 25 ms, 50 ms, ...: 11 of them give a server about 50 seconds to come back.
_S3_ATTEMPTS = 11
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PATH_TAKEN = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
# What S3 answers where credentials are missing, wrong, expired or not enough.
_REFUSALS = {
    "401",
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of `uri` and its path there: what reads and writes bulk data.

    Raises:
        ConfigError: The URL's scheme is not known here, or it carries credentials.
    """
    if not is_remote(uri):
        return pafs.LocalFileSystem(), local_path_of(uri)
    check_address(uri)
    if _scheme(uri) == "s3":
        return _pyarrow_s3(_s3_settings()), _s3_path(uri)
    fs, path = fsspec_filesystem(uri)
    return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path


def _scheme(uri: str) -> str:
    scheme = uri.split("://", 1)[0]
    return "s3" if scheme == "s3a" else scheme


def _s3_path(uri: str) -> str:
    return uri.split("://", 1)[1].rstrip("/")


def _s3_settings() -> tuple[tuple[str, str], ...]:
    """The AWS variables of the environment: what a client depends on, and so the key under which it is kept."""
    return tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith("AWS_")))


def _s3_endpoint() -> str | None:
    """The endpoint without a `user:password@`, which S3 has no use for and clients repeat in their messages."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    return endpoint and re.sub(r"//[^/]*@", "//", endpoint)


def s3_options(uri: str) -> dict[str, str]:
    """The AWS variables for a library with an S3 client of its own, under their own names; nothing for other places."""
    if _scheme(uri) != "s3":
        return {}
    options = dict(_s3_settings())
    options.pop("AWS_ENDPOINT_URL_S3", None)
    region = options.get("AWS_REGION") or options.get("AWS_DEFAULT_REGION")
    if endpoint := _s3_endpoint():
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
        region = region or "us-east-1"
    return {**options, "AWS_REGION": region} if region else options


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
    check_address(uri)
    if _scheme(uri) == "s3":
        return _s3fs(_s3_settings()), _s3_path(uri)
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"storage {_scheme(uri)}:// cannot be used: {error}; use a local path or s3://") from error
    return fs, path.rstrip("/")


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
    reason = one_line(error)
    if not is_remote(uri):
        number = error.errno if isinstance(error, OSError) else None
        if is_disk_full(error):
            return StorageFull(f"cannot write {uri}: {reason}; free some space, and run the same command again")
        if number in _PATH_TAKEN:
            return PathTaken(
                f"cannot use {uri}: {reason}; a file is where a directory should be, or the other way round: move it, "
                "or name another place"
            )
        return StorageError(f"cannot use {uri}: {reason}; check that the path is right and may be used by this user")
    place = f"{uri} at {urlsplit(_s3_endpoint() or '').hostname or 'AWS'}" if _scheme(uri) == "s3" else uri
    if error_code(error) == "NoSuchBucket":
        return AccessRefused(f"{place}: the bucket does not exist; create it, or check the URI and AWS_ENDPOINT_URL")
    if is_refusal(error):
        return AccessRefused(
            f"access to {place} was refused: {reason}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_SESSION_TOKEN and what they are allowed to do"
        )
    return StorageError(
        f"{place} cannot be reached: {reason}; check that the service runs and that AWS_ENDPOINT_URL is right"
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, whoever raised it, says that a disk has no room."""
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return True
    return bool(re.search("no space left on device|disk quota exceeded|disk is full", str(error), re.IGNORECASE))


def is_refusal(error: Exception) -> bool:
    """Whether a storage client's exception means that the credentials are missing, wrong or not enough."""
    response = _response(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(error, PermissionError) or status in (401, 403) or error_code(error) in _REFUSALS:
        return True
    pattern = (
        "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|NoCredentials|PartialCredentials|EXPIRED_TOKEN|"
        r"HTTP status 40[13]\b"
    )
    return bool(re.search(pattern, f"{type(error).__name__}: {error}"))


def error_code(error: Exception) -> str:
    """The S3 error code behind an exception of s3fs, "" if there is none."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: Exception) -> dict[str, Any]:
    """What S3 has answered, as botocore has it."""
    response = getattr(error.__cause__, "response", None)
    return response if isinstance(response, dict) else {}
