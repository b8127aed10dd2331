"""Memory for what is fetched: used again and again (`MemoryPool`), and seen alike by this process and its workers, so
that what is fetched into it need not be sent to them (`SharedMemory`)."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from bisect import bisect
from collections import deque
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 64  # bytes, where each piece of a pool begins


class SharedMemory:
    """`size` bytes, shape `(size,)`, uint8, in a file without a name; what is not written to takes no room.

    A process that inherits the file `descriptor` maps it too; it ends with the last process that has it.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create("shardkit")
        try:
            os.ftruncate(self.descriptor, size)
            self.array: NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._address = _address(self.array)

    @classmethod
    def make(cls, size: int) -> SharedMemory | None:
        """New memory; None where the system has no such thing, or no room for it."""
        if not hasattr(os, "memfd_create"):
            return None
        try:
            return cls(size)
        except (OSError, ValueError, MemoryError):
            return None

    def forget_descriptor(self) -> None:
        """Close the descriptor, once every process that should has it: the memory stays."""
        os.close(self.descriptor)

    def place_of(self, data: memoryview | bytes | bytearray) -> int | None:
        """Where `data` is in this memory; None if it is not in it."""
        if not isinstance(data, memoryview) or not data.nbytes:
            return None
        place = _address(np.frombuffer(data, np.uint8)) - self._address
        return place if 0 <= place <= len(self.array) - data.nbytes else None


class MemoryPool:
    """Memory to fetch into, `size` bytes or what is `shared`, used again when nobody refers to it any more: fresh pages
    cost more than filling them. What finds no room in it lies elsewhere."""

    def __init__(self, size: int, shared: SharedMemory | None = None) -> None:
        self._array = np.empty(0, np.uint8) if shared is None else shared.array
        self._size = size if shared is None else 0  # of an array that is made when it is needed
        self._free = [(0, len(self._array))]  # ascending; no two touch
        self._returned: deque[tuple[int, int]] = deque()  # by finalizers, which may come at any moment: without a lock
        self._lock = threading.Lock()

    def get(self, count: int) -> memoryview:
        """`count` bytes, of any content."""
        with self._lock:
            if self._size:
                self._make()
            while self._returned:
                self._put_back(*self._returned.popleft())
            place = next((n for n, (start, stop) in enumerate(self._free) if stop - start >= count), None)
            if place is None or not count:
                return np.empty(count, np.uint8).data
            start, stop = self._free[place]
            end = min(start + -(-count // _ALIGNED) * _ALIGNED, stop)
            self._free[place : place + 1] = [(end, stop)] if end < stop else []
            view = self._array[start : start + count]
            returned = self._returned
        # every `memoryview` of it, and each part of one, keeps `view` alive
        weakref.finalize(view, returned.append, (start, end)).atexit = False
        return view.data

    def _make(self) -> None:
        with suppress(MemoryError):  # so much at once may be more than there is: then each piece lies elsewhere
            self._array, self._free = np.empty(self._size, np.uint8), [(0, self._size)]
        self._size = 0

    def _put_back(self, start: int, stop: int) -> None:
        place = bisect(self._free, (start, stop))
        if place < len(self._free) and self._free[place][0] == stop:
            stop = self._free.pop(place)[1]
        if place and self._free[place - 1][1] == start:
            place -= 1
            start = self._free.pop(place)[0]
        self._free.insert(place, (start, stop))

    def forget(self) -> None:
        """Keep no memory for later."""
        with self._lock:
            self._array, self._size, self._free, self._returned = np.empty(0, np.uint8), 0, [], deque()


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
