"""What the processes of a Ray cluster do: they encode chunks, and write shards.

Their errors are put into words by the main process, in `ray_runner.py`, which also says what is done where.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shards import ShardWriter, WrittenShard
from shardkit.errors import ShardkitError, WorkerError
from shardkit.sources.source import Chunk
from shardkit.tokenization.pipes import as_bytes, from_bytes
from shardkit.tokenization.task_sizes import TASK_BYTES
from shardkit.tokenization.worker import ChunkEncoder, Job
from shardkit.tokenization.worker_messages import Encoded

_MOST_BYTES = 3 * TASK_BYTES // 2  # of tokens that are handed over together: most tasks have less, and do it once


class PackedJob(NamedTuple):
    """A `Job` as bytes: Ray would unpickle it for each task, with the vocabulary, which took a tenth of the time. With
    an `id` by which a worker knows whether it has unpacked it, and the `versions` that it must have, by package."""

    id: str
    versions: dict[str, str]
    packed: bytes

    @classmethod
    def of(cls, job: Job) -> PackedJob:
        """Pack a job; also of the same one, the `id` is another each time."""
        return cls(uuid.uuid4().hex, installed_versions(), as_bytes(job))


class _Encoder(NamedTuple):
    job_id: str
    encoder: ChunkEncoder


_encoder: _Encoder | None = None  # of this worker process of Ray, for the chunks to come


class EncodedTask(NamedTuple):
    """What the tokens are that a task has just handed over: the `pieces` that they are of, one after another, each with
    the distances between its EOTs in place of their positions; their bytes, and the seconds that they took. That is a
    few bytes a document: up to 100 kB go straight to the main process, more would lie in the object store."""

    pieces: list[Encoded]
    token_bytes: int
    seconds: float


def encode(
    job: PackedJob,
    chunks: list[Chunk],
    *after: object,  # noqa: ARG001 (Ray waits for it)
) -> Iterator[NDArray[np.unsignedinteger] | EncodedTask]:
    """A task, which begins when what it comes `after` is there. It gives the tokens of all its chunks, joined, and then
    an `EncodedTask` that says what they are; where they are many, some at a time, in turn. How many at a time depends
    on the chunks alone: if a task is repeated, Ray takes up what it gives at the place where the first one was."""
    global _encoder
    with ShardkitError.naming_flags():
        if _encoder is None or _encoder.job_id != job.id:
            _check_versions(job.versions)
            _encoder = _Encoder(job.id, ChunkEncoder(from_bytes(job.packed)))
        tokens, pieces, began = list[NDArray[np.unsignedinteger]](), list[Encoded](), time.monotonic()
        for chunk in chunks:
            for result in _encoder.encoder.encode(chunk):
                tokens.append(result.tokens)
                pieces.append(_with_distances(Encoded.of(result, chunk)))
                if sum(part.nbytes for part in tokens) >= _MOST_BYTES:
                    yield from _handed_over(tokens, pieces, began)
                    pieces, began = [], time.monotonic()
        if pieces:
            yield from _handed_over(tokens, pieces, began)


def _handed_over(
    tokens: list[NDArray[np.unsignedinteger]], pieces: list[Encoded], began: float
) -> Iterator[NDArray[np.unsignedinteger] | EncodedTask]:
    """The tokens of `pieces`, which `began` to be encoded at that time, and what they are."""
    seconds, size = time.monotonic() - began, sum(part.nbytes for part in tokens)
    yield _joined(tokens)
    yield EncodedTask(pieces, size, seconds)


def _joined(parts: list[NDArray[np.unsignedinteger]]) -> NDArray[np.unsignedinteger]:
    """All `parts` as one, which has their memory as they go."""
    joined = np.empty(sum(map(len, parts)), np.result_type(*parts))
    begin = 0
    while parts:
        part = parts.pop(0)
        joined[begin : begin + len(part)] = part
        begin += len(part)
    return joined


def _with_distances(piece: Encoded) -> Encoded:
    distances = np.diff(piece.eot_positions, prepend=0)
    return piece._replace(eot_positions=distances.astype(np.min_scalar_type(distances.max(initial=0))))


def with_positions(piece: Encoded) -> Encoded:
    """A piece of an `EncodedTask`, with the positions of its EOTs."""
    return piece._replace(eot_positions=np.cumsum(piece.eot_positions, dtype=np.int64))


def installed_versions() -> dict[str, str]:
    """What must be the same on all nodes, for the same tokens."""
    return {name: version(name) for name in ("shardkit", "tiktoken", "fastokens", "tokenizers")}


def _check_versions(wanted: dict[str, str]) -> None:
    here = installed_versions()
    differ = [f"{name} is {here[name]} and not {there}" for name, there in wanted.items() if here[name] != there]
    if differ:
        raise WorkerError(f"on node {platform.node()} {', '.join(differ)}: install the same versions on all nodes")


class Writer:
    """An actor that writes shards, one at a time. Ray ends the process of a task if no other comes for a second, and to
    start one for each shard takes a fifth of the time that it takes to encode the shard."""

    def do(self, work: Callable[..., WrittenShard], *given: Any) -> WrittenShard:
        """`write_shard`, or `write_and_send`."""
        return work(*given)


def write_shard(path: str, dtype: str, capacity: int, ranges: list[NDArray[np.int64]], *pieces: Any) -> WrittenShard:
    """A task: write a shard to the file `path`, of such `ranges` (begin, end) of each of so many `pieces`. Where Ray
    believes a node to be dead, two do so at a time: each has a file of its own, and the last one that is whole, of the
    same bytes, stays."""
    with ShardkitError.naming_flags():
        own = Path(path).with_suffix(f".{uuid.uuid4().hex}.tmp")  # removed with the run's, if this process is killed
        writer = ShardWriter(own, np.dtype(dtype), capacity)
        try:
            for of_piece, tokens in zip(ranges, pieces, strict=True):
                for begin, end in of_piece.tolist():
                    writer.write(tokens[begin:end])
            return writer.finish(Path(path))
        except BaseException:
            writer.abort()
            raise


def part_of_ranges(ranges: NDArray[np.int64], begin: int, end: int) -> NDArray[np.int64]:
    """Of the tokens in `ranges`, one after another, numbers `begin` to `end`, as ranges."""
    if len(ranges) == 1:
        return ranges[:, :1] + (begin, end)
    lengths = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(lengths)
    first = ranges[:, 0] + np.maximum(0, begin - (ends - lengths))
    last = ranges[:, 1] - np.maximum(0, ends - end)
    found: NDArray[np.int64] = np.stack([first, last], axis=1)[first < last]
    return found
