"""Workers on a Ray cluster: one actor a worker, results in order, a chunk whose node dies is encoded again elsewhere.

Chunks name their files by path or URL, so local sources must be on a disk that every node sees; Hub datasets and URLs
need nothing. The main process still writes the shards.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from shardkit.errors import ShardkitError, WorkerError, missing_package
from shardkit.sources.source import Chunk
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk, Job, until_error

_IN_FLIGHT = 4  # chunks an actor: those it encodes or has queued, and those that wait for their turn
_RETRIES = 3


class _Actor(ChunkEncoder):
    """A worker. Its errors are put into words by the process that asked for the run."""

    def encode(self, chunk: Chunk) -> Iterator[EncodedChunk]:
        with ShardkitError.naming_flags():
            yield from super().encode(chunk)


class RayRunner:
    """At most `workers` actors (default: a CPU each), each started when there is a chunk for it, on the cluster that
    `RAY_ADDRESS` names or the process is connected to, else on this machine. A context manager: leaving it ends the
    actors, and the cluster if it was started here."""

    process_ids: tuple[int, ...] = ()
    reads_ahead = False  # each actor fetches its chunk's bytes itself: they need not pass through this process
    shared = None

    def __init__(self, workers: int | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise missing_package(error) or error from None
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            if "RAY_ADDRESS" in os.environ:
                ray.init(log_to_driver=False)
            else:
                ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        resources: Callable[[], dict[str, float]] = ray.cluster_resources
        self._count = workers or max(1, int(resources().get("CPU", 1)))
        self._actors: list[Any] = []

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:  # noqa: ARG002
        """Encode `chunks`; yields the pieces of their results in the same order. What waits for its turn lies in Ray's
        object store, which goes to disk when it is full. Raises `WorkerError` naming the chunk whose actor died three
        times."""
        actor = self._ray.remote(num_cpus=1, max_restarts=_RETRIES, max_task_retries=_RETRIES)(_Actor)
        failed: list[Exception] = []
        chunks = until_error(chunks, failed)
        waiting: deque[tuple[Chunk, Any]] = deque()
        load: dict[int, int] = {}
        owner: dict[Any, int] = {}
        while True:
            while len(waiting) < _IN_FLIGHT * self._count and (chunk := next(chunks, None)) is not None:
                if len(load) < self._count and all(load.values()):
                    load[len(load)] = 0
                    self._actors.append(actor.remote(job))
                number = min(load, key=lambda n: load[n])
                pieces = self._actors[number].encode.remote(chunk)
                load[number] += 1
                owner[pieces.completed()] = number
                waiting.append((chunk, pieces))
            if not waiting:
                if failed:
                    raise failed[0]
                return
            chunk, pieces = waiting.popleft()
            for piece in pieces:
                yield self._get(chunk, piece)
            ended, _ = self._ray.wait(list(owner), num_returns=len(owner), timeout=0)
            for end in ended:
                load[owner.pop(end)] -= 1

    def _get(self, chunk: Chunk, piece: Any) -> EncodedChunk:
        try:
            encoded: EncodedChunk = self._ray.get(piece)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerError(
                f"a Ray worker died at {chunk.where} and again on {_RETRIES} retries: {error}; run the same command "
                "again, it goes on from the last finished shard"
            ) from None
        return encoded
