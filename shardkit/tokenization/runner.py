"""What a runner is: where chunks are encoded, and where the tokens stay until a shard is written.

Counts travel, tokens stay: a runner hands the main process what each piece of a chunk holds, in order of the stream;
that says where each token's place is (`Runner.write`), and whoever has the tokens puts them there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import WrittenShard, shard_header
from shardkit.errors import ShardkitError
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk
from shardkit.tokenization.worker import EncodedChunk, Job


class Destination(NamedTuple):
    """Where the nodes of a cluster send shards: a `place` that is claimed with the `mark`, and how many shards a node
    may have on its disk `at_a_time`."""

    place: str
    mark: bytes
    at_a_time: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SentShard(WrittenShard):
    """A shard that was sent, and is on no disk: `receipt` is what `Remote.received` needs to know of it."""

    receipt: str


class OpenShard:
    """A shard that is being written, in the file `temp` (its `path` holds whatever folder a process is in): how many
    `tokens` have their place in it, of at most `capacity`. The others are the runner's: `parts` that were written, how
    many it is `waiting` for, whether the shard has all its tokens (`is_whole`), what the completed file is (`made`),
    and why it will not be (`error`). `info` is what the dataset calls it, once that is known."""

    def __init__(self, temp: Path, dtype: np.dtype[np.unsignedinteger], capacity: int) -> None:
        self.temp, self.dtype, self.capacity = temp, dtype, capacity
        self.path = os.path.abspath(temp)
        self.tokens = self.waiting = 0
        self.is_whole = False
        self.parts: list[Any] = []
        self.made: WrittenShard | None = None
        self.info: ShardInfo | None = None
        self.error: ShardkitError | None = None
        self._header_bytes = len(shard_header(capacity, dtype))

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self.tokens

    @property
    def header(self) -> bytes:
        """The header of the file, as long as it is for any number of tokens."""
        return shard_header(self.tokens, self.dtype)

    def append(self, tokens: int) -> int:
        """Give the next `tokens` their place: where it begins, in bytes of the file."""
        place = self._header_bytes + self.tokens * self.dtype.itemsize
        self.tokens += tokens
        return place

    def bytes_to_come(self, written: int = 0) -> int:
        """How many bytes its file may still grow by, if so many of its tokens' are in it."""
        return self._header_bytes + (self.tokens if self.is_whole else self.capacity) * self.dtype.itemsize - written


class Runner(Protocol):
    """Encodes chunks, and writes the tokens to shards. A context manager: leaving it ends what is under way."""

    reads_ahead: bool  # chunks may come with the bytes that they need
    shared: SharedMemory | None  # for these bytes
    whole_files_from: int  # with so many workers or more, files that are read front to back are given out whole
    most_finishing: int  # shards that are completed at a time
    workers: int  # that encode at a time, at most; on a cluster it changes while a run goes on

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exc: object) -> None: ...

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The workers' process ids on this machine."""

    def send_to(self, destination: Destination) -> bool:
        """Ask that the machines which write shards send them there, and keep none. Returns whether they will: not if
        this is the only one. What they send must have its `info` when `finish` is called."""

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:
        """Encode `chunks`; yields the pieces of their results in the same order, without their tokens. Those of a piece
        that are to be written must be given their place before the next piece is asked for.

        Raises `WorkerError` naming the chunk of a worker that died, `OutputError` where tokens cannot be written.
        """

    def change_job(self, job: Job) -> None:
        """From now on give chunks to encode with this job, which gives the same tokens."""

    def keep(self, piece: EncodedChunk, ranges: NDArray[np.int64]) -> None:
        """Before anything of the piece is written: of its tokens those in `ranges` stay, (begin, end), shape (n, 2)."""

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        """Put tokens `begin` to `end` of the piece behind those that the shard has."""

    def finish(self, shard: OpenShard) -> None:
        """Say that the shard has all its tokens; its file is completed and hashed meanwhile."""

    def is_completed(self, shard: OpenShard) -> bool:
        """Whether `wait` for a shard that was said to have all its tokens would not wait."""

    def wait(self, shard: OpenShard) -> WrittenShard:
        """Wait until a shard that was said to have all its tokens is on the disk, or was sent (`SentShard`), and return
        what its file is. Raises as `run` does."""
