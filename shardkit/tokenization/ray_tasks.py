"""What the processes of a Ray cluster do: they encode chunks, and write shards.

Their errors are put into words by the process that asked for the run, in `ray_runner.py`, which also says who has what
done where.
"""

from __future__ import annotations

import platform
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
from shardkit.tokenization.pipes import from_bytes
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk


class _Encoder(NamedTuple):
    job_id: str
    encoder: ChunkEncoder


_encoder: _Encoder | None = None  # of this worker process of Ray, for the chunks to come


def encode(
    job_id: str, job: bytes, versions: dict[str, str], chunk: Chunk
) -> Iterator[EncodedChunk | NDArray[np.unsignedinteger]]:
    """A task: each piece, and its tokens. The `job` comes as bytes: Ray would unpickle it for each chunk, with the
    vocabulary, which took a tenth of the time."""
    global _encoder
    with ShardkitError.naming_flags():
        if _encoder is None or _encoder.job_id != job_id:
            _check_versions(versions)
            _encoder = _Encoder(job_id, ChunkEncoder(from_bytes(job)))
        for result in _encoder.encoder.encode(chunk):
            tokens, result.tokens = result.tokens, np.empty(0, np.uint16)
            yield result
            yield tokens


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
    lengths = ranges[:, 1] - ranges[:, 0]
    ends = np.cumsum(lengths)
    first = ranges[:, 0] + np.maximum(0, begin - (ends - lengths))
    last = ranges[:, 1] - np.maximum(0, ends - end)
    found: NDArray[np.int64] = np.stack([first, last], axis=1)[first < last]
    return found
