"""Processes that help to work out a large layout, where the machine has more cores than ranks.

A helper is a Python that opens the same folder and wants the same layout: what it works out is in the folder's plans
(`dataset/derived_parts.py`). One that fails, or cannot be started, is no loss.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from shardkit.batches.layouts import make_layout
from shardkit.cores import available_cores
from shardkit.dataset.derived_parts import Helpers
from shardkit.dataset.folder import PLAN_FOLDER, WORK_DIR
from shardkit.dataset.token_stream import TokenStream, open_split
from shardkit.errors import ShardkitError

_LEAST_PARTS = 4  # of an array that is worth the start of another process
_MOST_HELPERS = 15  # a disk is not faster with more readers
_PARENT_SECONDS = 1.0


def helpers_of(stream: TokenStream, split: str, layout: str, seq_len: int) -> Helpers:
    """The helpers for a layout of `split` in a local folder."""

    def helpers(parts: int) -> AbstractContextManager[None]:
        what = [os.fspath(stream.directory.absolute()), split, layout, seq_len, stream.eot_id]
        return _processes(min(_free_cores(), parts - 1, _MOST_HELPERS) if parts >= _LEAST_PARTS else 0, what)

    return helpers


@contextlib.contextmanager
def _processes(count: int, what: list[object]) -> Iterator[None]:
    """A block in which `count` processes help."""
    command = [sys.executable, "-m", __name__, json.dumps([os.getpid(), *what])]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with contextlib.suppress(OSError):  # no room for another process
            started.extend(_quiet_process(command) for _ in range(count if sys.executable else 0))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _quiet_process(command: list[str]) -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]  # this very shardkit
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"},
    )


def _free_cores() -> int:
    """How many cores of this machine no rank has: those of the ranks beside this one are theirs."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    return available_cores() // (int(ranks) if ranks.isdecimal() and int(ranks) else 1) - 1


def _end_with(parent: int) -> None:
    """End this process once `parent` has: nobody waits for it then."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def main(argument: str) -> None:
    """Work out a layout, in a helper."""
    parent, folder, split, layout, seq_len, eot_id = json.loads(argument)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(ShardkitError):
        _, stream = open_split(folder, split, verify=False)
        stream.eot_id = eot_id
        make_layout(layout, stream, seq_len, cache=Path(folder) / WORK_DIR / PLAN_FOLDER)


if __name__ == "__main__":
    main(sys.argv[1])
