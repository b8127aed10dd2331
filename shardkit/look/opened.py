"""A dataset that is looked at where it is: a folder, or a remote, of which a shard at a time is fetched, checked,
looked at and removed again."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from shardkit.arguments import place_text, user_path
from shardkit.cores import available_cores
from shardkit.dataset.folder import shard_files
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import SHARD_NAME
from shardkit.dataset.tokenizer_file import write_tokenizer_files
from shardkit.errors import DiskFull, HubError, TokenizerError, UsageError
from shardkit.files import format_bytes, free_bytes
from shardkit.remote.address import hint_at_folder, is_remote, open_remote
from shardkit.remote.download import WantedFile, fetch_right, fetch_tokenizer
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.listing import check_listing, published
from shardkit.tokenization.tokenizer import Tokenizer

_FETCHED_AT_ONCE = 4
_MOST_THREADS = 16


class OpenedDataset(Protocol):
    """A dataset, its `name` for people, and its `manifest`, whose `directory` has the dataset's own tokenizer."""

    name: str
    manifest: Manifest

    def shard(self, shard: ShardInfo) -> AbstractContextManager[BufferedReader]:
        """The shard's file at its beginning, of which size and header are checked; one that was fetched is removed when
        the block ends. In any thread. Raises `ShardError`, and `HubError` for one that cannot be had as it must be."""

    def place_of(self, shard: ShardInfo) -> Path:
        """The shard's path, or what stands for one in messages."""

    def unlisted(self) -> list[str]:
        """Files that have the name of a shard, and that the manifest does not list."""

    def threads(self, shards: list[ShardInfo]) -> int:
        """How many of `shards` to look at at once. Raises `DiskFull` where there is no room to fetch one."""

    def stop(self) -> None:
        """Cut what is being fetched, in whichever thread."""


@contextmanager
def opened(place: str | os.PathLike[str]) -> Iterator[OpenedDataset]:
    """The dataset at `place`, a folder or a remote (as `pull` takes it), while the block runs.

    Raises `ManifestError`, `HubError`, `AuthError` or `UsageError` where there is no whole dataset.
    """
    if not is_remote(place):
        yield _Folder(user_path(place))
        return
    address = place_text(place)
    with (
        hint_at_folder(address),
        tempfile.TemporaryDirectory(prefix="shardkit-", ignore_cleanup_errors=True) as folder,
    ):  # threads that Ctrl-C has left to themselves may still write there
        remote = open_remote(address)
        yield _Fetched(remote, Path(folder))


def tokenizer_of(manifest: Manifest) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that a dataset was made with, or why there is none."""
    if manifest.tokenizer is None:
        return None, "no manifest names the tokenizer"
    try:
        return Tokenizer.of_dataset(manifest, encoder="tiktoken"), None
    except (TokenizerError, UsageError, HubError) as error:
        return None, str(error)


class _Folder:
    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._known = KnownFiles(directory)
        self.manifest = Manifest.of_folder(directory)

    def shard(self, shard: ShardInfo) -> AbstractContextManager[BufferedReader]:
        return self._known.open(shard, self.manifest.dtype)

    def place_of(self, shard: ShardInfo) -> Path:
        return self._known.directory / shard.file

    def unlisted(self) -> list[str]:
        listed = {shard.file for shard in self.manifest.shards}
        return sorted({path.name for path in shard_files(self._known.directory)} - listed)

    def threads(self, shards: list[ShardInfo]) -> int:
        return max(1, min(available_cores(), _MOST_THREADS, len(shards)))

    def stop(self) -> None:
        pass


class _Fetched:
    def __init__(self, remote: Remote, folder: Path) -> None:
        self._remote, self._folder = remote, folder
        self._files: dict[str, RemoteFile] = remote.files()
        self.name = remote.name
        dataset = published(remote, self._files)
        if dataset is None:
            raise HubError(
                f"{remote.name} has no manifest.json, nothing says what should be in it: fetch it with `shardkit pull`,"
                " and look at the folder"
            )
        self.manifest = dataclasses.replace(dataset[1], directory=folder)
        write_tokenizer_files(folder, fetch_tokenizer(remote, self._files, folder, self.manifest))

    @contextmanager
    def shard(self, shard: ShardInfo) -> Iterator[BufferedReader]:
        item = WantedFile.of(shard)
        check_listing(self._remote, [item], self._files)
        path = fetch_right(self._remote, item, self._folder)
        if path is None:
            raise HubError(
                f"{self.name}: {shard.file} arrives with other bytes than its manifest.json promises: its owner mends "
                "it with `shardkit push --repair`"
            )
        try:
            with KnownFiles(path.parent, listed=False).open(
                dataclasses.replace(shard, file=path.name), self.manifest.dtype
            ) as file:
                yield file
        finally:
            path.unlink(missing_ok=True)

    def place_of(self, shard: ShardInfo) -> Path:
        return Path(f"{self.name}/{shard.file}")

    def unlisted(self) -> list[str]:
        listed = {shard.file for shard in self.manifest.shards}
        return sorted(name for name in self._files if SHARD_NAME.match(name) and name not in listed)

    def threads(self, shards: list[ShardInfo]) -> int:
        largest, free = max((shard.bytes for shard in shards), default=1), free_bytes(self._folder)
        if largest > free:
            raise DiskFull(
                f"no room in {self._folder.parent} for a shard of {format_bytes(largest)}, {format_bytes(free)} are "
                "free: make room, or set TMPDIR to a folder on another disk"
            )
        return max(1, min(_FETCHED_AT_ONCE, free // largest, len(shards)))

    def stop(self) -> None:
        self._remote.stopping.set()
