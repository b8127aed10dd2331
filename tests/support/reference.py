"""The reference algorithm, slow and obvious: what `fineweb.py` writes for a list of documents."""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@cache
def gpt2() -> Any:
    """tiktoken's GPT-2 encoding, its vocabulary put in place first."""
    from shardkit.tokenization.tiktoken_files import load_encoding

    return load_encoding("gpt2")


def stream(texts: Iterable[str | None], tokenizer: str = "gpt2") -> np.ndarray:
    """`[EOT] + encode_ordinary(text)` for each text, in order; of the tokenizer `bytes`, 256 and the bytes."""
    tokens: list[int] = []
    for text in texts:
        if tokenizer == "bytes":
            tokens += [256, *(text or "").encode()]
        else:
            tokens += [gpt2().eot_token, *gpt2().encode_ordinary(text or "")]
    return np.array(tokens, dtype=np.uint16)


def shard_bytes(
    texts: Iterable[str | None],
    shard_tokens: int,
    prefix: str,
    val_shards: int | None = None,
    *,
    tokenizer: str = "gpt2",
) -> dict[str, bytes]:
    """File name -> bytes of every shard, by `np.save`. Beyond `fineweb.py`: where one shard would hold everything, its
    first 1 % is val and the rest train, unless `val_shards` is given."""
    tokens = stream(texts, tokenizer)
    starts = list(range(0, len(tokens), shard_tokens))
    if val_shards is None and len(starts) == 1 and len(tokens) > 1:
        starts.append(max(1, len(tokens) // 100))
    files = {}
    for index, (at, end) in enumerate(zip(starts, [*starts[1:], len(tokens)], strict=True)):
        split = "val" if index < (1 if val_shards is None else val_shards) else "train"
        buffer = io.BytesIO()
        np.save(buffer, tokens[at:end])
        files[f"{prefix}_{split}_{index:06d}.npy"] = buffer.getvalue()
    return files


def folder_bytes(directory: Path) -> dict[str, bytes]:
    """File name -> bytes of the shards in a folder."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.npy"))}
