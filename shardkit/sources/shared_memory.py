"""Memory that this process and its workers see alike: what is fetched into it need not be sent to them."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


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


def _address(array: NDArray[np.uint8]) -> int:
    return int(array.__array_interface__["data"][0])
