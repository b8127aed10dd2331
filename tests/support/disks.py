"""What the tests do to a small disk: the fixture `small_disk` makes one."""

from __future__ import annotations

import errno
from pathlib import Path


def fill(disk: Path) -> Path:
    """Take all the room that is left; returns the file that has it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler
