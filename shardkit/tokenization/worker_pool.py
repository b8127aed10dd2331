"""The worker processes of this machine that run now: what is said to them and by them, and which has least to do.

What it costs the main process to hear from one of them does not grow with their number.
"""

from __future__ import annotations

import signal
import subprocess
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from shardkit.errors import WorkerError
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk
from shardkit.tokenization.pipes import ReadyPipes
from shardkit.tokenization.spawning import Task, Worker, start_workers
from shardkit.tokenization.worker_messages import Answer, receive_answers

if TYPE_CHECKING:
    from multiprocess.connection import Connection


class WorkerPool:
    """The `workers`, who have the `shared` memory, and at most `most_tasks` chunks each. `answers` came from them, in
    order (None: the worker is gone). `is_cut_off`: by a Ctrl-C, while messages were sent or received."""

    def __init__(self, shared: SharedMemory | None, most_tasks: int) -> None:
        self.workers: list[Worker] = []
        self.answers: deque[tuple[Worker, Answer | None]] = deque()
        self.is_cut_off = False
        self._shared = shared
        self._by_tasks = tuple(dict[Worker, None]() for _ in range(most_tasks + 1))  # those that have so many
        self._unsent = dict[Worker, None]()  # those for whom messages wait
        self._pipes = ReadyPipes()
        self.process_ids: tuple[int, ...] = ()

    def start(self, count: int) -> list[Worker]:
        """Start more workers."""
        started = start_workers(count, self._shared, number=len(self.workers))
        self.workers += started
        for worker in started:
            self._by_tasks[0][worker] = None
            self._pipes.add(worker.pipe, worker)
        self._note_process_ids()
        return started

    def remove(self, worker: Worker) -> None:
        """Forget a worker that is gone."""
        self.workers.remove(worker)
        del self._by_tasks[len(worker.tasks)][worker]
        self._unsent.pop(worker, None)
        self._pipes.remove(worker.pipe)
        self._note_process_ids()
        worker.end()

    def end(self) -> None:
        """End all."""
        self._pipes.close()
        for worker in self.workers:
            worker.end()

    def send(self, worker: Worker, message: object) -> None:
        """Send a message at the next exchange, with the others for that worker."""
        worker.outbox.messages.append(message)
        self._unsent[worker] = None

    def send_chunk(self, worker: Worker, chunk: Chunk) -> None:
        """Send a chunk, and what was fetched for it, by then."""
        worker.chunks.send(chunk)
        self._unsent[worker] = None

    def set_tasks(self, worker: Worker, tasks: list[Task]) -> None:
        """Note what a worker has to do."""
        del self._by_tasks[len(worker.tasks)][worker]
        worker.tasks = tasks
        self._by_tasks[len(tasks)][worker] = None

    @property
    def least_busy(self) -> Worker | None:
        """The worker with the fewest tasks, for the longest time; None if all have as many as may be."""
        return next((next(iter(workers)) for workers in self._by_tasks[:-1] if workers), None)

    @property
    def is_idle(self) -> bool:
        """Whether no worker has a task."""
        return len(self._by_tasks[0]) == len(self.workers)

    def exchange(self, wakeup: Connection | None) -> None:
        """Send what waits to be sent, and wait for `answers`, or until `wakeup` can be read."""
        self.is_cut_off = True
        while self._unsent:
            self._unsent.popitem()[0].outbox.flush()
        self.is_cut_off = False
        if wakeup is not None:
            self._pipes.add(wakeup, None)
        try:
            ready = [worker for worker in self._pipes.wait() if worker is not None]
        finally:
            if wakeup is not None:
                self._pipes.remove(wakeup)
        for worker in ready:
            said: list[Answer | None] = [None]
            self.is_cut_off = True
            with suppress(EOFError, OSError):
                said = [*receive_answers(worker.pipe)]
            self.answers += [(worker, one) for one in said]
            self.is_cut_off = False

    def _note_process_ids(self) -> None:
        self.process_ids = tuple(worker.process.pid for worker in self.workers)


def death_of(worker: Worker) -> WorkerError:
    """How a worker died, and where."""
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(timeout=2)
    code = worker.process.returncode
    reason = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    hint = "; the system kills processes when memory runs out: try fewer --workers" if code == -9 else ""
    # It may have begun the second chunk while the tokens of the first were on their way.
    where = " or ".join(f"at {chunk.where}" for _, chunk, _ in worker.tasks) or (
        "while it wrote tokens" if worker.has_answered else "before its first chunk"
    )
    return WorkerError(
        f"worker {worker.name} (pid {worker.process.pid}) died by {reason} {where}{hint}; run the same command "
        "again, it goes on from the last finished shard"
    )
