"""Worker processes on this machine: spawned, never forked, one chunk read ahead each, results in order.

Each worker has one pipe. A task goes down it, the chunk's tokens come back as raw bytes after a small header. A thread
in the worker always drains the pipe, so that neither side can block the other. When the main process dies, even by
SIGKILL, its end of the pipe closes and the workers leave.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardkit.errors import WorkerError
from shardkit.runners import ChunkEncoder, Encoded, Job
from shardkit.sources import Chunk

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
        with _without_main_script(), _worker_environment():
            for number in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs,), name=f"shardkit-{number}", daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours, []))

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

    def run(self, job: Job, chunks: Iterator[Chunk]) -> Iterator[Encoded]:
        """Encode `chunks`; yields their results in the same order. At most four chunks a worker are in flight.

        Raises `WorkerError` naming the chunk of a worker that died.
        """
        for worker in self._workers:
            self._send(worker, job)
        ready: dict[int, Encoded] = {}
        issued, taken, more = 0, 0, True
        limit = (_AHEAD + _BUFFERED) * len(self._workers)
        while True:
            while more and issued - taken < limit and (idle := self._idle()) is not None:
                chunk = next(chunks, None)
                if chunk is None:
                    more = False
                else:
                    idle.tasks.append((issued, chunk))
                    self._send(idle, chunk)
                    issued += 1
            while taken in ready:
                yield ready.pop(taken)
                taken += 1
            if taken == issued and not more:
                return
            if not any(w.tasks for w in self._workers):
                continue
            self._collect(ready)

    def _idle(self) -> _Worker | None:
        worker = min(self._workers, key=lambda w: len(w.tasks))
        return worker if len(worker.tasks) < _AHEAD else None

    def _collect(self, ready: dict[int, Encoded]) -> None:
        """Wait for at least one result and put it under its chunk's number."""
        from multiprocess.connection import wait

        for pipe in wait([worker.pipe for worker in self._workers]):
            worker = next(w for w in self._workers if w.pipe is pipe)
            try:
                result, dtype, count = pipe.recv()
                result.tokens = np.empty(count, dtype)
                _receive_bytes(pipe, result.tokens.view(np.uint8).data)
            except (EOFError, OSError):
                raise self._death(worker) from None
            if isinstance(result.error, WorkerError):
                raise result.error
            number, _ = worker.tasks.pop(0)
            ready[number] = result

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
        where = worker.tasks[0][1].where if worker.tasks else "before its first chunk"
        return WorkerError(
            f"worker {worker.process.name} (pid {worker.process.pid}) died by {reason} at {where}{hint}; run the same "
            "command again, it goes on from the last finished shard"
        )


def _work(pipe: Any) -> None:
    """A worker's life: the job, then chunks until the pipe closes. A thread receives, so that the next task is here
    while the present one is encoded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox: queue.Queue[Any] = queue.Queue()

    def receive() -> None:
        try:
            while True:
                inbox.put(pipe.recv())
        except (EOFError, OSError):
            inbox.put(None)

    threading.Thread(target=receive, daemon=True).start()
    for module in ("pyarrow.parquet", "tiktoken", "fastokens"):  # while the main process still loads the vocabulary
        importlib.import_module(module)
    encoder: ChunkEncoder | None = None
    try:
        while (message := inbox.get()) is not None:
            if isinstance(message, Job):
                encoder = ChunkEncoder(message)
                continue
            if encoder is None:
                raise RuntimeError("a chunk came before the job")
            result = encoder.encode(message)
            tokens, result.tokens = result.tokens, np.empty(0, np.uint16)
            pipe.send((result, tokens.dtype.str, len(tokens)))
            _send_bytes(pipe, tokens.view(np.uint8).data)
    except (BrokenPipeError, ConnectionError):
        pass  # the main process is gone
    os._exit(0)


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


@contextmanager
def _without_main_script() -> Iterator[None]:
    """Keep spawn from running the caller's script again in each worker: our workers need nothing of it, and a script
    without an `if __name__ == "__main__"` guard would start itself for ever. Its functions travel by value."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    try:
        for name in saved:
            if hasattr(main, name):
                setattr(main, name, None)
        if saved["__file__"] is not None:
            del main.__file__
        yield
    finally:
        for name, value in saved.items():
            if value is not None:
                setattr(main, name, value)


# Workers are the parallelism: inside one, the engine's and Arrow's own thread pools stay at one thread (with its helper
# thread fastokens takes 40 % more processor time). One allocator, glibc's, serves Arrow too; it keeps the memory of one
# chunk for the next instead of returning it to the system, and takes it in huge pages where the system has them: on a
# virtual machine fresh memory is the dearest part of reading (benchmarks/RESULTS.md).
WORKER_ENVIRONMENT = {
    "FASTOKENS_BPE_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}  # fmt: skip


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Set the environment that spawned workers inherit, and put this process's own back."""
    saved = {name: os.environ.get(name) for name in WORKER_ENVIRONMENT}
    os.environ.update(WORKER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
