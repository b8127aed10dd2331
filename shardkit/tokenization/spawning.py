"""How worker processes are started: a fresh Python each, given one end of a pipe; the process that starts them stays as
it is: its environment, `__main__`, signal handlers, and the signal masks of its threads.

The start methods of `multiprocessing` would run the caller's script again in each worker, which a script without an
`if __name__ == "__main__"` guard does not survive, and have no way to give a worker an environment of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from multiprocess.connection import Connection, Pipe

from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk, Fetched
from shardkit.tokenization.pipes import Outbox
from shardkit.tokenization.worker_messages import ChunkSender
from shardkit.waits import join

# Workers are the parallelism: inside one, the engine's and Arrow's own thread pools stay at one thread (with its helper
# thread fastokens takes 40 % more processor time). One allocator, glibc's, serves Arrow too; it keeps the memory of one
# chunk for the next instead of returning it to the system, and takes it in huge pages where the system has them: on a
# virtual machine fresh memory is the dearest part of reading (benchmarks/RESULTS.md).
WORKER_ENVIRONMENT = {
    "FASTOKENS_BPE_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# The caller's `sys.path` before any import: modules that `transform` names must be found, and none in its folder of
# which the caller does not know.
_COMMAND = (
    "import sys; sys.path[:] = {path!r}; from shardkit.tokenization.worker_process import work; "
    "from shardkit.errors import ShardkitError; ShardkitError.naming_flags()(work)({pipe}, {shared})"
)


class Task(NamedTuple):
    """A chunk that a worker was given, its number, and what was fetched for it: that must stay as long as the worker
    may read it."""

    number: int
    chunk: Chunk
    fetched: Fetched | None


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process, our end of its pipe, what is to go down it, the chunks that it was given and has not answered,
    whether it has answered one, and the files that it writes to, and completes, in the order in which it was told."""

    name: str
    process: subprocess.Popen[bytes]
    pipe: Connection
    outbox: Outbox
    chunks: ChunkSender
    tasks: list[Task] = field(default_factory=list)
    has_answered: bool = False
    writing: deque[str] = field(default_factory=deque)
    finishing: deque[str] = field(default_factory=deque)

    def end(self) -> None:
        """Kill it. Its end of the pipe closes with it."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        self.outbox.close()
        self.pipe.close()


def bytes_in_hands(workers: Iterable[Worker]) -> int:
    """Bytes that were fetched for chunks which the workers have."""
    return sum(task.fetched.size for worker in workers for task in worker.tasks if task.fetched is not None)


def start_workers(count: int, shared: SharedMemory | None = None, *, number: int = 0) -> list[Worker]:
    """Start `count` workers, named from `number` on, who have the `shared` memory. They never see a Ctrl-C at the
    terminal, from their first instruction on: it is for the main process, which ends them. If it comes in here, all
    that were started are ended."""
    workers: list[Worker] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def start() -> None:
        # Workers inherit the signal mask of the thread that starts them. This one is ours; no KeyboardInterrupt is
        # raised in it, so none can come between the start of a worker and the note of it.
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            while len(workers) < count and not stop.is_set():
                workers.append(_start_worker(f"shardkit-{number + len(workers)}", shared))
        except BaseException as error:  # noqa: BLE001 (raised below)
            failures.append(error)

    thread = threading.Thread(target=start, name="shardkit-start")
    try:
        thread.start()
        join(thread)
        if failures:
            raise failures[0]
    except BaseException:  # Ctrl-C too
        stop.set()
        join(thread)  # if it came before the thread began, that starts nothing
        for worker in workers:
            worker.end()
        raise
    return workers


def _that_inherits(handles: list[int]) -> dict[str, Any]:
    """What tells `Popen` that its process has these files, or handles, by the same numbers. On Windows it is of a group
    of its own too, which no Ctrl-C reaches."""
    if sys.platform == "win32":
        for handle in handles:
            os.set_handle_inheritable(handle, True)
        startup = subprocess.STARTUPINFO(lpAttributeList={"handle_list": handles})
        return {"startupinfo": startup, "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"pass_fds": handles}


def _start_worker(name: str, shared: SharedMemory | None) -> Worker:
    ours, theirs = Pipe()
    with theirs:
        handles = [theirs.fileno(), *([] if shared is None else [shared.descriptor])]
        command = _COMMAND.format(
            path=[str(folder) for folder in sys.path],
            pipe=theirs.fileno(),
            shared=None if shared is None else shared.descriptor,
        )
        process = subprocess.Popen(
            [sys.executable, "-c", command],
            env={**os.environ, **WORKER_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            **_that_inherits(handles),
        )
    outbox = Outbox(ours)
    return Worker(name, process, ours, outbox, ChunkSender(outbox, shared))
