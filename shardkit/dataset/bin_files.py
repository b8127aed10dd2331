"""`.bin` files of tokens, in place: llm.c's and modded-nanogpt's, 256 int32 of header and then the tokens, and
nanoGPT's `train.bin` and `val.bin`, which are nothing but tokens."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from shardkit.errors import ShardError
from shardkit.files import open_file

HEADER_BYTES = 1024
TokenType = np.dtype[np.uint16] | np.dtype[np.uint32]
MAGIC: dict[tuple[int, int], TokenType] = {
    (20240520, 1): np.dtype("<u2"),  # magic, version: GPT-2
    (20240801, 7): np.dtype("<u4"),  # Llama 3
}
_NUMBERED = re.compile(r"(?P<prefix>[^/\\\x00-\x1f\x7f]+)_(?P<split>[a-z]+)_(?P<index>[0-9]{6,15})\.bin")
_WHOLE = re.compile(r"(?:.+_)?(?P<split>train|val)\.bin")  # tiny_shakespeare_val.bin
BARE_NAMES = ("val.bin", "train.bin")  # of nanoGPT


class NamedShard(NamedTuple):
    """A file of that `number` in the stream, of a `split`; `prefix` is what its name begins with."""

    number: int
    path: Path
    prefix: str
    split: str


def bin_files(directory: Path) -> list[NamedShard]:
    """The files of tokens in a folder, in stream order: the numbered ones of llm.c, else a val and a train file."""
    paths = sorted(directory.glob("*.bin"))
    matches = [(match, path) for path in paths if (match := _NUMBERED.fullmatch(path.name))]
    numbered = [NamedShard(int(match["index"]), path, match["prefix"], match["split"]) for match, path in matches]
    if numbered:
        return sorted(numbered)
    splits = [(m["split"], p) for p in paths if (m := _WHOLE.fullmatch(p.name)) and not p.with_suffix(".idx").exists()]
    ordered = sorted(splits, key=lambda item: (item[0] != "val", item[1].name))
    return [NamedShard(n, path, path.stem.removesuffix(split), split) for n, (split, path) in enumerate(ordered)]


def split_of(path: Path) -> str | None:
    """The split that the name of a file of tokens says; None for another name."""
    match = _NUMBERED.fullmatch(path.name) or _WHOLE.fullmatch(path.name)
    return None if match is None else match["split"]


def is_llmc(path: Path) -> bool:
    """Whether a file begins with a header of llm.c."""
    try:
        with open_file(path) as file:
            return _magic(file.read(8)) is not None
    except OSError:
        return False


def bin_header(file: BinaryIO, path: Path) -> tuple[int, np.dtype[np.unsignedinteger], int]:
    """The tokens of a `.bin` file that is open at its beginning, their dtype, and the bytes before the first one.

    Raises `ShardError`, which names `path`, for a file that is neither llm.c's nor nanoGPT's, or not as long as its
    header says; and `OSError`.
    """
    size, head = os.fstat(file.fileno()).st_size, file.read(HEADER_BYTES)
    dtype = _magic(head)
    if dtype is None or len(head) < HEADER_BYTES:
        if path.name not in BARE_NAMES:
            raise ShardError(f"{path.name} has no llm.c header (magic 20240520 version 1, or 20240801 version 7)")
        if size % 2 or not size:
            raise ShardError(f"{path} has {size:,} bytes: not one or more uint16 tokens, as nanoGPT has them")
        file.seek(0)
        return size // 2, np.dtype("<u2"), 0
    tokens = int.from_bytes(head[8:12], "little", signed=True)
    if tokens <= 0 or size != HEADER_BYTES + tokens * dtype.itemsize:
        raise ShardError(
            f"{path.name} has {size:,} bytes, its header says {tokens:,} tokens of {dtype.itemsize} bytes: it is no "
            "whole shard, fetch or make it again"
        )
    return tokens, dtype, HEADER_BYTES


def _magic(head: bytes) -> TokenType | None:
    return MAGIC.get((int.from_bytes(head[:4], "little"), int.from_bytes(head[4:8], "little")))
