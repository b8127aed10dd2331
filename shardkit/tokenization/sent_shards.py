"""Shards that leave from the node of a cluster that wrote them: none of them passes through the main process's machine.

Such a shard is written to a temporary folder of its node, hashed, sent, and removed. The main process, which has the
claim and the journal, acknowledges it at the remote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from shardkit.dataset.records import ShardInfo
from shardkit.errors import ShardkitError
from shardkit.files import write_error
from shardkit.locks import LockHeld, hold_lock
from shardkit.remote.address import open_remote
from shardkit.remote.interface import Remote
from shardkit.remote.uploader import send_checked
from shardkit.tokenization.ray_tasks import write_shard
from shardkit.tokenization.runner import Destination, SentShard

_POLL_SECONDS = 0.1


def write_and_send(destination: Destination, shard: ShardInfo, *given: Any) -> SentShard:
    """Write a shard to this node's disk, under the file's name that `shard` has, and send it. What else is `given` is
    for `write_shard`. Raises `ShardkitError`s that name the node."""
    try:
        with ShardkitError.naming_flags(), _room_for_one(destination) as folder:
            path = folder / shard.file
            made = dataclasses.asdict(write_shard(str(path), *given))
            receipt = send_checked(_remote_of(destination), path, dataclasses.replace(shard, **made))
            return SentShard(**made, receipt=receipt)
    except ShardkitError as error:
        raise type(error)(f"on node {platform.node()}: {error}") from None


@lru_cache(maxsize=1)
def _remote_of(destination: Destination) -> Remote:
    """The remote, whose claim lets this process write there too."""
    remote = open_remote(destination.place)
    remote.claim(destination.mark, destination.mark, {}, "")
    return remote


@contextmanager
def _room_for_one(destination: Destination) -> Iterator[Path]:
    """An empty folder for one shard; waits while this node has as many of them as it may. What a killed process left in
    its folder is removed by the next one that gets the same number."""
    run = hashlib.sha256(destination.place.encode() + destination.mark).hexdigest()[:16]
    above = Path(tempfile.gettempdir(), f"shardkit-{run}-{platform.node()}")  # nodes may share a TMPDIR
    for number in itertools.cycle(range(destination.at_a_time)):
        with ExitStack() as stack:
            stack.callback(_remove_empty, above)
            try:
                stack.enter_context(hold_lock(above / f"{number}.lock", busy="in use", remove=True))
            except LockHeld:
                if number + 1 == destination.at_a_time:
                    time.sleep(_POLL_SECONDS)
                continue
            folder = above / str(number)
            shutil.rmtree(folder, ignore_errors=True)
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                folder.mkdir()
            except OSError as error:
                raise write_error(error, folder, 0) from None
            yield folder
            return


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody else is in it
        folder.rmdir()
