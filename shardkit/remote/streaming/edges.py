"""The edges of shards: the few tokens at their ends that rows across two shards need when one of the two is gone.

The first reader that leaves a shard writes its edge into the cache folder, one small file for each shard, from the
verified shard only. The tokens are followed by their CRC-32; an edge that is cut short or damaged counts as missing.
"""

from __future__ import annotations

import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.files import write_error

_CRC_BYTES = 4
_ENTRY_BYTES = 64  # for a file's name in its folder
Tokens = NDArray[np.unsignedinteger]


class EdgeFolder:
    """The edges of one dataset's shards, in `folder`. The first write deletes those of other datasets beside it. Any
    process may write."""

    def __init__(self, folder: Path, dtype: np.dtype[np.unsignedinteger]) -> None:
        self._folder, self._dtype = folder, dtype

    def read(self, name: str, count: int) -> Tokens | None:
        """The `count` tokens of the edge `name`; None where it is not here."""
        try:
            data = (self._folder / name).read_bytes()
        except OSError:
            return None
        tokens, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
        whole = len(tokens) == count * self._dtype.itemsize and crc == _crc(tokens)
        return np.frombuffer(tokens, self._dtype) if whole else None

    def write(self, name: str, tokens: Tokens) -> None:
        """Add an edge. Raises `OutputError` or `DiskFull`."""
        data, temp = tokens.tobytes(), self._folder / f"{name}.{os.getpid()}"
        try:
            if not self._folder.is_dir():
                for other in {*self._folder.parent.glob("*")} - {self._folder}:
                    shutil.rmtree(other, ignore_errors=True)
                self._folder.mkdir(parents=True, exist_ok=True)
            temp.write_bytes(data + _crc(data))
            os.replace(temp, self._folder / name)
        except OSError as error:
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise write_error(error, self._folder / name, len(data)) from None


def edge_bytes(count: int, itemsize: int) -> int:
    """What an edge of `count` tokens takes on the disk."""
    return count * itemsize + _CRC_BYTES + _ENTRY_BYTES


def _crc(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CRC_BYTES, "little")
