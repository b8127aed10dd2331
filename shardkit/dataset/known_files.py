"""Which file each shard of a folder was when the dataset was opened. What is opened later must be that very file.

A folder may be given another dataset with shards of the same names and sizes while somebody reads it. Whoever replaces
a dataset takes its manifest away first and writes the new one last. So a reader that lists the files *before* it reads
the manifest has listed that dataset's files, or later finds files that it did not list.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardkit.dataset.check import check_hash, check_open_shard, check_shard, check_size
from shardkit.dataset.patience import unreadable
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import map_tokens
from shardkit.errors import ShardError
from shardkit.files import open_file, sha256_open


class FileIdentity(NamedTuple):
    """What differs between a file and another one under its name, or between a file before and after a change."""

    inode: int
    size: int
    written_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        """The identity in what `os.stat` or `os.fstat` returned."""
        inode = 0 if os.name == "nt" else status.st_ino  # listing a folder does not give it on Windows
        return cls(inode, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """For a block that reads the file at `path` more than once: `ShardError` at its end if the file was replaced in it.

    A missing file is no error here; the block itself finds that.
    """
    before = _identity_at(path)
    yield
    if before != _identity_at(path):
        raise ShardError(f"{path} was replaced while it was read: run the same command again")


def _identity_at(path: Path) -> FileIdentity | None:
    with contextlib.suppress(OSError):
        return FileIdentity.of(path.stat())
    return None


class KnownFiles:
    """The shard files of `directory`, as they are now. Make it before the manifest is read.

    Another file under a shard's name is accepted only if its bytes have the shard's SHA-256: then it was fetched or
    copied again. A bare shard has no SHA-256, so there the file must be the very same. Without `listed` a file becomes
    known when it is first opened.
    """

    def __init__(self, directory: Path, *, listed: bool = True) -> None:
        self.directory = directory
        self._known: dict[str, FileIdentity] = {}
        self._checked: set[str] = set()
        if listed:
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.endswith((".npy", ".bin")):
                        with contextlib.suppress(OSError):  # a link to nothing, a file that has just gone
                            self._known[entry.name] = FileIdentity.of(entry.stat())

    def check_sizes(self, shards: Iterable[ShardInfo]) -> None:
        """Check that each shard was listed with the right size: cheap also for many thousands. Raises `ShardError`."""
        for shard in shards:
            known = self._known.get(shard.file)
            if known is None or known.size != shard.bytes:
                check_shard(self.directory / shard.file, shard)

    def check_descriptor(self, descriptor: int, shard: ShardInfo, dtype: np.dtype[np.unsignedinteger]) -> None:
        """`check` of an open file's `descriptor`, which stays open: one call of the system for a file that is known."""
        found = FileIdentity.of(os.fstat(descriptor))
        if not self._is_checked(shard, found):
            with open(descriptor, "rb", closefd=False) as file:
                self.check(file, shard, dtype.name)

    def _is_checked(self, shard: ShardInfo, found: FileIdentity) -> bool:
        return shard.file in self._checked and self._known.get(shard.file) == found

    def check(self, file: BufferedReader, shard: ShardInfo, dtype: str) -> None:
        """Check that `file`, open at its beginning, is the one known as `shard`: once its size and header, too.

        Raises `ShardError`, and `OSError`.
        """
        found = FileIdentity.of(os.fstat(file.fileno()))
        known = self._known.get(shard.file, found)
        if self._is_checked(shard, found):
            return
        path = self.directory / shard.file
        check_open_shard(file, path, shard, dtype)
        file.seek(0)
        if known == found:
            if not shard.sha256:
                check_hash(file, path, shard)  # its edges
        elif not shard.sha256 or sha256_open(file) != shard.sha256:
            raise ShardError(
                f"{path} is another file than when the dataset was opened, with other tokens: the folder was replaced "
                "while it was in use; open the dataset again to read what is there now"
            )
        self._known[shard.file] = found
        self._checked.add(shard.file)

    @contextlib.contextmanager
    def open(self, shard: ShardInfo, dtype: str) -> Iterator[BufferedReader]:
        """The file of `shard`, checked and at its beginning. Raises `ShardError`."""
        path = self.directory / shard.file
        try:
            with open_file(path) as file:
                self.check(file, shard, dtype)
                file.seek(0)
                yield file
        except OSError as error:
            raise unreadable(path, error) from None

    def map(self, shard: ShardInfo, dtype: str) -> np.memmap:
        """The tokens of `shard`, mapped read-only, of a file that is checked. Raises `ShardError`."""
        with self.open(shard, dtype) as file:
            return map_tokens(file, self.directory / shard.file)

    def written_ns(self, shard: ShardInfo) -> int:
        """When the file of `shard` was last written, as far as is known. Raises `ShardError` for one that is gone."""
        path = self.directory / shard.file
        try:
            return self._known.setdefault(shard.file, FileIdentity.of(path.stat())).written_ns
        except OSError as error:
            raise unreadable(path, error) from None

    def forget(self, *, but: Collection[str]) -> None:
        """Forget every file but those: a cache deletes them, and its downloader verifies what it fetches again."""
        self._known = {name: known for name, known in self._known.items() if name in but}
        self._checked.intersection_update(but)


class SeenShards:
    """Shards in `directory` whose content is known, because they were written or hashed: `note` remembers which file
    that was, and `check` reads a shard again only where another file, or a changed one, is in its place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, FileIdentity] = {}

    def note(self, shard: ShardInfo) -> None:
        """The file that is there now is `shard`. Raises `ShardError` if none is."""
        self._files[shard.file] = self._file_of(shard)

    def check(self, shard: ShardInfo) -> None:
        """Raise `ShardError` unless `shard` is there, byte for byte."""
        seen = self._file_of(shard)
        if self._files.get(shard.file) != seen:
            check_shard(self.directory / shard.file, shard, hashed=True)
            self._files[shard.file] = seen

    def _file_of(self, shard: ShardInfo) -> FileIdentity:
        path = self.directory / shard.file
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from None
        check_size(path, status.st_size, shard)
        return FileIdentity.of(status)
