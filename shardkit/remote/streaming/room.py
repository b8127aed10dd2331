"""A disk that is full for a while: who must write to it waits, which is said, and goes on when there is room again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shardkit.errors import DiskFull
from shardkit.files import format_bytes, free_bytes
from shardkit.rate_limits import PAUSES

FULL_SECONDS = 300.0  # after which it is an error
_LEAST_BYTES = 1 << 16  # what records take
_POLL_SECONDS = 0.25
_LOOK_SECONDS = 1.0
Result = TypeVar("Result")


class RoomWait:
    """The waits for room on the disk of a folder, one after the other, as `PAUSES` tells people."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._until = self._looked = 0.0

    def goes_on(self) -> bool:
        """There is no room: whether to wait on. It begins with the first call."""
        now = time.monotonic()
        self._until = self._until or now + FULL_SECONDS
        if now > self._until:
            PAUSES.end(self)
            return False
        free = format_bytes(free_bytes(self._folder))
        PAUSES.go_on(
            self, self._until, f"no room on the disk of {self._folder} ({free} free), make some and it goes on"
        )
        return True

    def end(self) -> None:
        """There is room, or nobody waits any more."""
        if self._until:
            self._until = 0.0
            PAUSES.end(self)

    def look(self) -> None:
        """Wait, or not, for a disk so full that nobody else can say so. Raises `DiskFull` where it stays so."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if (free := free_bytes(self._folder)) >= _LEAST_BYTES:
            self.end()
        elif not self.goes_on():
            self.end()
            raise DiskFull(
                f"no room on the disk of {self._folder} for {FULL_SECONDS:.0f} s: {format_bytes(free)} are free; make "
                "room and start again, it goes on with the shards that are here"
            )


def when_there_is_room(folder: Path, write: Callable[[], Result]) -> Result:
    """What `write` returns, which is run again while the disk of `folder` is full. Raises `DiskFull` where it stays so,
    and whatever else `write` does."""
    waiting = RoomWait(folder)
    try:
        while True:
            try:
                return write()
            except DiskFull:
                if not waiting.goes_on():
                    raise
                time.sleep(_POLL_SECONDS)
    finally:
        waiting.end()
