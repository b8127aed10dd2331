"""Workers on a Ray cluster: tasks of some chunks each, results in order; a task whose worker or node dies is repeated.

Chunks name their files by path or URL, so local sources must be on a disk that every node sees; Hub datasets and URLs
need nothing. Tokens stay in Ray's object store until a writer has gathered those of a shard and written it: on any node
where the folder is on a network mount, which all nodes then must see, else on this one; or on any node, which sends it
(`sent_shards.py`).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shards import WrittenShard
from shardkit.errors import ShardkitError, ShardkitWarning, WorkerError, missing_package
from shardkit.files import is_on_local_disk
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk
from shardkit.tokenization.chunk_feed import until_error
from shardkit.tokenization.ray_cluster import ClusterSize, connect, hub_environment
from shardkit.tokenization.ray_tasks import (
    EncodedTask,
    PackedJob,
    encode,
    part_of_ranges,
    with_positions,
    write_shard,
)
from shardkit.tokenization.ray_writers import RETRIES, RayWriters
from shardkit.tokenization.runner import Destination, OpenShard
from shardkit.tokenization.sent_shards import write_and_send
from shardkit.tokenization.spawning import WORKER_ENVIRONMENT
from shardkit.tokenization.task_sizes import TaskSizes
from shardkit.tokenization.worker import EncodedChunk, Job

_IN_FLIGHT = 4  # tasks a worker: those it encodes, those that wait for a CPU, and those that wait for their turn
_WORKERS_A_SHARD = 8  # so many make a shard in about the time in which another is gathered and written
_TOKEN_BYTES_A_FILE_BYTE = 2  # of a packed file, about
_LOOK_SECONDS = 1.0  # after which a cluster is looked at that says nothing
_SILENT_SECONDS = 30.0  # without anything from the cluster, after which people are told


class _Task(NamedTuple):
    """The `chunks` of a task of which not all pieces have come, and `made`, Ray's references to what it makes of them.
    Only the last one may be a whole file, of `whole_bytes`: its pieces have all come when the task has ended."""

    chunks: deque[Chunk]
    made: Any
    whole_bytes: int


class RayRunner:
    """At most `workers` tasks at a time (default: one for each CPU that there is) on the cluster at `address` (`auto`:
    which there is); without one on that which `RAY_ADDRESS` names, that the process is connected to, or that `ray
    start` began on this machine; else on a cluster of this machine's own. A context manager: leaving it ends what is
    under way, and that cluster."""

    process_ids: tuple[int, ...] = ()
    reads_ahead = False  # each task fetches its chunks' bytes itself: they need not pass through this process
    shared: SharedMemory | None = None
    whole_files_from = 1

    def __init__(self, workers: int | None, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_package(error) or error from None
        self._ray = ray
        self._is_own = False  # the cluster is this machine's, and of this run
        self._connected = not ray.is_initialized()
        if self._connected:
            self._is_own = connect(ray, workers, address)
        self._cluster = ClusterSize(ray)
        self._wanted = workers
        self._follow_cluster()
        self._sizes = TaskSizes()
        self._whole_bytes = 0  # of whole files in tasks
        self._waiting: deque[_Task] = deque()  # at most so many for a worker as `_IN_FLIGHT` says, in their order
        self._silence, self._ended = 0.0, 0  # seconds without the next result, and the tasks that had ended then
        self._told = False  # of that
        self._writers = RayWriters(ray)
        self._destination: Destination | None = None
        self._writes_here: bool | None = None
        # all are held: without an owner Ray forgets a job, and no lost chunk can be made again
        self._jobs: list[Any] = []

    def _follow_cluster(self) -> None:
        """Have as many workers as the cluster has CPUs now, unless it was said how many."""
        self._cluster.look()
        processors = max(1, self._cluster.cpus)
        self.workers = self._wanted or processors
        self.most_finishing = max(2, self.workers // _WORKERS_A_SHARD)  # in the object store until they are written

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(self._ray.exceptions.RayError):  # a cluster that is no more
            for one in self._waiting:
                self._ray.cancel(one.made)
        if self._connected:
            self._ray.shutdown()

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:  # noqa: ARG002
        """Encode `chunks`; yields the pieces of their results in the same order. What waits for its turn lies in Ray's
        object store, which goes to disk when it is full. Raises `WorkerError` naming the chunks of the task whose
        worker died each time."""
        task: Any = self._ray.remote(
            num_cpus=1,
            max_retries=RETRIES,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {**WORKER_ENVIRONMENT, **hub_environment()}},
        )(encode)
        self.change_job(job)
        failed: list[Exception] = []
        chunks = until_error(chunks, failed)
        waiting = self._waiting
        while True:
            self._follow_cluster()
            while len(waiting) < _IN_FLIGHT * self.workers and self._has_room() and (some := self._some(chunks)):
                made = task.remote(self._jobs[-1], some, *self._ends_to_wait_for())
                whole_bytes = some[-1].weight if some[-1].is_whole_file else 0
                self._whole_bytes += whole_bytes
                light = deque(replace(one, payload=None) if one.payload else one for one in some)
                waiting.append(_Task(light, made, whole_bytes))
            if not waiting:
                if failed:
                    raise failed[0]
                return
            if self._has_come(waiting[0].made):
                yield from self._pieces(waiting[0])
            if not waiting[0].chunks:
                self._whole_bytes -= waiting.popleft().whole_bytes

    def _ends_to_wait_for(self) -> list[Any]:
        """The end of the task after which the next one may begin; none where CPUs alone bound what is done at a
        time."""
        is_full = self.workers < self._cluster.cpus and len(self._waiting) >= self.workers
        return [self._waiting[-self.workers].made.completed()] if is_full else []

    def _has_room(self) -> bool:
        """Whether the object store has room for more tokens that wait for their turn: those of whole files are many."""
        return not self._whole_bytes or _TOKEN_BYTES_A_FILE_BYTE * self._whole_bytes <= self._cluster.store_bytes // 2

    def _some(self, chunks: Iterator[Chunk]) -> list[Chunk]:
        """The chunks of the next task; one that brings its data along, or is a whole file, is the last of them."""
        most_bytes = self._cluster.store_bytes // (2 * _IN_FLIGHT * self.workers)  # half of it is for finished shards
        some: list[Chunk] = []
        for chunk in islice(chunks, self._sizes.chunks_a_task(self.workers, most_bytes)):
            some.append(chunk)
            if chunk.payload is not None or chunk.is_whole_file:
                break
        return some

    def _pieces(self, task: _Task) -> Iterator[EncodedChunk]:
        """The pieces that a task hands over next. Chunks that end among them are taken from `task.chunks`."""
        chunks = task.chunks
        where = f"at {chunks[0].where}" if len(chunks) == 1 else f"between {chunks[0].where}, and {chunks[-1].where}"
        if (tokens := next(task.made, None)) is None:
            chunks.clear()  # the end of a whole file
            return
        encoded: EncodedTask = self._get(next(task.made, tokens), where)  # what failed gives its error alone
        begin, count = 0, len(chunks)
        for piece in encoded.pieces:
            ends = piece.stated["last"] and piece.within is None
            result = with_positions(piece).piece(chunks.popleft() if ends else chunks[0])
            result.holder = tokens, np.array([[begin, begin + result.count]])
            begin += result.count
            yield result
        if not task.whole_bytes:
            self._sizes.note(count - len(chunks), encoded.token_bytes, encoded.seconds)

    def change_job(self, job: Job) -> None:
        """Put it where the tasks to come find it."""
        self._jobs.append(self._ray.put(PackedJob.of(job)))

    def keep(self, piece: EncodedChunk, ranges: NDArray[np.int64]) -> None:
        """Note that of the piece's tokens those in `ranges` stay."""
        tokens, of_piece = piece.holder
        piece.holder = tokens, of_piece[0, 0] + ranges

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        """Note that tokens `begin` to `end` of the piece are the next ones of the shard."""
        shard.append(end - begin)
        tokens, ranges = piece.holder
        part = part_of_ranges(ranges, begin, end)
        if shard.parts and shard.parts[-1][0] is tokens:
            part = np.concatenate([shard.parts.pop()[1], part])
        shard.parts.append((tokens, part))

    def send_to(self, destination: Destination) -> bool:
        """Have the nodes of a cluster that is not this machine's own send what they write."""
        if not self._is_own:
            self._destination = destination
        return not self._is_own

    def finish(self, shard: OpenShard) -> None:
        """Have the shard written, and sent where that is asked for."""
        pieces, ranges = [tokens for tokens, _ in shard.parts], [ranges for _, ranges in shard.parts]
        given = shard.dtype.str, shard.tokens, ranges, *pieces
        if self._destination is not None and shard.info is not None:
            shard.parts = [self._writers.begin(write_and_send, self._destination, shard.info, *given, here=False)]
        else:
            if self._writes_here is None:  # which takes a while to find out
                self._writes_here = is_on_local_disk(shard.temp.parent)
            shard.parts = [self._writers.begin(write_shard, shard.path, *given, here=self._writes_here)]

    def is_completed(self, shard: OpenShard) -> bool:
        """Whether a shard is written, or will not be."""
        return self._writers.has_ended(shard.parts[0])

    def wait(self, shard: OpenShard) -> WrittenShard:
        """Wait until a shard is written."""
        (writing,) = shard.parts
        what = shard.info.file if shard.info else shard.temp
        made: WrittenShard = self._get(self._writers.end_of(writing), f"while {what} was written")
        self._writers.release(writing)
        return made

    def _has_come(self, made: Any) -> bool:
        """Wait, a second at most, for what the first task makes next; returns whether it came."""
        seconds = min(_LOOK_SECONDS, _SILENT_SECONDS)
        ready = bool(self._ray.wait([made], timeout=seconds, fetch_local=False)[0])
        self._silence = 0.0 if ready else self._silence + seconds
        if self._silence >= _SILENT_SECONDS:
            ends = [one.made.completed() for one in self._waiting]
            ended = len(self._ray.wait(ends, num_returns=len(ends), timeout=0)[0])
            if ended == self._ended:  # else others go on
                self._say_that_nothing_comes()
            self._silence, self._ended = 0.0, ended
        elif ready:
            self._ended = 0
        return ready

    def _say_that_nothing_comes(self) -> None:
        if self._told:
            return
        self._told = True
        warnings.warn(
            f"nothing has come from the Ray cluster for {_SILENT_SECONDS:g} s; {self._cluster.free_cpus:g} of its "
            f"{self._cluster.cpus} CPUs are free (`ray status` says what has the others): still waiting",
            ShardkitWarning,
            stacklevel=2,
        )

    def _get(self, made: Any, where: str) -> Any:
        """What a task made. Raises its errors as they were raised there."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(made)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ShardkitError):
                raise error.cause from None
            raise
        except (errors.WorkerCrashedError, errors.RayActorError, errors.ObjectLostError):
            raise WorkerError(
                f"a Ray worker died {where} and again on {RETRIES} retries: run the same command again, it goes on "
                "from the last finished shard"
            ) from None
