"""Tokens that wait on the disk, in files without a name: nothing stays of them, however the process ends."""

from __future__ import annotations

import errno
import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

_MOST_BYTES = 64 << 20  # of one file, whose room is free again when all pieces in it are


class TokensOnDisk:
    """One such file, in `folder`; it goes when no piece in it is left. Raises `OSError` if it cannot be made."""

    def __init__(self, folder: str) -> None:
        # Without a buffer: one that cannot be emptied would keep what is in the file from being read.
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed with the last piece in it)
        weakref.finalize(self, self._file.close)
        self._end = 0
        self._lock = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether pieces should go to another file."""
        return self._end >= _MOST_BYTES

    def add(self, tokens: NDArray[Any]) -> PieceOnDisk:
        """Write a piece, of tokens or of what is known of them. Raises `OSError`."""
        data = np.ascontiguousarray(tokens).view(np.uint8).data
        with self._lock:
            self._file.seek(self._end)
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            piece = PieceOnDisk(self, self._end, len(tokens), tokens.dtype, xxhash.xxh3_64_intdigest(data))
            self._end += len(data)
        return piece

    def read(self, place: int, into: memoryview) -> None:
        """Read what is at `place`. Raises `OSError` where there is less."""
        with self._lock:
            self._file.seek(place)
            while into:
                count = self._file.readinto(into)
                if not count:
                    raise OSError(errno.EIO, "tokens that waited on the disk are not all there")
                into = into[count:]


@dataclass(frozen=True, slots=True)
class PieceOnDisk:
    """A piece in a file: how many tokens, and the hash (XXH3, 64 bits) of what was in memory."""

    file: TokensOnDisk
    place: int
    count: int
    dtype: np.dtype[Any]
    digest: int
    nbytes = 0  # that it takes in memory

    def read(self) -> NDArray[Any]:
        """The tokens, as they were. Raises `OSError`."""
        tokens: NDArray[Any] = np.empty(self.count, self.dtype)
        data = tokens.view(np.uint8).data
        self.file.read(self.place, data)
        if xxhash.xxh3_64_intdigest(data) != self.digest:
            raise OSError(errno.EIO, "tokens that waited on the disk came back changed")
        return tokens
