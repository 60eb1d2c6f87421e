"""An object store in memory with the semantics of S3: whole objects, etags, conditions that the server checks, keys
without directories; every request goes through a hook that may delay, lose or refuse it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import fsspec
import pyarrow.fs as pafs
from fsspec.asyn import get_loop

from mtop_batch.storage import clients

Request = Callable[[], Any]


class _Refused(Exception):
    """What a client of S3 has of an answer that is an error."""

    def __init__(self, code: str, status: int) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class FakeS3(fsspec.AbstractFileSystem):
    """What the project asks of s3fs, answered from memory.

    Args:
        hook: Is given each request, its name and whether it changes the store; what it returns is the answer.
    """

    cachable = False
    protocol = "s3"

    def __init__(self, hook: Callable[[str, Request, bool], Any]) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}
        self.loop = get_loop()
        self._hook = hook

    # --- the requests of S3 ---

    def call_s3(self, name: str, *, Bucket: str, Key: str, **options: Any) -> Any:
        key = f"{Bucket}/{Key}"
        if name == "put_object":
            return self._hook("PUT", lambda: self._put(key, **options), True)
        assert name == "delete_object", name
        return self._hook("DELETE", lambda: self.objects.pop(key, None), True)

    async def _call_s3(self, name: str, *, Bucket: str, Key: str) -> dict[str, Any]:
        assert name == "get_object", name
        data = self._get(f"{Bucket}/{Key}")
        return {"Body": _Body(data), "ETag": f'"{_etag(data)}"'}

    def _put(self, key: str, Body: bytes, IfNoneMatch: str | None = None, IfMatch: str | None = None) -> None:
        found = self.objects.get(key)
        if IfMatch is not None and found is None:
            raise _os_error("NoSuchKey", 404)
        if (IfNoneMatch == "*" and found is not None) or (IfMatch and found and IfMatch.strip('"') != _etag(found)):
            raise _os_error("PreconditionFailed", 412)
        self.objects[key] = bytes(Body)

    def _get(self, key: str) -> bytes:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    # --- the same by the names of fsspec ---

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        def answer() -> dict[str, dict[str, Any]]:
            keys = sorted(key for key in list(self.objects) if key == path or key.startswith(f"{path}/"))
            return {key: self._info(key) for key in keys}

        found: dict[str, dict[str, Any]] = self._hook("LIST", answer, False)
        return found

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            if path in self.objects:
                return self._info(path)
            if any(key.startswith(f"{path}/") for key in list(self.objects)):
                return {"name": path, "type": "directory", "size": 0}
            raise FileNotFoundError(path)

        found: dict[str, Any] = self._hook("HEAD", answer, False)
        return found

    def _info(self, key: str) -> dict[str, Any]:
        data = self.objects[key]
        return {"name": key, "type": "file", "size": len(data), "ETag": f'"{_etag(data)}"'}

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        if mode == "rb":
            return io.BytesIO(self._hook("GET", lambda: self._get(path), False))
        return _Upload(lambda data: self._hook("PUT", lambda: self._put(path, data), True))

    def rm_file(self, path: str) -> None:
        self._hook("DELETE", lambda: self.objects.pop(path, None), True)


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def read(self) -> bytes:
        return self._data


class _Upload(io.BytesIO):
    def __init__(self, put: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._put(data)


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def _os_error(code: str, status: int) -> OSError:
    """As s3fs raises it: an `OSError` because of the client's exception."""
    error = OSError(code)
    error.__cause__ = _Refused(code, status)
    return error


def refusal() -> OSError:
    """What a request raises that is not allowed any more."""
    return _os_error("AccessDenied", 403)


@contextmanager
def serving(store: FakeS3) -> Iterator[None]:
    """All addresses `s3://` lead to this store, in both clients."""
    bulk = pafs.PyFileSystem(pafs.FSSpecHandler(store))
    with (
        mock.patch.object(clients, "_s3fs", return_value=store),
        mock.patch.object(clients, "_pyarrow_s3", return_value=bulk),
    ):
        yield
