"""A dataset at a remote, read through a folder on this node that another process fills (`downloader.py`). A rank whose
shard is late waits here, in `ShardCache.wait`.

It never talks to the network and takes no locks to read: a shard that `wait` returned for is under its final name, was
verified, and stays until `want` leaves it out.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.token_stream import Tokens, TokenStream, open_stream
from shardkit.errors import HubError, ShardkitError, ShardkitWarning, UsageError
from shardkit.files import counted, format_bytes
from shardkit.remote.streaming.edges import EdgeFolder, edge_bytes
from shardkit.remote.streaming.folder import CacheFolder, Dataset, default_folder, default_name, full_name, small_bytes
from shardkit.remote.streaming.lease import POLL_SECONDS, Reader
from shardkit.remote.streaming.room import when_there_is_room


def cache_folder_name(source: str, revision: str | None, split: str) -> str:
    """The name of the folder, one a dataset, revision and split, that caches `source` below a folder of several."""
    return default_name(*full_name(source, revision), split)


class ShardCache:
    """A reader of one split of a dataset that comes shard by shard; for one thread at a time.

        cache = ShardCache.open("user/name", split="train", folder=None, cache_bytes=None, revision=None)
        cache.want(["x_train_000001.npy", "x_train_000002.npy"])
        cache.wait("x_train_000001.npy")
        open_shard(cache.directory / "x_train_000001.npy")

    A pickled or forked copy is a reader of its own from its first use on, and wants what the original did.
    """

    def __init__(
        self,
        folder: CacheFolder,
        source: str,
        dataset: Dataset,
        split: str,
        revision: str | None,
        cache_bytes: int | None,
    ) -> None:
        self._folder = folder
        self._source, self._asked = source, revision
        self._cache_bytes = cache_bytes
        self._digest = dataset.digest
        self.directory = folder.path
        self.manifest = replace(Manifest.from_json(dataset.manifest, where=dataset.name), directory=folder.path)
        self.name = dataset.name
        self.split = split
        self.revision = dataset.revision  # the commit, "" where there are none
        self.unfinished = dataset.unfinished
        self._sizes = {shard.file: shard.bytes for shard in self.manifest.shards}
        self._small_bytes = small_bytes(self.manifest, folder.path)
        self._edges = EdgeFolder(folder.edges / dataset.digest[:16], np.dtype(self.manifest.dtype).newbyteorder("<"))
        self._edge_bytes = 0
        self._wants: list[str] = []
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
        full, revision = full_name(source, revision)
        place = CacheFolder((folder or default_folder(full, revision, split)).expanduser().absolute())
        if cache_bytes is not None and cache_bytes <= 0:
            raise UsageError(f"cache_bytes is {cache_bytes!r}: expected a number of bytes, or None for no bound")
        place.prepare()
        reader = Reader(place, full, revision, cache_bytes)
        try:
            dataset = reader.wait_for_dataset()
            reader.change(replace(reader.lease, dataset=dataset.digest))
            cache = cls(place, full, dataset, split, revision, cache_bytes)
            cache._set_reader(reader)
            cache._check_split()
        except HubError as error:
            reader.leave()
            if "://" in source:
                raise
            raise type(error)(f"{error} (nor is there a folder {source} here)") from None
        except BaseException:
            reader.leave()
            raise
        return cache

    @property
    def room_bytes(self) -> int | None:
        """What `cache_bytes` leaves for the shards that are wanted at one time; None without a bound."""
        return None if self._cache_bytes is None else self._cache_bytes - self._small_bytes - self._edge_bytes

    def open_stream(self) -> TokenStream:
        """The split as a stream, which waits for a shard where it opens it."""
        stream = open_stream(self.manifest, self.split, KnownFiles(self.directory, listed=False))
        stream.wait = self.wait
        return stream

    def want(self, shards: Sequence[str]) -> None:
        """From now on this reader needs these files, nearest need first, and no other: close maps of others before.

        Returns at once. Raises `UsageError` for files that the dataset has not, or that cannot fit `cache_bytes`.
        """
        wants, reader = list(dict.fromkeys(shards)), self._own_reader()
        if wants == reader.lease.wants:
            return
        if unknown := [shard for shard in wants if shard not in self._sizes]:
            raise UsageError(f"{self.name} has no shard {unknown[0]}")
        needed = sum(self._sizes[shard] for shard in wants)
        if self._cache_bytes is not None and self.room_bytes is not None and needed > self.room_bytes:
            raise UsageError(
                f"cache_bytes is {format_bytes(self._cache_bytes)}, {len(wants)} shards at once and the small "
                f"files take {format_bytes(needed + self._cache_bytes - self.room_bytes)}: give more, or a smaller span"
            )
        self._wants = wants
        reader.change(replace(reader.lease, wants=wants))

    def wait(self, shard: str) -> None:
        """Return when `shard`, which must be wanted, is in `directory` and verified.

        Raises what keeps it away: `HubError`, `AuthError`, `DiskFull`. In another thread it gives up with a `HubError`
        when the main thread has ended.
        """
        reader = self._own_reader()
        if shard in reader.ready:
            return
        if shard not in reader.lease.wants:
            raise UsageError(f"{shard} was not wanted: name it to want() before wait()")
        while not reader.has(shard):
            if not threading.main_thread().is_alive():
                raise HubError(f"{self.name}: {shard} had not come when the program ended")
            time.sleep(POLL_SECONDS)

    def has_arrived(self, shard: str) -> bool:
        """Whether `wait` would return at once."""
        reader = self._own_reader()
        try:
            return shard in reader.ready or (shard in reader.lease.wants and reader.has(shard))
        except ShardkitError:
            return False

    def reserve_edges(self, counts: Sequence[int]) -> None:
        """Leave room for edges of so many tokens each: what `save_edge` will write."""
        itemsize = np.dtype(self.manifest.dtype).itemsize
        self._edge_bytes = sum(edge_bytes(count, itemsize) for count in counts)
        reader = self._own_reader()
        reader.change(replace(reader.lease, edge_bytes=self._edge_bytes))

    def edge(self, name: str, count: int) -> Tokens | None:
        """An edge that was kept by this or another process; None where there is none."""
        return self._edges.read(name, count)

    def save_edge(self, name: str, tokens: Tokens) -> None:
        """Keep the edge of a shard, for when the shard is gone. Raises `OutputError` or `DiskFull`."""
        when_there_is_room(self.directory, lambda: self._edges.write(name, tokens))

    def switch(self, stream: TokenStream, numbers: Sequence[int]) -> None:
        """Unmap all shards of `stream` but these, nearest need first, and want these alone."""
        stream.close_all_but(numbers)
        self.want([stream.shards[number].file for number in numbers])

    @contextlib.contextmanager
    def one_more(self, shard: str) -> Iterator[None]:
        """A block in which `shard` is here, beside what this reader wants: for a short look."""
        other = copy.copy(self)
        try:
            other.want([shard])
            other.wait(shard)
            yield
        finally:
            other.close()

    def close(self) -> None:
        """Leave: from here on this reader wants nothing. The downloader ends when its last reader has left."""
        if self._reader is not None:
            self._reader.leave()
            self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def _own_reader(self) -> Reader:
        reader = self._reader
        if reader is None or reader.pid != os.getpid():  # a copy, or a fork
            reader = Reader(self._folder, self._source, self._asked, self._cache_bytes, self._digest)
            self._set_reader(reader)
            reader.change(replace(reader.lease, wants=self._wants, edge_bytes=self._edge_bytes))
        return reader

    def _set_reader(self, reader: Reader) -> None:
        self._reader = reader
        weakref.finalize(self, reader.leave)  # a loader that is dropped, not closed, must not keep the downloader

    def _check_split(self) -> None:
        if self.split not in self.manifest.splits:
            held = ", ".join(f"{name} with {len(shards)}" for name, shards in self.manifest.splits.items())
            raise UsageError(f"{self.name} has no {self.split!r} shard (it has {held}): give another split")
        if self.unfinished:
            again = f"give revision={self.revision!r} to get" if self.revision else "there is no way to get"
            warnings.warn(
                f"{self.name} is still being written: this run has its first "
                f"{counted(len(self.manifest.shards), 'shard')}, "
                f"{self.manifest.tokens:,} tokens, and later ones do not come into it; {again} the same again",
                ShardkitWarning,
                stacklevel=3,
            )
