"""Memory maps of shards, for long runs of tokens. What was read is given back to the kernel every 64 MB: the page cache
may hold it, the process's resident set may not.

Only of shards on a disk of this machine: where a network mount fails under a map, the kernel kills the process
(SIGBUS), while a read fails, and can be tried again.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.files import is_on_local_disk

_RESIDENT_BYTES = 64 << 20
_MAX_MAPS = 4  # runs come in the order of the stream; each map has a descriptor of its own (Python before 3.13)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)


class _MappedShard(NamedTuple):
    """A shard's memory map, and the tokens in it as a plain array: slicing a `np.memmap` costs microseconds."""

    map: mmap.mmap
    tokens: NDArray[np.unsignedinteger]


class ShardMaps:
    """The maps of the numbered shards in `directory`. For one thread at a time; a copy in another process has none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._maps: dict[int, _MappedShard] = {}
        self._touched = 0
        self._local: bool | None = None

    @property
    def are_safe(self) -> bool:
        """Whether shards here are mapped at all."""
        if self._local is None:
            self._local = is_on_local_disk(self._directory)
        return self._local

    def get(self, number: int) -> NDArray[np.unsignedinteger] | None:
        """The tokens of shard `number`, if it is mapped: they point into the map."""
        mapped = self._maps.get(number)
        return None if mapped is None else mapped.tokens

    def add(
        self, number: int, descriptor: int, dtype: np.dtype[np.unsignedinteger], start: int, count: int
    ) -> NDArray[np.unsignedinteger]:
        """Map an open shard whose `count` tokens begin at byte `start`. Raises `OSError`."""
        while len(self._maps) >= _MAX_MAPS:
            del self._maps[next(iter(self._maps))]
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        tokens = np.frombuffer(mapped, dtype, count, offset=start)
        self._maps[number] = _MappedShard(mapped, tokens)
        return tokens

    def note_read(self, count: int) -> None:
        """`count` bytes are about to be read: from time to time, what is resident of every map is dropped. A map read
        again faults it in again."""
        self._touched += count
        if self._touched > _RESIDENT_BYTES:
            self._touched = 0
            for mapped in self._maps.values():
                if sys.platform != "win32" and _DONTNEED is not None:
                    mapped.map.madvise(_DONTNEED)

    def close(self, *, but: Collection[int] = ()) -> None:
        """Unmap every shard but those."""
        self._maps = {number: mapped for number, mapped in self._maps.items() if number in but}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}
