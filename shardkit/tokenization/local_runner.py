"""Worker processes on this machine: spawned, never forked, one chunk read ahead each, results in order.

Each worker has one pipe. A task goes down it, the chunk's tokens come back as raw bytes after a small header. A thread
in the worker always drains the pipe, so that the two sides cannot block each other. When the main process dies, even
by SIGKILL, its end of the pipe closes and the workers leave.
"""

from __future__ import annotations

import dataclasses
import importlib
import mmap
import os
import queue
import signal
import subprocess
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, NamedTuple

import numpy as np
from multiprocess.connection import Connection, wait
from numpy.typing import NDArray

from shardkit.errors import WorkerError
from shardkit.sources.read_ahead import AHEAD_BYTES, SHARED_BYTES
from shardkit.sources.remote_bytes import traffic
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk, Fetched, Piece
from shardkit.tokenization.chunk_feed import ChunkFeed, WaitingFeed
from shardkit.tokenization.pipes import as_bytes, receive, receive_bytes, send, send_bytes
from shardkit.tokenization.spawning import Task, Worker, bytes_in_hands, start_workers
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk, Job

_AHEAD = 2  # chunks given to a worker: one it encodes, one it has read ahead of need
_BUFFERED = 2  # finished chunks a worker may have waiting for their turn
_WAITING_BYTES = 16 << 20  # of tokens of one chunk that wait for their turn; when there are as many, no more come


class LocalRunner:
    """At most `workers` processes on this machine. A context manager: leaving it ends them. `at_first` of them (None:
    all) start at once, while the caller is still loading what the job needs, and each other one when there is a chunk
    for it: more than `expected` of them (None: all) when so many chunks were used and there are still more."""

    reads_ahead = True

    def __init__(self, workers: int, *, at_first: int | None = None, expected: int | None = None) -> None:
        self._most = workers
        self._expected = workers if expected is None else expected
        self._job = b""
        self._spare: list[Any] = []  # memory of results that have been used
        self.shared = SharedMemory.make(SHARED_BYTES)  # for what is fetched for the workers
        self._workers = start_workers(workers if at_first is None else at_first, self.shared)

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.end()
        if self.shared is not None:
            self.shared.forget_descriptor()
        self.shared = None  # its file stays open as long as anybody has it

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return tuple(worker.process.pid for worker in self._workers)

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:
        """Encode `chunks`; yields the pieces of their results in the same order. At most four chunks a worker are in
        flight, and a few pieces of one whose turn has not come. The next piece may take the memory of this one's.

        Raises `WorkerError` naming the chunk of a worker that died.
        """
        self._job = as_bytes(job)
        for worker in self._workers:
            worker.outbox.put(self._job)
        feed = WaitingFeed(chunks, self._most) if over_network else ChunkFeed(chunks)
        with closing(feed):
            yield from self._run(feed)
        if feed.failed:
            raise feed.failed[0]

    def _run(self, feed: ChunkFeed) -> Iterator[EncodedChunk]:
        upcoming: deque[Chunk] = deque()
        ready: defaultdict[int, deque[EncodedChunk]] = defaultdict(deque)
        issued, yielded = 0, 0
        limit = (_AHEAD + _BUFFERED) * self._most
        while True:
            while issued - yielded < limit and (idle := self._idle(upcoming, feed, yielded)) is not None:
                chunk = upcoming.popleft()
                idle.tasks.append(Task(issued, dataclasses.replace(chunk, payload=None, fetched=None), chunk.fetched))
                self._send_chunk(idle, chunk)
                issued += 1
            while ready[yielded]:
                result = ready[yielded].popleft()
                yield result
                self._spare.append(result.tokens.base)
                if result.last:
                    del ready[yielded]
                    yielded += 1
            if yielded == issued and not upcoming and feed.over:
                return
            wants = issued - yielded < limit and not upcoming and not feed.over
            signal = feed.signal if wants and any(len(w.tasks) < _AHEAD for w in self._workers) else None
            if signal is not None or any(w.tasks for w in self._workers):
                self._collect(ready, yielded, signal)

    def _idle(self, upcoming: deque[Chunk], feed: ChunkFeed, used: int) -> Worker | None:
        """The worker to give the first of `upcoming` to, which is filled from `feed`: a new one if all have something
        to do; `used` chunks were yielded. A second chunk is given only while there is one for each worker after it: the
        last ones go to workers that have none, and all end together.
        """
        worker = min(self._workers, key=lambda w: len(w.tasks))
        if len(worker.tasks) >= _AHEAD:
            return None
        if not upcoming and (first := feed.next()) is not None:
            upcoming.append(first)
        most = self._most if used >= self._expected else self._expected
        if upcoming and worker.tasks and len(self._workers) < most:
            self._workers += start_workers(1, self.shared, number=len(self._workers))
            worker = self._workers[-1]
            worker.outbox.put(self._job)
        carries = bool(upcoming) and not (upcoming[0].payload is None and upcoming[0].fetched is None)
        wanted = 1 if not worker.tasks or carries else len(self._workers) + 1  # what carries bytes is dear to hold
        while upcoming and len(upcoming) < wanted and (chunk := feed.next()) is not None:
            upcoming.append(chunk)
        is_much = bool(worker.tasks) and bytes_in_hands(self._workers) >= AHEAD_BYTES
        return worker if len(upcoming) >= wanted and not is_much else None

    def _collect(self, ready: defaultdict[int, deque[EncodedChunk]], turn: int, signal: int | None) -> None:
        """Wait for at least one piece, or for `signal`, and put it under its chunk's number. A worker that is far ahead
        in a chunk whose turn has not come is left to wait with the next piece."""
        ahead = [
            w
            for w in self._workers
            if w.tasks and (n := w.tasks[0].number) != turn and sum(p.tokens.nbytes for p in ready[n]) >= _WAITING_BYTES
        ]
        pipes = [worker.pipe for worker in self._workers if worker not in ahead]
        for pipe in [p for p in wait(pipes if signal is None else [*pipes, signal]) if p is not signal]:
            worker = next(w for w in self._workers if w.pipe is pipe)
            try:
                result = self._receive_result(worker.pipe)
            except (EOFError, OSError):
                raise self._death(worker) from None
            if isinstance(result.error, WorkerError):
                raise result.error
            ready[worker.tasks[0].number].append(result)
            if result.last:
                worker.tasks.pop(0)

    def _receive_result(self, pipe: Connection) -> EncodedChunk:
        """What `_send_result` sent, its arrays in memory of ours. Raises `EOFError` if the worker is gone."""
        result: EncodedChunk
        result, dtype, tokens, documents = receive(pipe)
        positions_bytes = 8 * documents
        memory = self._memory(positions_bytes + tokens * np.dtype(dtype).itemsize)
        receive_bytes(pipe, memory.data)
        result.eot_positions = memory[:positions_bytes].view(np.int64)
        result.tokens = memory[positions_bytes:].view(dtype)
        return result

    def _memory(self, count: int) -> NDArray[np.uint8]:
        """`count` bytes to receive into, used before if possible: fresh memory costs more than filling it."""
        spare: NDArray[np.uint8] = self._spare.pop() if self._spare else np.empty(0, np.uint8)
        if len(spare) < count:
            spare = np.empty(1 << (count - 1).bit_length(), np.uint8)
        return spare[:count]

    def _send_chunk(self, worker: Worker, chunk: Chunk) -> None:
        """Send a chunk; what was fetched for it, and is not in shared memory, follows as raw bytes, a footer once."""
        fetched, shared = chunk.fetched, self.shared
        if fetched is None:
            worker.outbox.put(as_bytes(_Parcel(chunk, False, [], False, None)))
            return
        footer, places = fetched.footer, [shared.place_of(data) if shared else None for _, data in fetched.pieces]
        sizes = [(start, len(data), place) for (start, data), place in zip(fetched.pieces, places, strict=True)]
        known = footer is not None and footer is worker.footer
        worker.footer = footer
        light = dataclasses.replace(chunk, fetched=None)
        worker.outbox.put(as_bytes(_Parcel(light, True, sizes, known, None if known else footer)))
        for (_, data), place in zip(fetched.pieces, places, strict=True):
            if place is None:
                worker.outbox.put(memoryview(data))

    def _death(self, worker: Worker) -> WorkerError:
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=2)
        code = worker.process.returncode
        reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; the system kills processes when memory runs out: try fewer --workers" if code == -9 else ""
        # It may have begun the second chunk while the tokens of the first were on their way.
        where = " or ".join(f"at {chunk.where}" for _, chunk, _ in worker.tasks) or "before its first chunk"
        return WorkerError(
            f"worker {worker.name} (pid {worker.process.pid}) died by {reason} {where}{hint}; run the same command "
            "again, it goes on from the last finished shard"
        )


class _Parcel(NamedTuple):
    """A chunk on its way to a worker: without its bytes, of which is stated where in the file they are, how many, and
    where in shared memory; with the footer, unless it is `known` from the chunk before."""

    chunk: Chunk
    is_fetched: bool
    sizes: list[tuple[int, int, int | None]]
    known: bool
    footer: Piece | None


def _receive_chunks(pipe: Connection, shared: int | None, put: Callable[[Any], None]) -> None:
    """Receive jobs and chunks, with what was fetched for them, until the pipe ends."""
    footer: Piece | None = None
    memory = memoryview(b"")  # of the file `shared`, once something is there
    while True:
        message = receive(pipe)
        if isinstance(message, _Parcel):
            pieces: list[Piece] = []
            for start, size, place in message.sizes:
                if place is not None and shared is not None:
                    memory = memory or memoryview(mmap.mmap(shared, 0, prot=mmap.PROT_READ))
                    pieces.append((start, memory[place : place + size]))
                    continue
                data = np.empty(size, np.uint8).data  # which, unlike a `bytearray`, is not filled before it is filled
                receive_bytes(pipe, data)
                pieces.append((start, data))
            chunk = message.chunk
            if message.is_fetched:
                footer = footer if message.known else message.footer
                chunk = dataclasses.replace(chunk, fetched=Fetched(pieces=tuple(pieces), footer=footer))
            message = chunk
        put(message)


def work(descriptor: int, shared: int | None) -> None:
    """A worker's life: the job, then chunks until the pipe closes, whose end is the file `descriptor`. What was fetched
    for it may be in the memory of the file `shared`. One thread receives, so that the next task has come while the
    present one is encoded; another sends, so that no worker waits for the main process to read its tokens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    messages: queue.Queue[Any] = queue.Queue()
    results: queue.Queue[EncodedChunk] = queue.Queue(maxsize=1)

    def receive() -> None:
        try:
            _receive_chunks(pipe, shared, messages.put)
        except (EOFError, OSError):
            os._exit(0)  # the main process is gone
        except BaseException:  # noqa: BLE001 (what cannot be unpickled: the main process would wait for ever)
            traceback.print_exc()
            os._exit(1)

    def send_results() -> None:
        try:
            while True:
                _send_result(pipe, results.get())
        except (BrokenPipeError, ConnectionError):
            os._exit(0)
        except BaseException:  # noqa: BLE001 (a bug: without this the main process would wait for ever)
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    threading.Thread(target=send_results, daemon=True).start()
    for module in ("pyarrow.parquet", "tiktoken", "fastokens"):  # while the main process still loads the vocabulary
        importlib.import_module(module)
    encoder: ChunkEncoder | None = None
    waits_since, fetched = 0.0, 0
    while True:
        message = messages.get()
        if isinstance(message, Job):
            encoder = ChunkEncoder(message)
        elif encoder is None:
            raise RuntimeError("a chunk came before the job")
        else:
            waited = time.monotonic() - waits_since if waits_since else 0.0
            for result in encoder.encode(message):
                result.waited, waited = waited, 0.0
                result.fetched_bytes, fetched = traffic().bytes - fetched, traffic().bytes
                results.put(result)
            waits_since = time.monotonic()


def _send_result(pipe: Connection, result: EncodedChunk) -> None:
    """Send `result`; its arrays follow as raw bytes, the positions first: they must lie on 8-byte boundaries."""
    tokens, positions = result.tokens, result.eot_positions
    result.tokens, result.eot_positions = np.empty(0, np.uint16), np.empty(0, np.int64)
    send(pipe, (result, tokens.dtype.str, len(tokens), len(positions)))
    for array in (positions, tokens):
        send_bytes(pipe, array.view(np.uint8).data)
