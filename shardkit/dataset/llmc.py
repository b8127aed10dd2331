"""Shards of llm.c and modded-nanogpt: `.bin` files, 256 int32 of header and then the tokens, to `.npy`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardkit.dataset.shards import ShardWriter
from shardkit.errors import ShardError

_BIN_HEADER_BYTES = 1024
_BIN_DTYPES: dict[tuple[int, int], np.dtype[np.uint16] | np.dtype[np.uint32]] = {
    (20240520, 1): np.dtype("<u2"),  # magic, version: GPT-2
    (20240801, 7): np.dtype("<u4"),  # Llama 3
}
_BLOCK_TOKENS = 1 << 20


def bin_to_npy(path: Path) -> Path:
    """Rewrite an llm.c `.bin` shard as `.npy` beside it, delete it, and return the new path. Memory is flat."""
    size = path.stat().st_size
    header = np.fromfile(path, dtype="<i4", count=256)
    magic = (int(header[0]), int(header[1])) if len(header) == 256 else (0, 0)
    dtype: np.dtype[np.uint16] | np.dtype[np.uint32] | None = _BIN_DTYPES.get(magic)
    if dtype is None:
        raise ShardError(f"{path.name} has no llm.c header (magic 20240520 version 1, or 20240801 version 7)")
    tokens = int(header[2])
    if tokens <= 0 or size != _BIN_HEADER_BYTES + tokens * dtype.itemsize:
        raise ShardError(f"{path.name} has {size:,} bytes, its header says {tokens:,} tokens of {dtype.itemsize} bytes")
    target = path.with_suffix(".npy")
    writer = ShardWriter(target.with_suffix(".tmp"), dtype, tokens)
    stream = np.memmap(path, dtype=dtype, mode="r", offset=_BIN_HEADER_BYTES)
    for start in range(0, tokens, _BLOCK_TOKENS):
        writer.write(stream[start : start + _BLOCK_TOKENS])
    writer.finish(target)
    del stream
    path.unlink()
    return target
