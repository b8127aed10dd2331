"""Workers on a Ray cluster: each chunk is a task, results in order; a chunk whose worker or node dies is encoded again.

Chunks name their files by path or URL, so local sources must be on a disk that every node sees; Hub datasets and URLs
need nothing. Tokens stay in Ray's object store until a process has gathered those of a shard and written it: on any
node where the folder is on a network mount, which all nodes then must see, else on this one.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from shardkit.dataset.shards import WrittenShard
from shardkit.errors import ShardkitError, ShardkitWarning, WorkerError, missing_package
from shardkit.files import is_on_local_disk
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk
from shardkit.tokenization.chunk_feed import until_error
from shardkit.tokenization.pipes import as_bytes
from shardkit.tokenization.ray_tasks import Writer, encode, installed_versions, part_of_ranges, write_shard
from shardkit.tokenization.runner import Destination, OpenShard
from shardkit.tokenization.sent_shards import write_and_send
from shardkit.tokenization.spawning import WORKER_ENVIRONMENT
from shardkit.tokenization.worker import EncodedChunk, Job

_IN_FLIGHT = 4  # chunks a worker: those it encodes, those that wait for a CPU, and those that wait for their turn
_WORKERS_A_SHARD = 8  # so many make a shard in about the time in which another is gathered and written
_RETRIES = 3
_SILENT_SECONDS = 30.0  # without anything from the cluster, after which people are told


def _started_here() -> str | None:
    """The address of the cluster that `ray start` began on this machine; None for none. Ray's own search also finds the
    clusters of other programs, which end with them, and believes its file when the cluster is no more."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        address = note.read_text().strip()
    except OSError:
        return None
    words = [word for one in psutil.process_iter(["name", "cmdline"]) for word in _words_of_a_raylet(one.info)]
    return address if any(address in word for word in words) else None


def _words_of_a_raylet(process: dict[str, Any]) -> list[str]:
    return process["cmdline"] or [] if process["name"] == "raylet" else []


@dataclass(slots=True)
class _Writing:
    """A shard that is written, `here` or on any node: what the `writer`, an actor, is `given` to do, and its `end`."""

    here: bool
    given: tuple[Any, ...]
    writer: Any = None
    end: Any = None


class RayRunner:
    """At most `workers` chunks at a time (default: one for each CPU) on the cluster at `address` (`auto`: which there
    is); without one on that which `RAY_ADDRESS` names, that the process is connected to, or that `ray start` began on
    this machine; else on a cluster of this machine's own. A context manager: leaving it ends what is under way, and
    that cluster."""

    process_ids: tuple[int, ...] = ()
    reads_ahead = False  # each task fetches its chunk's bytes itself: they need not pass through this process
    shared: SharedMemory | None = None

    def __init__(self, workers: int | None, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_package(error) or error from None
        self._ray = ray
        self._is_own = False  # the cluster is this machine's, and of this run
        self._connected = not ray.is_initialized()
        if self._connected:
            self._connect(workers, address)
        processors = max(1, int(self._resources()[1].get("CPU", 1)))
        self.workers = workers or processors
        self.most_finishing = max(2, self.workers // _WORKERS_A_SHARD)  # in the object store until they are written
        # a chunk that waits for a CPU begins without a word from here; where there are CPUs for more, it would not wait
        self._most_under_way = 2 * self.workers if self.workers >= processors else self.workers
        self._under_way: list[Any] = []  # the ends of chunks that are encoded, or wait for a CPU
        self._told = False  # that nothing comes
        self._idle_writers: dict[bool, list[Any]] = {True: [], False: []}  # on this machine, and on any
        self._destination: Destination | None = None
        # all are held: without an owner Ray forgets a job, and no lost chunk can be made again
        self._jobs: list[Any] = []

    def _connect(self, workers: int | None, address: str | None) -> None:
        named = address
        address = (None if named == "auto" else named) or os.environ.get("RAY_ADDRESS") or _started_here()
        if address is None and named is not None:
            raise WorkerError(
                "no Ray cluster was found on this machine: give --address HOST:PORT, or `ray start --head`"
            )
        if address is None:
            self._is_own = True
            self._ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
            return
        try:
            self._ray.init(address, log_to_driver=False)
        except ConnectionError:
            raise WorkerError(
                f"no Ray cluster answers at {address}: check `ray status`, or leave out --address and RAY_ADDRESS (or "
                "`ray stop`) for a cluster of this machine's own"
            ) from None

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(self._ray.exceptions.RayError):  # a cluster that is no more
            for end in self._under_way:
                self._ray.cancel(end)
        if self._connected:
            self._ray.shutdown()

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:  # noqa: ARG002
        """Encode `chunks`; yields the pieces of their results in the same order. What waits for its turn lies in Ray's
        object store, which goes to disk when it is full. Raises `WorkerError` naming the chunk whose worker died each
        time."""
        task: Any = self._ray.remote(
            num_cpus=1,
            max_retries=_RETRIES,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )(encode)
        self.change_job(job)
        versions = installed_versions()
        failed: list[Exception] = []
        chunks = until_error(chunks, failed)
        waiting: deque[tuple[Chunk, Any]] = deque()
        while True:
            while len(waiting) < _IN_FLIGHT * self.workers and len(self._under_way) < self._most_under_way:
                if (chunk := next(chunks, None)) is None:
                    break
                pieces = task.remote(self._jobs[-1].hex(), self._jobs[-1], versions, chunk)
                self._under_way.append(pieces.completed())
                waiting.append((chunk, pieces))
            if not waiting:
                if failed:
                    raise failed[0]
                return
            if not self._wait(waiting[0][1]):
                continue
            chunk, pieces = waiting[0]
            if (piece := next(pieces, None)) is None:
                waiting.popleft()
                continue
            result: EncodedChunk = self._get(piece, f"at {chunk.where}")
            result.holder = next(pieces), np.array([[0, result.count]])
            yield result

    def change_job(self, job: Job) -> None:
        """Put it where the tasks to come find it."""
        self._jobs.append(self._ray.put(as_bytes(job)))

    def keep(self, piece: EncodedChunk, ranges: NDArray[np.int64]) -> None:
        """Note that of the piece's tokens those in `ranges` stay."""
        piece.holder = piece.holder[0], ranges

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        """Note that tokens `begin` to `end` of the piece are the next ones of the shard."""
        shard.append(end - begin)
        tokens, ranges = piece.holder
        shard.parts.append((tokens, part_of_ranges(ranges, begin, end)))

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
            writing = _Writing(False, (write_and_send, self._destination, shard.info, *given))
        else:
            writing = _Writing(is_on_local_disk(shard.temp.parent), (write_shard, shard.path, *given))
        shard.parts = [writing]
        self._begin(writing)

    def _begin(self, writing: _Writing) -> None:
        idle = self._idle_writers[writing.here]
        writing.writer = idle.pop() if idle else self._start_writer(here=writing.here)
        writing.end = writing.writer.do.remote(*writing.given)

    def _start_writer(self, *, here: bool) -> Any:
        named = {"HF_ENDPOINT": os.environ["HF_ENDPOINT"]} if "HF_ENDPOINT" in os.environ else {}
        actor: Any = self._ray.remote(
            num_cpus=0, scheduling_strategy=self._here if here else "SPREAD", runtime_env={"env_vars": named}
        )(Writer)
        return actor.remote()

    def is_completed(self, shard: OpenShard) -> bool:
        """Whether a shard is written, or will not be."""
        return bool(self._ray.wait([shard.parts[0].end], timeout=0, fetch_local=False)[0])

    def wait(self, shard: OpenShard) -> WrittenShard:
        """Wait until a shard is written. Where its writer died, perhaps with its node, another one writes it."""
        writing: _Writing = shard.parts[0]
        for _ in range(_RETRIES):
            if not self._has_died(writing):
                break
            self._begin(writing)
        what = shard.info.file if shard.info else shard.temp
        made: WrittenShard = self._get(writing.end, f"while {what} was written")
        self._idle_writers[writing.here].append(writing.writer)
        return made

    def _has_died(self, writing: _Writing) -> bool:
        try:
            self._ray.get(writing.end)
        except self._ray.exceptions.RayActorError:
            return True
        except self._ray.exceptions.RayError:  # of which `_get` says what it is
            return False
        return False

    def _wait(self, pieces: Any) -> bool:
        """Wait for the next of `pieces`, or for the end of a chunk, in whose place another can be begun; whether the
        former came."""
        while True:
            ready, _ = self._ray.wait([pieces, *self._under_way], timeout=_SILENT_SECONDS, fetch_local=False)
            if ready:
                break
            self._say_that_nothing_comes()
        if self._under_way:
            _, self._under_way = self._ray.wait(self._under_way, num_returns=len(self._under_way), timeout=0)
        return pieces in ready

    def _say_that_nothing_comes(self) -> None:
        if self._told:
            return
        self._told = True
        free, count = (resources.get("CPU", 0.0) for resources in self._resources())
        warnings.warn(
            f"nothing has come from the Ray cluster for {_SILENT_SECONDS:g} s; {free:g} of its {count:g} CPUs are free "
            "(`ray status` says what has the others): still waiting",
            ShardkitWarning,
            stacklevel=2,
        )

    def _resources(self) -> tuple[dict[str, float], dict[str, float]]:
        """What is free on the cluster, and all that it has."""
        free: Any = self._ray.available_resources
        there: Any = self._ray.cluster_resources
        return free(), there()

    @property
    def _here(self) -> Any:
        """That a task runs on this machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)

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
                f"a Ray worker died {where} and again on {_RETRIES} retries: run the same command again, it goes on "
                "from the last finished shard"
            ) from None
