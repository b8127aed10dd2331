"""Finished shards of a run that goes on, one after the other: in its folder, or fetched again from its remote."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from shardkit.dataset.manifest import WORK_DIR, ShardInfo
from shardkit.files import remove_tree
from shardkit.remote.download import WantedFile, download_verified, is_right
from shardkit.remote.threads import TransferThreads
from shardkit.tokenization.live_push import LivePush
from shardkit.waits import result_of


def earlier_shards(
    directory: Path, shards: Sequence[ShardInfo], uploads: LivePush | None
) -> Generator[Path, None, None]:
    """The path of each, until the next one is asked for. With `uploads` each is right, and one that is not in
    `directory` is fetched while the one before it is read; it stays there, unless shards leave the disk. Close it.

    Raises `HubError` and `DiskFull`.
    """
    if uploads is None:  # whose hashes are compared while the run goes on
        yield from (directory / shard.file for shard in shards)
        return
    if not uploads.keeps_files:
        uploads.uploader.flush()  # so that none goes while it is read, and there is room for two
    folder = directory / WORK_DIR / "earlier"
    remove_tree(folder)  # of a run that was killed
    try:
        with TransferThreads(1, "shardkit-earlier") as threads:
            fetch = partial(_fetched, uploads, directory, folder)
            items = map(WantedFile.of, shards)
            for path in _one_ahead(threads.submit(partial(fetch, item)) for item in items):
                yield path
                if not uploads.keeps_files:
                    path.unlink(missing_ok=True)
    finally:
        remove_tree(folder)


def _one_ahead(paths: Iterator[Future[Path]]) -> Iterator[Path]:
    before: Future[Path] | None = None
    for path in paths:
        if before is not None:
            yield result_of(before)
        before = path
    if before is not None:
        yield result_of(before)


def _fetched(uploads: LivePush, directory: Path, folder: Path, item: WantedFile) -> Path:
    target = directory / item.shard.file
    if is_right(target, item):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(dir=folder))
    target = target if uploads.keeps_files else incoming / "shard"
    download_verified(uploads.uploader.remote, item, incoming, target)
    return target
