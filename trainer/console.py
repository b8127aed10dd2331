"""Printed lines. A terminal that is gone, or a pipe that nobody reads any more, does not end a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shardkit import printable

SLOW_SECONDS = 2.0


@contextmanager
def told(what: str | None) -> Iterator[None]:
    """Say on stderr `what` is being done, once for all ranks, where the block takes longer than a moment. None is
    never said."""
    timer = threading.Timer(SLOW_SECONDS, _note, [what])
    timer.daemon = True
    if what and os.environ.get("RANK", "0") == "0":
        with suppress(RuntimeError):  # no room for a thread: what the block does is more important
            timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _note(text: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it, or it is closed
        if sys.stderr is not None:
            print(f"{printable(text)} ...", file=sys.stderr, flush=True)


def print_line(text: str) -> None:
    """Print a line for people at once; where it cannot be written, it and all that follows go nowhere."""
    try:
        print(printable(text), flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # what is still in the buffer would fail again, at the process's end
        os.close(null)
