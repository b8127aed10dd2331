"""An HTTP/1.1 server in a thread that fails on demand and writes down everything: `FaultyServer`, `FaultyHandler`.

It owns connections, bodies, byte ranges, faults and the log, and streams all bodies in blocks. It knows nothing of the
Hub: `hub_server.py` adds what the requests mean. A second origin is the same port under the name `localhost`; a token
that arrives there is a leak.

Faults are rules. A rule with a probability decides by (seed, request with its range, how often that request came), not
by the order in which threads happen to run: the same requests fail in every run. `link` is the link to the clients.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import select
import socket
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from hub_control import PREFIX, answer_control
from hub_link import BLOCK, NO_LINK

if TYPE_CHECKING:
    from typing_extensions import Self

Json = dict[str, Any]
Action = Literal[
    "status", "drop", "drop_midway", "truncate", "corrupt", "slow", "lost_answer", "hold", "stall", "expire"
]
SIGNATURE = re.compile(r"\?Expires=[^/]*$")  # ends a signed URL; another one at each `resolve`


class HttpError(Exception):
    """An answer other than success: status, headers, and a JSON body with `error` and the extra fields."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None, **extra: str) -> None:
        super().__init__(message)
        self.status, self.body, self.headers = status, {"error": message, **extra}, dict(headers or {})


class DroppedError(Exception):
    """The connection was cut on purpose: there is nobody left to answer."""


@dataclass
class Fault:
    """What goes wrong with requests whose method and target (path and query, unquoted) match two regexes.

    status       answer `code`, with `retry_after` (a 5xx carries HTML, as a gateway's does)
    drop         cut the connection, the body unread
    lost_answer  do the work, then cut the connection
    slow         wait `seconds`, then serve
    hold         set `reached`, wait until `gate` is set, then serve
    drop_midway  cut after the fraction `at` of the upload's body, or of the file that is downloaded
    truncate     serve the fraction `at` of a file as if that were all of it
    corrupt      flip the byte of a file at the fraction `at`
    stall        serve the fraction `at` of a file, then nothing more for `seconds` (0: for ever), connection open
    expire       answer 403 as for a signed URL that has run out, after the first `uses` of each URL

    It fires from the `nth` match on, with `probability`, at most `times` (None: for ever). `fired` counts.
    A cut is a reset (RST), or with `reset=False` an orderly close (FIN).
    """

    action: Action
    method: str = ".*"
    path: str = ""
    nth: int = 1
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    code: int = 503
    message: str = "injected"
    retry_after: int | None = None
    seconds: float = 0.0
    at: float = 0.5
    uses: int = 1
    reset: bool = True
    matched: int = 0
    fired: int = 0
    seen: Counter[str] = field(default_factory=Counter, repr=False)
    reached: threading.Event = field(default_factory=threading.Event, repr=False)
    gate: threading.Event = field(default_factory=threading.Event, repr=False)

    def fires(self, stage: str, method: str, target: str, asked: str = "") -> bool:
        """Whether it is due at this stage: request (before any work), body (of an upload) or file (of a download).

        `asked` is the request's Range."""
        stages = {"drop_midway": ("body", "file"), **dict.fromkeys(("truncate", "corrupt", "stall"), ("file",))}
        if stage not in stages.get(self.action, ("request",)):
            return False
        if not re.fullmatch(self.method, method) or not re.search(self.path, target):
            return False
        name = target if self.action == "expire" else SIGNATURE.sub("", target) + asked
        request = f"{self.seed} {self.action} {method} {name}"
        self.matched += 1
        self.seen[request] += 1
        if self.action == "expire" and self.seen[request] <= self.uses:
            return False
        if self.matched < self.nth or (self.times is not None and self.fired >= self.times):
            return False
        if self.probability < 1 and random.Random(f"{request} {self.seen[request]}").random() >= self.probability:
            return False
        self.fired += 1
        return True


@dataclass
class Request:
    """One line of the log. Bytes are of bodies, as far as they got; `status` is 0 where no answer was sent.

    `first` is the place in the file of a download's first byte; `began` and `ended` are in seconds since the epoch.
    """

    method: str
    target: str
    second_origin: bool
    token: bool
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    first: int = 0
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    faults: list[str] = field(default_factory=list)


class FaultyHandler(BaseHTTPRequestHandler):
    """One connection. A subclass gives `dispatch(path)`, which answers the request or raises `HttpError`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: FaultyServer

    def dispatch(self, path: str) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.site.connections.discard(self.connection)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the log is `FaultyServer.log`."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (DroppedError, OSError):  # a fault, or the client went away: no failure of this server
            self.close_connection = True

    def serve(self) -> None:
        if self.path.startswith(PREFIX):
            self.entry, self.lost, self.cut = Request(self.command, self.path, False, False), None, None
            self.body = self.read_body()
            answer_control(self)
            return
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.second_origin = self.headers.get("Host", "").startswith("localhost")
        target = unquote(url.path) + (f"?{unquote(url.query)}" if url.query else "")
        self.entry = Request(self.command, target, self.second_origin, "Authorization" in self.headers)
        self.site.log.append(self.entry)
        if self.second_origin and self.entry.token:
            self.site.leaked_tokens.append(f"{self.command} {target}")
        self.cut: Fault | None = None  # ends this request's upload or download midway
        self.lost: Fault | None = None  # swallows the answer
        self.body = self.read_body()
        self.site.running.wait()
        try:
            self.serve_logged(url.path, target)
        finally:
            self.entry.ended = time.time()

    def serve_logged(self, path: str, target: str) -> None:
        link = self.site.link
        self.link = link if re.search(link.path, target) else NO_LINK
        if self.site.stopping.wait(self.link.seconds_before(content=self.second_origin)) or self.answer_faulty():
            return
        try:
            self.dispatch(path)
        except HttpError as error:
            self.answer(error.status, error.body, error.headers)
        except (DroppedError, OSError):
            raise
        except Exception:  # noqa: BLE001 (a bug here must reach the test, not vanish in a thread)
            self.site.errors.append(traceback.format_exc())
            self.answer(500, {"error": "a bug in the test server: see FaultyServer.errors"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    # -- faults --------------------------------------------------------------------------------------------------

    def pick(self, stage: str) -> list[Fault]:
        with self.site.lock:
            asked = self.headers.get("Range", "")
            faults = [rule for rule in self.site.faults if rule.fires(stage, self.command, self.entry.target, asked)]
        self.entry.faults += [rule.action for rule in faults]
        return faults

    def answer_faulty(self) -> bool:
        """Apply the faults that are due before any work; True if one of them answered."""
        for fault in self.pick("request"):
            if fault.action == "slow":
                if self.site.stopping.wait(fault.seconds):
                    raise DroppedError
            elif fault.action == "hold":
                fault.reached.set()
                while not fault.gate.wait(0.02):
                    if self.site.stopping.is_set():
                        raise DroppedError
            elif fault.action == "lost_answer":
                self.lost = fault
            elif fault.action == "drop":
                self.drop(fault)
            elif fault.action == "expire":
                self.answer_expired()
                return True
            else:
                headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                if fault.code == 429 and fault.retry_after is not None:
                    headers["RateLimit"] = f'"api";r=0;t={fault.retry_after}'
                gateway = f"<html><h1>{fault.code} (injected)</h1></html>".encode()
                self.answer(fault.code, gateway if fault.code >= 500 else {"error": fault.message}, headers)
                return True
        if "Transfer-Encoding" in self.headers or self.headers.get("Content-Length", "0") != "0":
            self.cut = next(iter(self.pick("body")), None)
        return False

    def answer_expired(self) -> None:
        """What the store behind the Hub answers to a signed URL that has run out."""
        says = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
        self.answer(403, b'<?xml version="1.0" encoding="UTF-8"?>' + says, {"Content-Type": "application/xml"})

    def stay_silent(self, fault: Fault) -> None:
        """Send nothing until the fault's `seconds` are over; ends with the client, or the server."""
        until = time.monotonic() + (fault.seconds or float("inf"))
        while (left := until - time.monotonic()) > 0:
            if self.site.stopping.wait(min(0.02, left)):
                raise DroppedError
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                raise DroppedError

    def drop(self, fault: Fault) -> NoReturn:
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())  # the handler's own references must not keep it open
        raise DroppedError

    # -- bodies and answers --------------------------------------------------------------------------------------

    def read_body(self) -> Iterator[bytes]:
        """The request's body in blocks, counted; `cut` drops the connection on the way."""
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        total = int(self.headers.get("Content-Length", 0))
        while left := int(self.rfile.readline().split(b";")[0], 16) if chunked else total - self.entry.bytes_in:
            while left:
                due = left if self.cut is None or chunked else int(total * self.cut.at) - self.entry.bytes_in
                if self.cut and (due <= 0 or (chunked and self.entry.bytes_in)):
                    self.drop(self.cut)
                block = self.rfile.read1(min(left, due, BLOCK))
                if not block:
                    raise ConnectionError("the client went away during its upload")
                left -= len(block)
                self.entry.bytes_in += len(block)
                yield block
            if chunked:
                self.rfile.readline()
        if chunked:
            self.rfile.readline()

    def json(self) -> Json:
        return parse_json(b"".join(self.body))

    def json_of_any_kind(self) -> Any:
        return json.loads(b"".join(self.body))

    def begin_answer(self, status: int, headers: Mapping[str, str]) -> None:
        for _ in self.body:  # what was sent must be read before the connection can carry another request
            pass
        if self.lost:
            self.drop(self.lost)
        self.entry.status = status
        self.send_response(status)
        for name, value in {"X-Request-Id": f"req-{id(self.entry):x}", **headers}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.end_headers()

    def write(self, block: bytes) -> None:
        if self.command != "HEAD":
            self.entry.bytes_out += len(block)  # counted before the client can have seen it
            self.wfile.write(block)

    def answer(
        self, status: int, body: bytes | Json | list[Json] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        kind = "text/html" if isinstance(body, bytes) else "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.begin_answer(status, {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})})
        self.write(data)

    def answer_file(self, path: Path, headers: Mapping[str, str]) -> None:
        """200, 206 for a range or 416; GET and HEAD."""
        size = end = path.stat().st_size
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and any(asked.groups()):
            first, last = asked.groups()
            start = int(first) if first else max(0, size - int(last))
            end = min(int(last) + 1, size) if first and last else size
            status = 206
            if start >= end:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
        stop, flip, silence = end, -1, None
        for fault in self.pick("file") if self.command == "GET" else []:
            point = start + int((end - start) * fault.at)
            if fault.action == "truncate":
                stop = end = point
            elif fault.action == "corrupt":
                flip = min(point, end - 1)
            elif fault.action == "stall":
                silence, stop = fault, point
            else:
                self.cut, stop = fault, point
        length = {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
        if status == 206:
            length["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.entry.first = start
        self.begin_answer(status, {"Content-Type": "application/octet-stream", **length, **headers})
        if self.command == "GET":
            with path.open("rb") as file:
                self.send_part(file, start, stop, flip)
                if silence is not None:
                    self.stay_silent(silence)
                    self.send_part(file, stop, end, flip)
        if self.cut:
            self.site.stopping.wait(0.02)  # let the client take in what it got: a reset throws the rest away
            self.drop(self.cut)

    def send_part(self, file: IO[bytes], start: int, stop: int, flip: int) -> None:
        """Bytes `start` to `stop` of a file, at the pace of the link, the byte at `flip` wrong."""
        for at, size in self.link.blocks(start, stop):
            if self.site.stopping.is_set():
                raise DroppedError
            if at <= flip < at + size:
                file.seek(at)
                block = bytearray(file.read(size))
                block[flip - at] ^= 0xFF
                self.write(bytes(block))
            else:
                self.entry.bytes_out += size  # counted before the client can have seen it
                self.connection.sendfile(file, at, size)


def parse_json(text: bytes) -> Json:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise HttpError(400, f"Malformed JSON: {error}") from error


class FaultyServer:
    """Connections, faults and log of one port. `stop()` and `start()` keep the port, as after a crash."""

    handler: type[FaultyHandler]

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.faults: list[Fault] = []
        self.link = NO_LINK
        self.url_seconds: float | None = None
        self.log: list[Request] = []
        self.leaked_tokens: list[str] = []
        self.errors: list[str] = []
        self.lock = threading.RLock()
        self.running, self.stopping = threading.Event(), threading.Event()
        self.connections: set[socket.socket] = set()
        self.httpd: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        """The second origin."""
        return f"http://localhost:{self.port}"

    def start(self) -> Self:
        site = self

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 128, True

            def process_request(self, request: Any, client_address: Any) -> None:
                site.connections.add(request)
                super().process_request(request, client_address)

        self.httpd = httpd = Server(("127.0.0.1", self.port), type("Handler", (self.handler,), {"site": self}))
        self.port = httpd.server_address[1]
        self.stopping.clear()
        self.running.set()
        threading.Thread(target=httpd.serve_forever, args=(0.02,), name="hub-server", daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop as a crash does: requests in flight are cut, what they had finished stays."""
        if self.httpd is None:
            return
        self.stopping.set()
        self.running.set()
        self.httpd.shutdown()
        self.httpd.server_close()
        self.httpd = None
        deadline = time.monotonic() + 5
        while self.connections and time.monotonic() < deadline:
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.005)

    def pause(self) -> None:
        """Accept requests and answer none, until `resume()`."""
        self.running.clear()

    def resume(self) -> None:
        self.running.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def fault(self, action: Action, method: str = ".*", path: str = "", **options: Any) -> Fault:
        """Add a rule to `faults` and return it; the options are `Fault`'s fields. Rules apply in order."""
        self.faults.append(Fault(action, method, path, **options))
        return self.faults[-1]

    def random_faults(self, seed: int, rate: float, kinds: Iterable[Action], **options: Any) -> list[Fault]:
        """One rule for each kind, for ever, each with its share of `rate`; the same seed fails the same requests."""
        names = list(kinds)
        merged = {"times": None, "seed": seed, "probability": rate / len(names), **options}
        return [self.fault(name, **merged) for name in names]

    def requests(self, method: str = ".*", pattern: str = "", status: int | None = None) -> list[Request]:
        """The log's lines that match; a request is logged as soon as its headers have arrived."""
        chosen = [r for r in list(self.log) if re.fullmatch(method, r.method) and re.search(pattern, r.target)]
        return [request for request in chosen if status in (None, request.status)]

    def count(self, method: str = ".*", pattern: str = "", status: int | None = None) -> int:
        return len(self.requests(method, pattern, status))

    def bytes_received(self, pattern: str = "") -> int:
        return sum(request.bytes_in for request in self.requests(pattern=pattern))

    def bytes_sent(self, pattern: str = "") -> int:
        return sum(request.bytes_out for request in self.requests(pattern=pattern))

    def wait_for_quiet(self) -> None:
        """Wait until no client is connected: what one that was killed had sent already is in the log by then."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", f"{PREFIX}log")  # connections are accepted in order
        connection.getresponse().read()
        connection.close()
        while self.connections:
            time.sleep(0.005)

    def reset_log(self) -> None:
        self.log.clear()
