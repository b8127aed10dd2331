"""The files that a stream of shards has open, as many at once as the process may have.

A process may have as many files open as its soft limit says, 1,024 in most places, and the hard limit says how far it
may raise that. Shards get descriptors above the soft limit, which is raised only while one is opened: the caller's
program keeps its limit and every descriptor below it.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from array import array
from collections import deque
from collections.abc import Callable, Collection

if sys.platform != "win32":
    import fcntl
    import resource

_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK")
)  # which never waits
_LEFT_TO_OTHERS = 1024  # descriptors below the soft limit, or half of them where there are fewer
_MOST_ON_WINDOWS = 512
_can_raise = sys.platform == "linux"  # elsewhere the hard limit may promise more than the kernel gives
_limit_raised = threading.Lock()
_all_open: set[int] = set()  # descriptors, of every `OpenFiles` in this process


class OpenFiles:
    """Descriptors of files that are numbered from 0 on; the one opened first is closed to make room for another.

    `descriptors[number]` is -1 where the file is not open: a plain array, for a list of 10,000 objects is too scattered
    to be fast. For one thread at a time. What is open is closed with the last reference.
    """

    def __init__(self, files: int) -> None:
        self.descriptors = array("i", [-1]) * files
        self._order: deque[int] = deque()  # file numbers; under a shuffle the oldest is as good as any to be closed

    def __len__(self) -> int:
        return len(self._order)

    def open(self, number: int, path: str) -> int:
        """Open the file at `path` as `number`, which is not open, and return its descriptor. Raises `OSError`."""
        while self._order and len(_all_open) >= _most_open():
            self._close(self._order.popleft())
        while True:
            try:
                descriptor = _open_beyond_soft_limit(path)
                break
            except OSError as error:
                if error.errno != errno.EMFILE or not self._order:
                    raise
                self._close(self._order.popleft())
        _all_open.add(descriptor)
        self._order.append(number)
        self.descriptors[number] = descriptor
        return descriptor

    def close(self, *, but: Collection[int] = ()) -> None:
        """Close every file but those numbered `but`."""
        left = deque(number for number in self._order if number in but)
        for number in self._order:
            if number not in but:
                self._close(number)
        self._order = left

    def close_one(self, number: int) -> None:
        """Close the file `number`, which is open."""
        self._order.remove(number)
        self._close(number)

    def _close(self, number: int, close: Callable[[int], None] = os.close, every: set[int] = _all_open) -> None:
        every.discard(self.descriptors[number])
        close(self.descriptors[number])
        self.descriptors[number] = -1

    def __del__(self) -> None:
        for number in self._order:
            self._close(number)  # its defaults, for the module's names may be gone at the end of the process


def _most_open() -> int:
    """How many files this module may have open in this process."""
    if sys.platform == "win32":
        return _MOST_ON_WINDOWS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    most = max(soft // 2, soft - _LEFT_TO_OTHERS)
    return max(most, hard - soft) if _can_raise else most


def _open_beyond_soft_limit(path: str) -> int:
    global _can_raise
    descriptor = os.open(path, _FLAGS)
    if sys.platform != "linux" or not _can_raise:
        return descriptor
    with _limit_raised:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard - soft <= max(soft // 2, soft - _LEFT_TO_OTHERS):
            return descriptor
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a hard limit beyond what the kernel gives to any process
            _can_raise = False
            return descriptor
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, soft)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(descriptor)
