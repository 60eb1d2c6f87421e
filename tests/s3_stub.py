"""A tiny server with the requests of S3, for what no good server does: it ignores conditions, or refuses everything."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def s3_stub(*, refusal: tuple[int, str] | None = None) -> Iterator[str]:
    """The endpoint of a server that keeps what is put, whatever the conditions; or answers all with this status and
    error code."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if refusal is not None:
                status, code = refusal
                return self.send(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            if self.command == "PUT":
                files[self.path] = given
            found = files.get(self.path)
            if found is None:
                return self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return self.send(200, b"" if self.command == "PUT" else found, hashlib.md5(found).hexdigest())

        do_PUT = do_GET = do_HEAD = do_DELETE = do_POST = answer

        def send(self, status: int, body: bytes, etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
