"""A folder over HTTP, with ranges, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Files of a folder over HTTP with Range; `faults` says what goes wrong with the next GETs."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        fault = self.server.faults.pop(0) if body and self.server.faults else None
        if not path.is_file() or isinstance(fault, int):
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        modified = path.stat().st_mtime
        self.server.asked.append(asked)
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "") if self.server.ranges else None
        start = int(ranged[1]) if ranged else 0
        part = data[start : int(ranged[2]) + 1 if ranged and ranged[2] else None]
        if fault in ("flip", "bit"):
            at, mask = len(part) // 2, 0xFF if fault == "flip" else 1
            sent = bytes([*part[:at], part[at] ^ mask, *part[at + 1 :]])
        else:
            sent = part[: len(part) // 2] if fault else part
        self.send_response(206 if ranged else 200)
        if self.server.sized or body:
            self.send_header("Content-Length", str(len(sent if fault == "short" else part)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
        if self.server.states == "ETag":
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        elif self.server.states == "Last-Modified":
            self.send_header("Last-Modified", formatdate(modified, usegmt=True))
        self.end_headers()
        if body:
            self.wfile.write(sent)
        self.close_connection = self.close_connection or fault == "drop"


class FileServer(ThreadingHTTPServer):
    """`faults` holds, for each GET in turn, None, a status, `drop` (cut midway), `short` (half, as if all), `flip` (all
    bits of the byte in the middle) or `bit` (one, so that text stays text). `states` is the header that tells versions
    of a file apart: ETag, Last-Modified, or none.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.sized, self.states = folder, True, True, ""
        self.faults: list[int | str | None] = []
        self.asked: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has seen enough goes away in the middle of an answer."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[FileServer]:
    """A running server of `folder`."""
    with FileServer(folder) as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
