"""An array that is computed part by part, and grows in a file for as long as the disk takes it, else in memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.shards import shard_header


class GrowingArray:
    """One-dimensional, of `dtype`. With a `path` its parts are written there, as a `.npy` file; without one, or where
    that fails, they are kept in memory."""

    def __init__(self, path: Path | None, dtype: str) -> None:
        self._dtype, self._path = np.dtype(dtype), path
        self._count = 0
        self._start = len(shard_header(0, self._dtype))
        self._parts: list[NDArray[np.integer]] = []
        self._file: int | None = None
        if path is not None:
            with contextlib.suppress(OSError):
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)

    def append(self, part: NDArray[np.integer]) -> None:
        """Add `part` at the end."""
        part = np.ascontiguousarray(part, self._dtype)
        if self._file is not None:
            try:
                _write(self._file, part.view(np.uint8).data, self._start + self._count * self._dtype.itemsize)
            except OSError:
                self._take_back()
        if self._file is None:
            self._parts.append(part)
        self._count += len(part)

    def close(self) -> bool:
        """Whether all of it is in the file, which is finished. Raises `OSError`."""
        if self._file is None:
            return False
        _write(self._file, shard_header(self._count, self._dtype), 0)
        os.close(self._file)
        self._file = None
        return True

    def in_memory(self) -> NDArray[np.integer]:
        """All of it, also where it was written."""
        self._take_back()
        if not self._parts and self._count and self._path is not None:
            array: NDArray[np.integer] = np.load(self._path)
            return array
        return np.concatenate([np.empty(0, self._dtype), *self._parts])

    def abandon(self) -> None:
        """Close the file, if it is not finished."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _take_back(self) -> None:
        """Read what was written whole, and go on in memory."""
        if self._file is None:
            return
        with open(self._file, "rb") as reader:
            self._file = None
            reader.seek(self._start)
            self._parts = [np.fromfile(reader, self._dtype, self._count)]


def _write(file: int, data: memoryview | bytes, place: int) -> None:
    os.lseek(file, place, os.SEEK_SET)
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
