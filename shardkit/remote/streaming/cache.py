"""A dataset at a remote, read through a folder on this node that another process fills (`shardkit.downloader`).

It never talks to the network and takes no locks to read: a shard that `wait` returned for is under its final name, was
verified, and stays until `want` leaves it out.
"""

from __future__ import annotations

import os
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shardkit.dataset.manifest import Manifest
from shardkit.errors import ShardkitWarning, UsageError
from shardkit.files import format_bytes
from shardkit.remote.streaming.folder import CacheFolder, Dataset, default_folder, full_name, small_bytes
from shardkit.remote.streaming.reader import POLL_SECONDS, Reader


def cache_folder_name(source: str, revision: str | None, split: str) -> str:
    """The name of the folder, one a dataset, revision and split, that caches `source` below a folder of several."""
    return default_folder(*full_name(source, revision), split).name


class ShardCache:
    """A reader of a dataset that comes shard by shard; for one thread at a time.

        cache = ShardCache.open("user/name", split="train", folder=None, cache_bytes=None, revision=None)
        cache.want(["x_train_000001.npy", "x_train_000002.npy"])
        cache.wait("x_train_000001.npy")
        open_shard(cache.directory / "x_train_000001.npy")

    A pickled or forked copy is a reader of its own from its first use on, and wants what the original did.
    """

    def __init__(
        self, folder: CacheFolder, source: str, dataset: Dataset, revision: str | None, cache_bytes: int | None
    ) -> None:
        self._folder = folder
        self._source, self._asked = source, revision
        self._cache_bytes = cache_bytes
        self._digest = dataset.digest
        self.directory = folder.path
        self.manifest = replace(Manifest.from_json(dataset.manifest, where=dataset.name), directory=folder.path)
        self.name = dataset.name
        self.revision = dataset.revision  # the commit, "" where there are none
        self.unfinished = dataset.unfinished
        self._sizes = {shard.file: shard.bytes for shard in self.manifest.shards}
        self._small_bytes = small_bytes(self.manifest)
        self._wants: tuple[str, ...] = ()
        self._reader: Reader | None = None

    @classmethod
    def open(
        cls, source: str, *, split: str, folder: Path | None, cache_bytes: int | None, revision: str | None
    ) -> ShardCache:
        """Join or start the downloader of `source` on this node, and wait until it has read the manifest.

        `folder` is local to the node and for this dataset alone (default: below `$SHARDKIT_CACHE`, or
        `~/.cache/shardkit`). `cache_bytes` bounds all that is in it, by deleting shards that no reader wants; the
        smallest bound of the living readers counts. `revision` is resolved once, for all readers of now.

        Warns (`ShardkitWarning`) if the dataset is still being written. Raises what went wrong as the downloader saw
        it: `HubError`, `AuthError`, `DiskFull`, `ManifestError`; `OutputError` for a folder of something else,
        `UsageError` for a source that cannot work.
        """
        source, revision = full_name(source, revision)
        place = CacheFolder((folder or default_folder(source, revision, split)).expanduser().absolute())
        if cache_bytes is not None and cache_bytes <= 0:
            raise UsageError(f"cache_bytes is {cache_bytes!r}: expected a number of bytes, or None for no bound")
        place.prepare()
        reader = Reader(place, source, revision, cache_bytes, "")
        try:
            dataset = reader.dataset()
            reader.tell(replace(reader.note, dataset=dataset.digest))
            cache = cls(place, source, dataset, revision, cache_bytes)
            cache._take(reader)
        except BaseException:
            reader.leave()
            raise
        if split not in cache.manifest.splits:
            cache.close()
            held = ", ".join(f"{name} with {len(shards)}" for name, shards in cache.manifest.splits.items())
            raise UsageError(f"{cache.name} has no {split!r} shard (it has {held}): give another split")
        if cache.unfinished:
            again = f"give revision={cache.revision!r} to get" if cache.revision else "there is no way to get"
            warnings.warn(
                f"{cache.name} is still being written: this run has its first {len(cache.manifest.shards):,} shards, "
                f"{cache.manifest.tokens:,} tokens, and later ones do not come into it; {again} the same again",
                ShardkitWarning,
                stacklevel=2,
            )
        return cache

    @property
    def room_bytes(self) -> int | None:
        """What `cache_bytes` leaves for the shards that are wanted at one time; None without a bound."""
        return None if self._cache_bytes is None else self._cache_bytes - self._small_bytes

    def want(self, shards: Sequence[str]) -> None:
        """From now on this reader needs these files, nearest need first, and no other: close maps of others before.

        Returns at once. Raises `UsageError` for files that the dataset has not, or that cannot fit `cache_bytes`.
        """
        wants, reader = tuple(dict.fromkeys(shards)), self._here()
        if wants == reader.note.wants:
            return
        if unknown := [shard for shard in wants if shard not in self._sizes]:
            raise UsageError(f"{self.name} has no shard {unknown[0]}")
        needed = sum(self._sizes[shard] for shard in wants)
        if self.room_bytes is not None and needed > self.room_bytes:
            raise UsageError(
                f"cache_bytes is {format_bytes(self._cache_bytes or 0)}, {len(wants)} shards at once and the small "
                f"files take {format_bytes(needed + self._small_bytes)}: give more, or a smaller span"
            )
        reader.sure &= set(wants)
        self._wants = wants
        reader.tell(replace(reader.note, wants=wants))

    def wait(self, shard: str) -> None:
        """Return when `shard`, which must be wanted, is in `directory` and verified.

        Raises what keeps it away: `HubError`, `AuthError`, `DiskFull`.
        """
        reader = self._here()
        if shard in reader.sure:
            return
        if shard not in reader.note.wants:
            raise UsageError(f"{shard} was not wanted: name it to want() before wait()")
        while not reader.has(shard):
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Leave: from here on this reader wants nothing. The downloader ends when its last reader has left."""
        if self._reader is not None:
            self._reader.leave()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _here(self) -> Reader:
        reader = self._reader
        if reader is None or reader.note.process.pid != os.getpid():  # a copy, or a fork
            reader = Reader(self._folder, self._source, self._asked, self._cache_bytes, self._digest)
            reader.tell(replace(reader.note, wants=self._wants))
            self._take(reader)
        return reader

    def _take(self, reader: Reader) -> None:
        self._reader = reader
        weakref.finalize(self, reader.leave)  # a loader that is dropped, not closed, must not keep the downloader
