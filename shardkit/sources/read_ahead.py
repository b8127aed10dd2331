"""Bytes of remote files, fetched ahead of need: over several connections, in the order in which they will be read, into
bounded memory.

A `Span` is one request. A connection is a thread; how many there are adapts to what helps (`Connections`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType

from shardkit.sources.http_session import close_session
from shardkit.sources.remote_bytes import read_into
from shardkit.sources.shared_memory import MemoryPool, SharedMemory
from shardkit.sources.source import InputFile
from shardkit.waits import LOOK_SECONDS

AHEAD_BYTES = 192 << 20  # of memory, in all that was asked for and has not been read
WORKER_AHEAD_BYTES = 64 << 20  # the same, where a worker reads a long file itself
FIRST_AHEAD_BYTES = 32 << 20  # at the start, so that a short run does not fetch what it never reads
SPAN_BYTES = 8 << 20  # of one request, about
_IN_HANDS = 2  # of the memory for what is read ahead: as much again is in the workers' hands
SHARED_BYTES = _IN_HANDS * AHEAD_BYTES
FIRST_SPAN_BYTES = 1 << 20  # at the start, so that all workers soon have something to do
MOST_CONNECTIONS = 64
FIRST_CONNECTIONS = 8
_GAIN = 1.1  # more connections must bring this much more
_LOOK_SECONDS = 0.5  # between two looks at the rate
_LOOK_AGAIN_SECONDS = 30.0  # after more connections did not help


class Span:
    """The bytes `[start, stop)` of a file, on their way or here."""

    __slots__ = ("arrived", "buffer", "error", "file", "released", "start", "started", "stop")

    def __init__(self, file: InputFile, start: int, stop: int) -> None:
        self.file, self.start, self.stop = file, start, stop
        self.buffer: memoryview = memoryview(b"")
        self.arrived = 0
        self.started = self.released = False
        self.error: Exception | None = None


class Connections:
    """How many connections to use: more while they bring more, as seen when the reader waits for bytes. Thread-safe
    only under its user's lock."""

    def __init__(self, now: float) -> None:
        self.count = FIRST_CONNECTIONS
        self._best = 0.0
        self._before = FIRST_CONNECTIONS  # the count that gave `_best`
        self._looked_at, self._bytes = now, 0
        self._rest_until = 0.0

    def look(self, total_bytes: int, now: float, *, waited_for: bool) -> None:
        """A request has ended; `total_bytes` have come so far, and somebody waits for more, or not."""
        seconds = now - self._looked_at
        if seconds < _LOOK_SECONDS:
            return
        rate = (total_bytes - self._bytes) / seconds
        self._looked_at, self._bytes = now, total_bytes
        if not waited_for or now < self._rest_until:
            return
        if rate > self._best * _GAIN:
            self._best, self._before = rate, self.count
            self.count = min(MOST_CONNECTIONS, self.count * 2)
        else:
            self.count, self._best, self._rest_until = self._before, 0.0, now + _LOOK_AGAIN_SECONDS


class ReadAhead:
    """Fetches spans in the order in which they are asked for, into at most `most_bytes` of memory (None: the usual
    bound), `shared` of `SHARED_BYTES` if it is given. A context manager: at its end, fetching stops."""

    def __init__(self, most_bytes: int | None = None, shared: SharedMemory | None = None) -> None:
        self.most_bytes = most_bytes or AHEAD_BYTES
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for connections: there may be something to fetch
        self._arrival = threading.Condition(self._lock)  # for readers: something came, or failed
        self._queue: deque[Span] = deque()
        self._urgent: deque[Span] = deque()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._busy = self._held = self._read = 0  # connections at work; bytes in memory; bytes that were read
        self._waiting: dict[Span, int] = {}  # and how many bytes of it somebody waits for
        self._bytes = self._planned = 0
        self._memory = MemoryPool(_IN_HANDS * self.most_bytes, shared)
        self._connections = Connections(time.monotonic())

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        with self._lock:
            self._memory.forget()
            self._work.notify_all()
            self._arrival.notify_all()

    @property
    def span_bytes(self) -> int:
        """How large the next span should be."""
        return min(SPAN_BYTES, max(FIRST_SPAN_BYTES, self._planned // FIRST_CONNECTIONS))

    def ask(self, file: InputFile, start: int, stop: int, *, urgent: bool = False) -> Span:
        """Ask for the bytes `[start, stop)` of `file`, to be fetched after all that was asked for before, or, `urgent`
        and few, as soon as a connection is free."""
        span = Span(file, start, stop)
        with self._lock:
            if urgent:
                self._urgent.append(span)
            else:
                self._queue.append(span)
                self._planned += stop - start
            wanted = min(self._connections.count, self._busy + len(self._queue) + len(self._urgent))
            if len(self._threads) < wanted:
                self._start_thread()
            self._work.notify()
        return span

    def has_come(self, span: Span, stop: int) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return span.arrived >= stop - span.start or span.error is not None

    def wait(self, span: Span, stop: int) -> memoryview:
        """The bytes of `span` from its start to `stop` (in the file), as soon as they are here. Raises what went
        wrong with them."""
        needed = stop - span.start
        if span.arrived < needed and span.error is None:
            self.hurry([span])
        with self._lock:
            while span.arrived < needed and span.error is None and not self._stop.is_set():
                self._waiting[span] = needed
                self._arrival.wait(LOOK_SECONDS)
            self._waiting.pop(span, None)
        if self._stop.is_set():
            raise RuntimeError("the reading ahead has ended")
        if span.arrived < needed and span.error is not None:
            raise span.error
        return span.buffer[:needed]

    def release(self, span: Span) -> None:
        """Say that `span` has been read: its memory is free for others."""
        with self._lock:
            if not span.started:
                for queue in (self._queue, self._urgent):
                    if span in queue:
                        queue.remove(span)
            elif not span.released:
                self._held -= span.stop - span.start
                self._read += span.stop - span.start
            span.released, span.buffer = True, memoryview(b"")
            self._work.notify()

    def hurry(self, spans: Iterable[Span]) -> None:
        """Somebody waits for all of `spans`: they are fetched next, together, whatever waits for room."""
        with self._lock:
            for span in spans:
                if not span.started and span in self._queue:
                    self._queue.remove(span)
                    self._urgent.append(span)
                    self._work.notify()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._fetch_all, name=f"shardkit-source-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # as many threads as the machine allows: those that are there do it
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _fetch_all(self) -> None:
        """The life of a connection."""
        try:
            while (span := self._next()) is not None:
                self._fetch(span)
        finally:
            close_session()

    def _next(self) -> Span | None:
        """The span to fetch now, once there is one, room for it, and need of one more connection."""
        with self._lock:
            while not self._stop.is_set():
                if self._busy < self._connections.count and (span := self._due()) is not None:
                    self._busy += 1
                    span.started = True
                    self._held += span.stop - span.start
                    if self._queue or self._urgent:
                        self._work.notify()
                        if len(self._threads) < self._connections.count:
                            self._start_thread()
                    return span
                self._work.wait()
            return None

    def _due(self) -> Span | None:
        if self._urgent:
            return self._urgent.popleft()
        if not self._queue:
            return None
        first = self._queue[0]
        allowed = min(self.most_bytes, FIRST_AHEAD_BYTES + 2 * self._read)
        if self._held and self._held + first.stop - first.start > allowed:
            return None
        return self._queue.popleft()

    def _fetch(self, span: Span) -> None:
        def arrived(count: int) -> None:
            with self._lock:
                span.arrived += count
                self._bytes += count
                if span.arrived >= self._waiting.get(span, sys.maxsize):
                    self._arrival.notify_all()

        error: Exception | None = None
        try:
            buffer = self._memory.get(span.stop - span.start)
            with self._lock:
                span.buffer = buffer if not span.released else span.buffer
            read_into(span.file, span.start, buffer, arrived=arrived, stop=self._stop)
        except Exception as failure:  # noqa: BLE001 (raised where the span is waited for)
            error = failure
        with self._lock:
            span.error = error
            self._busy -= 1
            self._connections.look(self._bytes, time.monotonic(), waited_for=bool(self._waiting))
            self._work.notify()
            self._arrival.notify_all()
