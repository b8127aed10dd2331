"""Reads back what a place serves: the listing may be right while the bytes that arrive are not."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import HubError
from shardkit.remote.download import WantedFile, fetch_right
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.threads import TransferThreads
from shardkit.remote.uploader import TransferProgress
from shardkit.waits import result_of


def served_wrong(
    remote: Remote, shards: Sequence[ShardInfo], workers: int, progress: TransferProgress | None
) -> list[str]:
    """Download those of `shards` that are listed at `remote` as they should be; returns the files that arrive wrong, or
    not at all.

    Needs room for `workers` shards in the system's folder for temporary files.
    """
    files = remote.files()
    listed = [shard for shard in shards if files.get(shard.file) == RemoteFile(shard.bytes, shard.sha256)]
    total, done, wrong = sum(shard.bytes for shard in listed), 0, []
    with (
        tempfile.TemporaryDirectory(prefix="shardkit-") as folder,
        TransferThreads(workers, "shardkit-repair") as threads,
    ):

        def is_right(shard: ShardInfo) -> bool:
            try:
                path = fetch_right(remote, WantedFile.of(shard), Path(folder))
            except HubError:  # it is listed, and does not come at all: that the place can be read was seen before
                path = None
            if path is not None:
                path.unlink()
            return path is not None

        try:
            for shard, arrived in [(shard, threads.submit(partial(is_right, shard))) for shard in listed]:
                if not result_of(arrived):
                    wrong.append(shard.file)
                done += shard.bytes
                if progress is not None:
                    progress(shard.file, done, total)
        except BaseException:
            remote.stopping.set()
            raise
    return wrong
