"""From what a person types as a place to the address that means the same place in every process."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from mtop_batch.errors import ConfigError
from mtop_batch.lines import has_secrets, shown, without_secrets

_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.:-]*)://(?P<rest>.*)", re.DOTALL)
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.DOTALL | re.IGNORECASE)
# Slashes get lost where a URL goes through functions for paths.
_LOST_SLASH = re.compile(r"(file|s3[an]?|gs|gcs|az|abfss?|hdfs|https?|memory):", re.IGNORECASE)
_S3_SCHEMES = ("s3", "s3a", "s3n")


def is_remote(uri: str) -> bool:
    """Whether `uri` is a URL of a storage service, not a path on this machine."""
    found = _URL.match(uri)
    return found is not None and found["scheme"].lower() != "file"


def absolute(typed: str) -> str:
    """The address of a place that a person names: an absolute path, or a URL without a `/` at the end.

    `~` is the home directory, `..` leads up from where a link leads (as for `ls`), the escapes of a `file://` URL are
    decoded, and `s3a://` is `s3://`. The address of an address is itself. Links are not resolved otherwise: one that
    leads to another directory each night keeps its name.

    Raises:
        ConfigError: It is empty, a URL that cannot work, or one that carries credentials.

    >>> absolute("file:///data/my%20corpus/"), absolute("s3a://news/articles/"), absolute("/data/x/./y//")
    ('/data/my corpus', 's3://news/articles', '/data/x/y')
    """
    if not typed:
        raise ConfigError("a path or URL is empty; name a local path or s3://...")
    if "\0" in typed:
        raise ConfigError(f"{shown(typed)}: no path or URL has a NUL character; correct it")
    if is_remote(typed):
        return _absolute_url(check_address(typed))
    if _LOST_SLASH.match(typed):
        return _absolute_path(local_path_of(typed))
    path = os.path.expanduser(typed)
    if path.startswith("~"):
        raise ConfigError(
            f"{shown(typed)}: there is no such user; write ./{shown(typed)} for a local path of that name"
        )
    return _absolute_path(path)


def check_address(uri: str) -> str:
    """The URI, if it may be shown and stored.

    Raises:
        ConfigError: It carries credentials or a signature, which would end up in logs, records and footers.
    """
    if has_secrets(uri):
        raise ConfigError(
            f"{shown(without_secrets(uri))}: an address must not carry credentials or a signature, for it is shown and "
            "stored; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for other storage by fsspec's "
            "environment variables or configuration files (FSSPEC_...)"
        )
    return uri


def local_path_of(uri: str) -> str:
    """The path of a local address, or of a `file://` URL.

    Raises:
        ConfigError: It is a URL of another kind, or of another machine.
    """
    if not _LOST_SLASH.match(uri):
        return uri
    found = _FILE_URL.fullmatch(uri)
    if found is None or (found["host"] or "").lower() not in ("", "localhost"):
        scheme = uri.split(":")[0].lower()
        wanted = "file:///path, with three slashes" if scheme == "file" else f"{scheme}://bucket/path, with two slashes"
        raise ConfigError(f"{uri!r} cannot be used; write {wanted}, or ./{scheme}:... for a local path of that name")
    return unquote(found["path"])


def path_below(inner: str, outer: str) -> str | None:
    """The path of one place below another, links resolved: "" if they are the same, None if it is not below it.

    >>> path_below("s3://b/x/y/z", "s3a://b/x/"), path_below("s3://b/xy", "s3://b/x"), path_below("/x/", "/x")
    ('y/z', None, '')
    """
    inner_place, outer_place = (
        place if is_remote(place) else os.path.realpath(place) for place in map(absolute, (inner, outer))
    )
    if inner_place == outer_place:
        return ""
    above = outer_place.rstrip("/") + "/"
    return inner_place[len(above) :] if inner_place.startswith(above) else None


def _absolute_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    scheme = "s3" if scheme.lower() in _S3_SCHEMES else scheme.lower()
    place, *components = rest.rstrip("/").split("/")
    if scheme == "s3" and not place:
        raise ConfigError(f"{url!r} names no bucket; write s3://bucket/path")
    path: list[str] = []
    for component in components:
        if component == ".." and not path:
            raise ConfigError(f"a URL {scheme}://... leads above its bucket; write it without '..'")
        if component == "..":
            path.pop()
        elif component != ".":
            path.append(component)
    return f"{scheme}://" + "/".join([place, *path])


def _absolute_path(path: str) -> str:
    parts = os.path.join(os.getcwd(), path).split("/")
    if ".." in parts:
        after_last = len(parts) - parts[::-1].index("..")
        parts = [os.path.realpath("/".join(parts[:after_last])), *parts[after_last:]]
    return os.path.normpath("/" + "/".join(parts).lstrip("/"))
