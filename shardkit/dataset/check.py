"""Whether a file is the shard that a manifest or a journal names: the one check that every part of shardkit uses."""

from __future__ import annotations

from pathlib import Path

from shardkit.dataset.manifest import ShardInfo
from shardkit.dataset.shards import open_shard
from shardkit.errors import ShardError
from shardkit.files import sha256_file


def check_shard(path: Path, shard: ShardInfo, *, dtype: str | None = None, hashed: bool = False) -> None:
    """Check that the file at `path` is `shard`: its size in bytes always, and, as far as asked for, its content.

    With `dtype` ("uint16" or "uint32") the `.npy` header must say that dtype and `shard.tokens` tokens. With `hashed`
    every byte is read and the SHA-256 compared, unless the shard has none (a bare one). Raises `ShardError`.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path} is missing: fetch or make it again") from None
    except OSError as error:
        raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from error
    if size != shard.bytes:
        raise ShardError(f"{path} has {size:,} bytes, expected {shard.bytes:,}: fetch or make it again")
    if dtype is not None:
        tokens = open_shard(path)
        if len(tokens) != shard.tokens or tokens.dtype.name != dtype:
            raise ShardError(
                f"{path} holds {len(tokens):,} {tokens.dtype.name} tokens, expected {shard.tokens:,} {dtype}: fetch or "
                "make it again"
            )
    if hashed and shard.sha256:
        try:
            sha256 = sha256_file(path)
        except OSError as error:
            raise ShardError(f"cannot read shard {path}: {error.strerror or error}") from error
        if sha256 != shard.sha256:
            raise ShardError(
                f"{path} has SHA-256 {sha256[:12]}..., expected {shard.sha256[:12]}...: it is damaged, fetch or "
                "make it again"
            )
