"""Reads of shards that fail for a moment, as where a network mount drops: tried again for some seconds, said once."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shardkit.dataset.shards import MEND
from shardkit.errors import ShardError

READ_SECONDS = 30.0  # a mount that is taken up again needs some
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
PASSING = frozenset(
    getattr(errno, name, errno.EIO)
    for name in ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO", "ENODEV", "ENXIO"]
)
Result = TypeVar("Result")


class UnreadError(Exception):
    """The shard of that `number` could not be opened or read."""

    def __init__(self, number: int, error: OSError) -> None:
        super().__init__(number, error)
        self.number, self.error = number, error


class ReadPatience:
    """The tries of one read."""

    def __init__(self) -> None:
        self._until = 0.0
        self._pause = _FIRST_PAUSE

    def wait(self, path: Path, error: OSError) -> None:
        """Wait before the next try. Raises `ShardError` where `error` does not pass by itself, or has not in time."""
        now, reason = time.monotonic(), error.strerror or str(error)
        if error.errno not in PASSING and not (self._until and error.errno == errno.ENOENT):  # a mount that is gone
            raise unreadable(path, error) from None
        if not self._until:
            self._until = now + READ_SECONDS
            logging.getLogger("shardkit").warning(
                "cannot read %s for the moment (%s): trying again for %.0f s", path, reason, READ_SECONDS
            )
        elif now >= self._until:
            raise ShardError(
                f"cannot read {path}: {reason}, for {READ_SECONDS:.0f} s; look at the disk or mount that it is on "
                "(dmesg, mount), then run the same command again, it goes on"
            ) from None
        time.sleep(min(self._pause, max(0.0, self._until - now)))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def read_patiently(path: Path, read: Callable[[], Result]) -> Result:
    """What `read` returns, which opens and reads the file at `path`: again while that fails for a moment. Raises
    `ShardError`, and what else `read` does."""
    patience = ReadPatience()
    while True:
        try:
            return read()
        except OSError as error:
            patience.wait(path, error)


def unreadable(path: Path, error: OSError) -> ShardError:
    """The one line for a shard's file that cannot be opened or read."""
    if isinstance(error, FileNotFoundError):
        return ShardError(f"{path} is missing: {MEND}")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ShardError(f"cannot open shard {path}: {error.strerror}: allow more open files (ulimit -n 4096)")
    return ShardError(f"cannot open shard {path}: {error.strerror or error}")
