"""Worker processes on this machine: spawned, never forked, one chunk read ahead each, results in order.

Each worker has one pipe. A task goes down it, the chunk's tokens come back as raw bytes after a small header. A thread
in the worker always drains the pipe, so that the two sides cannot block each other. When the main process dies, even
by SIGKILL, its end of the pipe closes and the workers leave.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import WorkerError
from shardkit.sources.source import Chunk
from shardkit.tokenization.spawning import interrupts_wait, without_main_script, worker_environment
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk, Job, until_error

_AHEAD = 2  # chunks given to a worker: one it encodes, one it has read ahead of need
_BUFFERED = 2  # finished chunks a worker may have waiting for their turn


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Any
    tasks: list[tuple[int, Chunk]]


class LocalRunner:
    """`workers` processes on this machine. Use as a context manager: leaving it ends them.

    Processes start at once, while the caller is still loading what the job needs; `run` then sends them the job.
    """

    def __init__(self, workers: int) -> None:
        import multiprocess

        context = multiprocess.get_context("spawn")
        self._workers: list[_Worker] = []
        self._spare: list[Any] = []  # memory of tokens that have been taken
        try:
            with without_main_script(), worker_environment(), interrupts_wait():
                for number in range(workers):
                    ours, theirs = context.Pipe()
                    process = context.Process(target=_work, args=(theirs,), name=f"shardkit-{number}", daemon=True)
                    process.start()
                    theirs.close()
                    self._workers.append(_Worker(process, ours, []))
        except BaseException:  # Ctrl-C too
            self.__exit__()
            raise

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join(timeout=5)

    @property
    def process_ids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in self._workers]

    def run(self, job: Job, chunks: Iterator[Chunk]) -> Iterator[EncodedChunk]:
        """Encode `chunks`; yields their results in the same order. At most four chunks a worker are in flight. The next
        result may take the memory of this one's `tokens`.

        Raises `WorkerError` naming the chunk of a worker that died.
        """
        for worker in self._workers:
            self._send(worker, job)
        failed: list[Exception] = []
        chunks = until_error(chunks, failed)
        coming: deque[Chunk] = deque()
        ready: dict[int, EncodedChunk] = {}
        issued, taken = 0, 0
        limit = (_AHEAD + _BUFFERED) * len(self._workers)
        while True:
            while issued - taken < limit and (idle := self._idle(coming, chunks)) is not None:
                idle.tasks.append((issued, coming[0]))
                self._send(idle, coming.popleft())
                issued += 1
            while taken in ready:
                result = ready.pop(taken)
                yield result
                self._spare.append(result.tokens.base)
                taken += 1
            if taken == issued and not coming:
                if failed:
                    raise failed[0]
                return
            if any(w.tasks for w in self._workers):
                self._collect(ready)

    def _idle(self, coming: deque[Chunk], chunks: Iterator[Chunk]) -> _Worker | None:
        """The worker to give the first of `coming` to, which is filled from `chunks`. A second chunk is given only
        while there is one for each worker after it: the last ones go to workers that have none, and all end together.
        """
        worker = min(self._workers, key=lambda w: len(w.tasks))
        read_here = bool(coming) and coming[0].payload is not None  # such chunks are not cheap to know ahead
        wanted = 1 if not worker.tasks or read_here else len(self._workers) + 1
        while len(coming) < wanted and (chunk := next(chunks, None)) is not None:
            coming.append(chunk)
        return worker if len(worker.tasks) < _AHEAD and len(coming) >= wanted else None

    def _collect(self, ready: dict[int, EncodedChunk]) -> None:
        """Wait for at least one result and put it under its chunk's number."""
        from multiprocess.connection import wait

        for pipe in wait([worker.pipe for worker in self._workers]):
            worker = next(w for w in self._workers if w.pipe is pipe)
            try:
                result, dtype, count = pipe.recv()
                tokens = self._memory(count * np.dtype(dtype).itemsize)
                _receive_bytes(pipe, tokens.data)
                result.tokens = tokens.view(dtype)
            except (EOFError, OSError):
                raise self._death(worker) from None
            if isinstance(result.error, WorkerError):
                raise result.error
            number, _ = worker.tasks.pop(0)
            ready[number] = result

    def _memory(self, count: int) -> NDArray[np.uint8]:
        """`count` bytes to receive into, used before if possible: fresh memory costs more than filling it."""
        spare: NDArray[np.uint8] = self._spare.pop() if self._spare else np.empty(0, np.uint8)
        if len(spare) < count:
            spare = np.empty(1 << (count - 1).bit_length(), np.uint8)
        return spare[:count]

    def _send(self, worker: _Worker, message: object) -> None:
        try:
            worker.pipe.send(message)
        except (BrokenPipeError, ConnectionError):
            raise self._death(worker) from None

    def _death(self, worker: _Worker) -> WorkerError:
        worker.process.join(timeout=2)
        code = worker.process.exitcode
        reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        hint = "; the system kills processes when memory runs out: try fewer --workers" if code == -9 else ""
        # It may have begun the second chunk while the tokens of the first were on their way.
        where = " or ".join(f"at {chunk.where}" for _, chunk in worker.tasks) or "before its first chunk"
        return WorkerError(
            f"worker {worker.process.name} (pid {worker.process.pid}) died by {reason} {where}{hint}; run the same "
            "command again, it goes on from the last finished shard"
        )


def _work(pipe: Any) -> None:
    """A worker's life: the job, then chunks until the pipe closes. One thread receives, so that the next task is here
    while the present one is encoded; another sends, so that no worker waits for the main process to take its tokens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: queue.Queue[Any] = queue.Queue()
    outbox: queue.Queue[EncodedChunk] = queue.Queue(maxsize=1)

    def receive() -> None:
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(0)  # the main process is gone

    def send() -> None:
        try:
            while True:
                _send_result(pipe, outbox.get())
        except (BrokenPipeError, ConnectionError):
            os._exit(0)
        except Exception:  # noqa: BLE001 (a bug: without this the main process would wait for ever)
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=receive, daemon=True).start()
    threading.Thread(target=send, daemon=True).start()
    for module in ("pyarrow.parquet", "tiktoken", "fastokens"):  # while the main process still loads the vocabulary
        importlib.import_module(module)
    encoder: ChunkEncoder | None = None
    while True:
        message = inbox.get()
        if isinstance(message, Job):
            encoder = ChunkEncoder(message)
        elif encoder is None:
            raise RuntimeError("a chunk came before the job")
        else:
            outbox.put(encoder.encode(message))


def _send_result(pipe: Any, result: EncodedChunk) -> None:
    tokens, result.tokens = result.tokens, np.empty(0, np.uint16)
    pipe.send((result, tokens.dtype.str, len(tokens)))
    _send_bytes(pipe, tokens.view(np.uint8).data)


# A connection's own `recv_bytes` reads a large message in pieces of new memory: ten times the processor time of reading
# it into place (benchmarks/RESULTS.md).
def _send_bytes(pipe: Any, data: memoryview) -> None:
    if sys.platform == "win32":
        if data:
            pipe.send_bytes(data)
        return
    while data:
        data = data[os.write(pipe.fileno(), data) :]


def _receive_bytes(pipe: Any, into: memoryview) -> None:
    """Fill `into` with what `_send_bytes` sent. Raises `EOFError` if the other side is gone."""
    if sys.platform == "win32":
        if into:
            pipe.recv_bytes_into(into)
        return
    while into:
        got = os.readv(pipe.fileno(), [into])
        if got == 0:
            raise EOFError
        into = into[got:]
