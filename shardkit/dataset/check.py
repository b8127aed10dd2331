"""Whether a file on disk is the shard that a manifest or a journal names: the one check of size, header and SHA-256.

Files on their way here are hashed as they come, in `remote/download.py`.
"""

from __future__ import annotations

import os
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import read_header
from shardkit.errors import ShardError
from shardkit.files import sha256_open


def check_shard(path: Path, shard: ShardInfo, *, dtype: str | None = None, hashed: bool = False) -> None:
    """Check that the file at `path` is `shard`: its size in bytes always, and, as far as asked for, its content.

    With `dtype` ("uint16" or "uint32") the `.npy` header must say that dtype and `shard.tokens` tokens. With `hashed`
    every byte is read and the SHA-256 compared, unless the shard has none (a bare one). Raises `ShardError`.
    """
    try:
        _check_size(path, path.stat().st_size, shard)
        if dtype is not None or hashed:
            with open(path, "rb") as file:
                if dtype is not None:
                    check_open_shard(file, path, shard, dtype)
                    file.seek(0)
                if hashed:
                    check_hash(file, path, shard)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: fetch or make it again") from None
    except OSError as error:
        raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from error


def check_open_shard(file: BinaryIO, path: Path, shard: ShardInfo, dtype: str) -> None:
    """`check_shard` of a file that is open, at its beginning: size and header. Raises `OSError` too."""
    _check_size(path, os.fstat(file.fileno()).st_size, shard)
    header = read_header(file, path)
    if header.tokens != shard.tokens or header.dtype.name != dtype:
        raise ShardError(
            f"{path} holds {header.tokens:,} {header.dtype.name} tokens, expected {shard.tokens:,} {dtype}: fetch or "
            "make it again"
        )


def check_hash(file: BufferedReader, path: Path, shard: ShardInfo) -> None:
    """Check the SHA-256 of a file that is open, at its beginning, unless `shard` has none. Raises `OSError` too."""
    if shard.sha256 and (sha256 := sha256_open(file)) != shard.sha256:
        raise ShardError(
            f"{path} has SHA-256 {sha256[:12]}..., expected {shard.sha256[:12]}...: it is damaged, fetch or make it "
            "again"
        )


def _check_size(path: Path, size: int, shard: ShardInfo) -> None:
    if size != shard.bytes:
        raise ShardError(f"{path} has {size:,} bytes, expected {shard.bytes:,}: fetch or make it again")
