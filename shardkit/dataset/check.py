"""Whether a file on disk is the shard that a manifest or a journal names: the one check of size, header and SHA-256.

Files on their way here are hashed as they come, in `remote/download.py`.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from shardkit.dataset.patience import read_patiently
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import MEND, edges_sha256, read_header
from shardkit.errors import ShardError
from shardkit.files import open_file, sha256_open


def check_shard(path: Path, shard: ShardInfo, *, dtype: str | None = None, hashed: bool = False) -> None:
    """Check that the file at `path` is `shard`: its size in bytes always, and, as far as asked for, its content.

    With `dtype` ("uint16" or "uint32") the `.npy` header must say that dtype and `shard.tokens` tokens. With `hashed`
    every byte is read and the SHA-256 compared; of a shard that has none (a bare one) the edges. Raises `ShardError`.
    """

    def check() -> None:
        with open_file(path) as file:
            if dtype is None:
                check_size(path, os.fstat(file.fileno()).st_size, shard)
            else:
                check_open_shard(file, path, shard, dtype)
                file.seek(0)
            if hashed:
                check_hash(file, path, shard)

    read_patiently(path, check)


def check_open_shard(file: BinaryIO, path: Path, shard: ShardInfo, dtype: str) -> None:
    """`check_shard` of a file that is open, at its beginning: size and header. Raises `OSError` too."""
    check_size(path, os.fstat(file.fileno()).st_size, shard)
    header = read_header(file, path)
    if header.tokens != shard.tokens or header.dtype.name != dtype:
        raise ShardError(
            f"{path} holds {header.tokens:,} {header.dtype.name} tokens, expected {shard.tokens:,} {dtype}: {MEND}"
        )


def check_hash(file: BufferedReader, path: Path, shard: ShardInfo) -> None:
    """Check the SHA-256 of a file that is open, at its beginning; of a shard that has none (a bare one) the edges.

    Raises `ShardError`, and `OSError`.
    """
    if shard.sha256:
        check_sha256(path, sha256_open(file), shard)
    if not shard.sha256 and shard.edges not in ("", edges_sha256(file)):
        raise ShardError(f"{path} is not the file that its manifest was made of: it is damaged, or was replaced")


def check_sha256(path: Path, sha256: str, shard: ShardInfo) -> None:
    """Check the `sha256` of all bytes of the file at `path`. Raises `ShardError`."""
    if sha256 != shard.sha256:
        raise ShardError(f"{path} has SHA-256 {sha256[:12]}..., expected {shard.sha256[:12]}...: it is damaged, {MEND}")


def check_size(path: Path, size: int, shard: ShardInfo) -> None:
    """Check the `size` in bytes of the file at `path`. Raises `ShardError`."""
    if size != shard.bytes:
        raise ShardError(f"{path} has {size:,} bytes, expected {shard.bytes:,}: {MEND}")
