"""Two servers that ask who reads: HTTP with a password or a signed query, and FTP with a password. Each has a folder,
and notes what it was sent."""

from __future__ import annotations

import base64
import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

USER, PASSWORD = "userOfTheTest", "pa55w0rdOfTheTest"
SIGNATURES = ("s1gnatureOfTheTest", "renewedS1gnatureOfTheTest")
SECRETS = (USER, PASSWORD, *SIGNATURES)
_BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


class _HttpHandler(BaseHTTPRequestHandler):
    """Files of the folder with Range, and its listing as links; uploads are taken and kept."""

    protocol_version = "HTTP/1.1"
    server: GuardedHttpServer

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        signed = parse_qs(address.query).get("X-Amz-Signature", [""])[0] in SIGNATURES
        path = self.server.folder / address.path.lstrip("/")
        if not signed and self.headers.get("Authorization") != _BASIC:
            self.answer(401, b"")
        elif path.is_dir():
            names = sorted(child.name for child in path.iterdir())
            self.answer(200, "".join(f'<a href="{name}">{name}</a>' for name in names).encode(), "text/html")
        elif path.is_file():
            data, ranged = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            self.answer(206 if ranged else 200, data[int(ranged[1]) : int(ranged[2]) + 1] if ranged else data)
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.server.received.append(body)
        self.answer(201 if self.headers.get("Authorization") == _BASIC else 401, b"")

    def answer(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class GuardedHttpServer(ThreadingHTTPServer):
    """`received` is the body of every upload."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _HttpHandler)
        self.folder = folder
        self.received: list[bytes] = []


class _FtpHandler(socketserver.StreamRequestHandler):
    """As much of FTP as `ftplib` speaks for fsspec: passive transfers of files, whole or from an offset on."""

    server: GuardedFtpServer

    def setup(self) -> None:
        super().setup()
        self.name, self.logged_in, self.offset, self.renamed = "", False, 0, Path()
        self.data = socket.create_server(("127.0.0.1", 0))

    def finish(self) -> None:
        self.data.close()
        super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that is gone
            self.serve()

    def serve(self) -> None:
        self.say("220 ready")
        while line := self.rfile.readline().decode().strip():
            verb, _, rest = line.partition(" ")
            if verb == "QUIT":
                return
            if verb not in ("USER", "PASS") and not self.logged_in:
                self.say("530 log in first")
                continue
            try:
                getattr(self, f"on_{verb.lower()}", self.unknown)(rest)
            except OSError:
                self.say("550 no such file")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())

    def path(self, name: str) -> Path:
        return self.server.folder / name.lstrip("/")

    def send(self, content: bytes) -> None:
        self.say("150 here it comes")
        with contextlib.suppress(OSError), self.data.accept()[0] as connection:  # the client may have enough of it
            connection.sendall(content)
        self.say("226 done")

    def unknown(self, rest: str) -> None:
        self.say("502 not here")

    def on_user(self, rest: str) -> None:
        self.name = rest
        self.say("331 and the password")

    def on_pass(self, rest: str) -> None:
        self.logged_in = (self.name, rest) == (USER, PASSWORD)
        self.say("230 welcome" if self.logged_in else f"530 wrong password for {self.name}")

    def on_type(self, rest: str) -> None:
        self.say("200 yes")

    on_opts = on_abor = on_type

    def on_pasv(self, rest: str) -> None:
        self.data.close()  # with what a transfer that was refused left waiting there
        self.data = socket.create_server(("127.0.0.1", 0))
        port = self.data.getsockname()[1]
        self.say(f"227 here (127,0,0,1,{port >> 8},{port & 255})")

    def on_rest(self, rest: str) -> None:
        self.offset = int(rest)
        self.say("350 from there")

    def on_mlsd(self, rest: str) -> None:
        children = sorted(self.path(rest).iterdir())
        kinds = {child: "dir" if child.is_dir() else f"file;size={child.stat().st_size}" for child in children}
        self.send("".join(f"type={kinds[child]}; {child.name}\r\n" for child in children).encode())

    def on_retr(self, rest: str) -> None:
        content, self.offset = self.path(rest).read_bytes()[self.offset :], 0
        self.send(content)

    def on_stor(self, rest: str) -> None:
        with open(self.path(rest), "r+b" if self.offset else "wb") as file:
            file.seek(self.offset)
            self.offset = 0
            self.say("150 send it")
            with self.data.accept()[0] as connection:
                while block := connection.recv(1 << 16):
                    file.write(block)
        self.say("226 done")

    def on_mkd(self, rest: str) -> None:
        self.path(rest).mkdir()
        self.say(f'257 "{rest}"')

    def on_rmd(self, rest: str) -> None:
        self.path(rest).rmdir()
        self.say("250 gone")

    def on_dele(self, rest: str) -> None:
        self.path(rest).unlink()
        self.say("250 gone")

    def on_rnfr(self, rest: str) -> None:
        self.renamed = self.path(rest)
        self.say("350 to what")

    def on_rnto(self, rest: str) -> None:
        self.renamed.replace(self.path(rest))
        self.say("250 renamed")


class GuardedFtpServer(socketserver.ThreadingTCPServer):
    """FTP, one thread a connection."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _FtpHandler)
        self.folder = folder


@contextmanager
def running(server: socketserver.BaseServer) -> Iterator[str]:
    """`server` in a thread; its host and port."""
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"  # type: ignore[index]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
