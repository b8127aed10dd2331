"""Printed lines. A terminal that is gone, or a pipe that nobody reads any more, does not end a run."""

from __future__ import annotations

import os
import sys

from shardkit import printable


def print_line(text: str) -> None:
    """Print a line for people at once; where it cannot be written, it and all that follows go nowhere."""
    try:
        print(printable(text), flush=True)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # what is still in the buffer would fail again, at the process's end
        os.close(null)
