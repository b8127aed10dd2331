"""Whether a file on disk is the shard that a manifest or a journal names: the one check of size, header and SHA-256.

Files on their way here are hashed as they come, in `remote/download.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import edges_sha256, read_header
from shardkit.errors import ShardError
from shardkit.files import open_file, sha256_file


def check_shard(path: Path, shard: ShardInfo, *, dtype: str | None = None, hashed: bool = False) -> None:
    """Check that the file at `path` is `shard`: its size in bytes always, and, as far as asked for, its content.

    With `dtype` ("uint16" or "uint32") the `.npy` header must say that dtype and `shard.tokens` tokens. With `hashed`
    every byte is read and the SHA-256 compared; of a shard that has none (a bare one) the edges. Raises `ShardError`.
    """
    try:
        if dtype is None:
            _check_size(path, path.stat().st_size, shard)
        else:
            with open_file(path) as file:
                check_open_shard(file, path, shard, dtype)
        expected = shard.sha256 or shard.edges
        sha256 = _hash(path, shard) if hashed and expected else expected
    except OSError as error:
        raise _unreadable(path, error) from error
    if sha256 != expected:
        raise ShardError(
            f"{path} has SHA-256 {sha256[:12]}..., expected {expected[:12]}...: it is damaged, fetch or make it again"
        )


def check_sizes(directory: Path, shards: Iterable[ShardInfo]) -> None:
    """Check that each shard is in `directory` with the right size, by one listing: cheap also for many thousands."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError), os.scandir(directory) as entries:  # what could not be listed is checked alone
        sizes.update((entry.name, entry.stat().st_size) for entry in entries if entry.name.endswith(".npy"))
    for shard in shards:
        if sizes.get(shard.file) != shard.bytes:
            check_shard(directory / shard.file, shard)


class SeenShards:
    """Shards in `directory` whose content is known, because they were written or hashed: `note` remembers which file
    that was, and `check` reads a shard again only where another file, or a changed one, is in its place."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[str, tuple[int, int, int]] = {}

    def note(self, shard: ShardInfo) -> None:
        """The file that is there now is `shard`. Raises `ShardError` if none is."""
        self._files[shard.file] = self._file_of(shard)

    def check(self, shard: ShardInfo) -> None:
        """Raise `ShardError` unless `shard` is there, byte for byte."""
        seen = self._file_of(shard)
        if self._files.get(shard.file) != seen:
            check_shard(self.directory / shard.file, shard, hashed=True)
            self._files[shard.file] = seen

    def _file_of(self, shard: ShardInfo) -> tuple[int, int, int]:
        path = self.directory / shard.file
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        _check_size(path, status.st_size, shard)
        return status.st_ino, status.st_mtime_ns, status.st_size


def check_open_shard(file: BinaryIO, path: Path, shard: ShardInfo, dtype: str) -> None:
    """`check_shard` of a file that is open, at its beginning: size and header. Raises `OSError` too."""
    _check_size(path, os.fstat(file.fileno()).st_size, shard)
    header = read_header(file, path)
    if header.tokens != shard.tokens or header.dtype.name != dtype:
        raise ShardError(
            f"{path} holds {header.tokens:,} {header.dtype.name} tokens, expected {shard.tokens:,} {dtype}: fetch or "
            "make it again"
        )


def _hash(path: Path, shard: ShardInfo) -> str:
    """The hash of the file that says most of what is known of `shard`."""
    if shard.sha256:
        return sha256_file(path)
    with open_file(path) as file:
        return edges_sha256(file)


def _check_size(path: Path, size: int, shard: ShardInfo) -> None:
    if size != shard.bytes:
        raise ShardError(f"{path} has {size:,} bytes, expected {shard.bytes:,}: fetch or make it again")


def _unreadable(path: Path, error: OSError) -> ShardError:
    if isinstance(error, FileNotFoundError):
        return ShardError(f"{path} is missing: fetch or make it again")
    return ShardError(f"cannot open shard {path}: {error.strerror or error}")
