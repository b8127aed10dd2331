"""Worker processes on this machine: spawned, never forked, one chunk read ahead each, results in order.

Each worker has one pipe. A chunk goes down it, what its pieces hold comes back, and where their tokens belong goes down
again: the worker writes them to the shards. A thread in the worker always drains the pipe, so that the two sides cannot
block each other. When the main process dies, even by SIGKILL, its end of the pipe closes and the workers leave.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing
from copy import copy
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shard_parts import FileParts, PartWriter, part_of_bytes
from shardkit.dataset.shards import WrittenShard
from shardkit.errors import ShardkitError, WorkerError
from shardkit.files import write_error
from shardkit.sources.read_ahead import AHEAD_BYTES, SHARED_BYTES
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk
from shardkit.tokenization.chunk_feed import ChunkFeed, WaitingFeed
from shardkit.tokenization.pipes import as_bytes
from shardkit.tokenization.runner import Destination, OpenShard
from shardkit.tokenization.spawning import Task, Worker, bytes_in_hands
from shardkit.tokenization.waiting_pieces import WaitingPiece, WaitingPieces
from shardkit.tokenization.worker import EncodedChunk, Job
from shardkit.tokenization.worker_messages import (
    Drop,
    Encoded,
    Ended,
    Finish,
    Finished,
    Keep,
    Put,
    Written,
)
from shardkit.tokenization.worker_pool import WorkerPool, death_of

if TYPE_CHECKING:
    from multiprocess.connection import Connection

_AHEAD = 2  # chunks given to a worker: one it encodes, one it has read ahead of need
_WHOLE_FILES = 2  # a worker: one it encodes, one that waits for its turn
_BUFFERED = 2  # finished chunks a worker may have waiting for their turn
_WORKERS_A_SHARD = 8  # so many make a shard in about the time in which another is completed


class LocalRunner:
    """At most `workers` processes on this machine. A context manager: leaving it ends them. `at_first` of them (None:
    all) start at once, while the caller is still loading what the job needs, and each other one when there is a chunk
    for it: more than `expected` of them (None: all) when so many chunks were used and there are still more."""

    reads_ahead = True
    whole_files_from = 5  # more than the main process could feed

    def __init__(self, workers: int, *, at_first: int | None = None, expected: int | None = None) -> None:
        self.workers = workers
        self._expected = workers if expected is None else expected
        self._job = b""
        # pieces, by the numbers of what was given out, and None at its end
        self._ready: defaultdict[int, deque[EncodedChunk | WaitingPiece | None]] = defaultdict(deque)
        self._waiting = WaitingPieces("")
        self._shards: dict[str, tuple[OpenShard, FileParts]] = {}  # those that are written, by the file's path
        self._writer = PartWriter()
        self._over = False  # nothing more is asked for, or something went wrong
        self.most_finishing = max(1, workers // _WORKERS_A_SHARD)
        self.shared = SharedMemory.make(SHARED_BYTES)  # for what is fetched for the workers
        self._pool = WorkerPool(self.shared, _AHEAD)
        self._workers = self._pool.workers
        self._pool.start(workers if at_first is None else at_first)

    def __enter__(self) -> LocalRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.end()
        if self.shared is not None:
            self.shared.forget_descriptor()
        self.shared = None  # its file stays open as long as anybody has it

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The workers' process ids."""
        return self._pool.process_ids

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:
        """Encode `chunks`; yields the pieces of their results in the same order, as `Runner` says. At most four chunks
        a worker are in flight, of whose tokens it holds some 32 MB."""
        self.change_job(job)
        self._waiting = WaitingPieces(job.tokens_folder)
        feed = WaitingFeed(chunks, self.workers) if over_network else ChunkFeed(chunks)
        self._over = False
        try:
            with closing(feed):
                yield from self._run(feed)
        finally:
            self._over = True
        if feed.failed:
            raise feed.failed[0]

    def _run(self, feed: ChunkFeed) -> Iterator[EncodedChunk]:
        upcoming: deque[Chunk] = deque()
        ready = self._ready
        issued, yielded = 0, 0
        limit = (_AHEAD + _BUFFERED) * self.workers
        while True:
            while issued - yielded < limit and (idle := self._idle(upcoming, feed, issued, yielded)) is not None:
                chunk = upcoming.popleft()
                task = Task(issued, dataclasses.replace(chunk, payload=None, fetched=None), chunk.fetched)
                self._pool.set_tasks(idle, [*idle.tasks, task])
                self._pool.send_chunk(idle, chunk)
                issued += 1
            while ready[yielded]:
                if (result := ready[yielded].popleft()) is None:
                    del ready[yielded]
                    yielded += 1
                    continue
                if isinstance(result, WaitingPiece):
                    result = self._waiting.take(result)
                yield result
                self._release(result)
            if yielded == issued and not upcoming and feed.over:
                return
            wants = issued - yielded < limit and not upcoming and not feed.over
            wakeup = feed.signal if wants and self._pool.least_busy is not None else None
            if wakeup is not None or not self._pool.is_idle:
                self._collect(wakeup)

    def change_job(self, job: Job) -> None:
        """Give it to the workers, for the chunks to come."""
        self._job = as_bytes([job])
        for worker in self._workers:
            worker.outbox.put(self._job)

    def keep(self, piece: EncodedChunk, ranges: NDArray[np.int64]) -> None:
        """Of the piece's tokens those in `ranges` stay."""
        if piece.holder is not None:
            worker, number = piece.holder
            self._pool.send(worker, Keep(number, ranges))

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        """Have the worker who holds the piece put tokens `begin` to `end` behind those that the shard has."""
        worker, number = piece.holder
        self._shards.setdefault(shard.path, (shard, FileParts(shard.path)))
        shard.waiting += 1
        last, place = end == piece.count, shard.append(end - begin)
        worker.writing.append(shard.path)
        self._pool.send(worker, Put(number, begin, end, shard.path, place, last, not shard.room))
        if last:
            piece.holder = None

    def send_to(self, destination: Destination) -> bool:  # noqa: ARG002
        """All is written on this machine."""
        return False

    def finish(self, shard: OpenShard) -> None:
        """Say that the shard has all its tokens. It is completed once they are all written."""
        shard.is_whole = True
        self._complete(shard)

    def is_completed(self, shard: OpenShard) -> bool:
        """Whether a shard that has all its tokens is on the disk, or will not be."""
        return shard.made is not None or shard.error is not None

    def wait(self, shard: OpenShard) -> WrittenShard:
        """Wait until a shard that has all its tokens is on the disk."""
        while shard.made is None:
            if shard.error is not None:  # nothing more comes
                raise copy(shard.error)
            if self._pool.is_cut_off:  # within a message: what comes after it says nothing
                raise KeyboardInterrupt
            self._collect(None)
        return shard.made

    def _release(self, piece: EncodedChunk) -> None:
        """What was not written of a piece is not wanted."""
        if piece.holder is not None:
            worker, number = piece.holder
            self._pool.send(worker, Drop(number))

    def _complete(self, shard: OpenShard) -> None:
        """Have a shard completed, by the worker who has least to do, if all its tokens are written."""
        if shard.is_whole and not shard.waiting:
            worker = min(self._workers, key=lambda w: (len(w.finishing), len(w.tasks)))
            worker.finishing.append(shard.path)
            parts = [part_of_bytes(0, shard.header), *self._shards[shard.path][1].parts]
            self._pool.send(worker, Finish(shard.path, parts))

    def _idle(self, upcoming: deque[Chunk], feed: ChunkFeed, issued: int, used: int) -> Worker | None:
        """The worker to give the first of `upcoming` to, which is filled from `feed`: a new one if all have something
        to do; of `issued` chunks `used` were yielded. A second chunk is given only while there is one for each worker
        after it: the last ones go to workers that have none, and all end together. No second whole file is: each worker
        has at most two, whose tokens wait.
        """
        worker = self._pool.least_busy
        if worker is None:
            return None
        if not upcoming and (first := feed.next()) is not None:
            upcoming.append(first)
        most = self.workers if used >= self._expected else self._expected
        if upcoming and worker.tasks and len(self._workers) < most:
            (worker,) = self._pool.start(1)
            worker.outbox.put(self._job)
        if upcoming and upcoming[0].is_whole_file:
            return None if worker.tasks or issued - used >= _WHOLE_FILES * self.workers else worker
        carries = bool(upcoming) and not (upcoming[0].payload is None and upcoming[0].fetched is None)
        wanted = 1 if not worker.tasks or carries else len(self._workers) + 1  # what carries bytes is dear to hold
        while upcoming and len(upcoming) < wanted and (chunk := feed.next()) is not None:
            upcoming.append(chunk)
        is_much = carries and bool(worker.tasks) and bytes_in_hands(self._workers) >= AHEAD_BYTES
        return worker if len(upcoming) >= wanted and not is_much else None

    def _collect(self, wakeup: Connection | None) -> None:
        """Wait until a worker says something, or for `wakeup`, and see to it."""
        answers = self._pool.answers
        if not answers:
            self._pool.exchange(wakeup)
        while answers:
            worker, said = answers.popleft()
            if said is None:
                self._bury(worker)
            elif isinstance(said, Encoded):
                self._put_ready(worker, said.piece(worker.tasks[0].chunk))
            elif isinstance(said, Ended):
                self._end_task(worker)
            else:
                self._note_file(worker, said)

    def _put_ready(self, worker: Worker, result: EncodedChunk) -> None:
        result.holder = None if result.holder is None else (worker, result.holder)
        number, chunk, _ = worker.tasks[0]
        if not self._over:
            self._ready[number].append(self._waiting.put(result) if chunk.is_whole_file else result)
        if result.last and not chunk.is_whole_file:
            self._end_task(worker)
        if isinstance(result.error, WorkerError):
            self._fail(result.error)

    def _end_task(self, worker: Worker) -> None:
        if not self._over:
            self._ready[worker.tasks[0].number].append(None)
        self._pool.set_tasks(worker, worker.tasks[1:])
        worker.has_answered = True

    def _note_file(self, worker: Worker, said: Written | Finished) -> None:
        (worker.writing if isinstance(said, Written) else worker.finishing).popleft()
        shard, parts = self._shards[said.path]
        wrong = said.error
        if isinstance(said, Written) and said.part is not None:
            try:
                parts.add(said.part, self._writer)
            except OSError as error:
                wrong = error
        if wrong is not None:
            shard.error = write_error(wrong, shard.temp, shard.bytes_to_come(parts.written))
            self._fail(shard.error)
        elif isinstance(said, Written):
            shard.waiting -= 1
            self._complete(shard)
        else:
            del self._shards[said.path]
            shard.made = WrittenShard(tokens=shard.tokens, bytes=said.bytes, sha256=said.sha256)

    def _fail(self, error: ShardkitError) -> None:
        """Raise an error, unless the stream is at its end: then it ends what waits for the shard, if it is of one."""
        if not self._over:
            self._over = True
            raise copy(error)  # which holds the frames that it goes through: what is kept must not

    def _bury(self, worker: Worker) -> None:
        """A worker has died. The shards whose tokens it had will not be; those that it completed another completes."""
        death = death_of(worker)
        self._pool.remove(worker)
        for path in [*worker.writing, *(() if self._workers else self._shards)]:
            self._shards[path][0].error = death
        for path in worker.finishing:
            if self._shards[path][0].error is None:
                self._complete(self._shards[path][0])
        self._fail(death)
