"""A split as one stream of tokens across its shards, read out of memory maps. Knows no windows, order or torch.

Maps are opened when they are first read, at most a few hundred at once (each holds a file descriptor), and what was
read is handed back to the kernel every 64 MB: the page cache is free to keep it, the process's resident set is not.
"""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ManifestError, ShardError, UsageError
from shardkit.files import sha256_file
from shardkit.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.shards import open_shard

_RESIDENT_BYTES = 64 << 20
_FAULT_AROUND = 64 << 10  # what Linux maps in around each page that a read touches
_MAX_OPEN = 256
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None) if sys.platform != "win32" else None

Tokens = NDArray[np.unsignedinteger]


class TokenStream:
    """The shards of one split, end to end: token `t` of the stream is token `t - starts[i]` of shard `i`.

    For one thread at a time. `close` lets go of every map; reading again opens them anew.
    """

    def __init__(self, directory: Path, shards: Sequence[ShardInfo], dtype: str) -> None:
        self.directory = directory
        self.dtype = np.dtype(dtype)
        self.shards = tuple(shards)
        self.starts = [0, *accumulate(shard.tokens for shard in self.shards)]
        self._maps: dict[int, tuple[Tokens, mmap.mmap]] = {}
        self._touched = 0

    @property
    def tokens(self) -> int:
        """Tokens in the whole stream."""
        return self.starts[-1]

    def shard_of(self, token: int) -> tuple[int, int]:
        """The shard that holds stream token `token`, and its offset there, in tokens."""
        number = bisect_right(self.starts, token) - 1
        return number, token - self.starts[number]

    def run(self, token: int, count: int) -> Tokens | None:
        """The `count` tokens from `token` on, straight out of the map, where one shard holds them all; else None.

        The result points into the map: copy it out before the next read.
        """
        number = bisect_right(self.starts, token) - 1
        if token + count > self.starts[number + 1]:
            return None
        return self._read(number, token - self.starts[number], count)

    def read(self, token: int, out: Tokens) -> None:
        """Copy `len(out)` tokens from `token` on into `out`, across shard ends."""
        whole = self.run(token, len(out))
        if whole is not None:
            out[:] = whole
            return
        done = 0
        while done < len(out):
            number, offset = self.shard_of(token + done)
            count = min(len(out) - done, self.shards[number].tokens - offset)
            out[done : done + count] = self._read(number, offset, count)
            done += count

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    def close(self) -> None:
        """Unmap every shard."""
        self._maps.clear()
        self._touched = 0

    def _read(self, number: int, offset: int, count: int) -> Tokens:
        tokens, _ = self._maps.get(number) or self._open(number)
        self._touched += count * tokens.itemsize + _FAULT_AROUND
        if self._touched > _RESIDENT_BYTES:
            self._let_go()
        return tokens[offset : offset + count]

    def _let_go(self) -> None:
        """Drop what is resident of every map. Data stays in the page cache; a map read again faults it in again."""
        self._touched = 0
        if _DONTNEED is None:
            self._maps.clear()
            return
        for _, mapped in self._maps.values():
            mapped.madvise(_DONTNEED)

    def _open(self, number: int) -> tuple[Tokens, mmap.mmap]:
        shard = self.shards[number]
        path = self.directory / shard.file
        tokens = open_shard(path)
        if len(tokens) != shard.tokens or tokens.dtype != self.dtype:
            raise ShardError(
                f"{path} now holds {len(tokens):,} {tokens.dtype} tokens, {shard.tokens:,} {self.dtype} when the "
                "loader was made: it was replaced meanwhile, make a new loader"
            )
        mapped: object = tokens.base
        if not isinstance(mapped, mmap.mmap):
            raise TypeError(f"np.memmap of {path} is based on {type(mapped).__name__}, not on an mmap")
        while len(self._maps) >= _MAX_OPEN:  # the oldest first: as good as any under a shuffle, right without one
            del self._maps[next(iter(self._maps))]
        self._maps[number] = tokens.view(np.ndarray), mapped
        return self._maps[number]


def open_split(source: str | os.PathLike[str] | Manifest, split: str, *, verify: bool) -> tuple[Manifest, TokenStream]:
    """Open `split` of a folder or of a manifest that was read from one: sizes and headers checked, hashes on request.

    Raises `ManifestError` where there is no finished dataset, `UsageError` where it has no such split, and `ShardError`
    for the first shard that is not what the manifest says.
    """
    if isinstance(source, Manifest):
        if source.directory is None:
            raise UsageError("this Manifest was not read from a folder: give the folder, or Manifest.load(folder)")
        manifest, directory = source, source.directory
    else:
        directory = Path(source)
        if not directory.is_dir():
            raise ManifestError(f"no folder {directory}: give a folder of shards (`shardkit pull` fetches one)")
        if (directory / MANIFEST_NAME).exists() or (directory / ".shardkit").exists():
            manifest = Manifest.load(directory)
        else:
            manifest = Manifest.from_shards(directory)
    shards = manifest.splits.get(split)
    if not shards:
        raise UsageError(_no_split(manifest, directory, split))
    manifest.check_files(directory, split=split)
    if verify:
        _verify(directory, shards)
    return manifest, TokenStream(directory, shards, manifest.dtype)


def _no_split(manifest: Manifest, directory: Path, split: str) -> str:
    held = ", ".join(f"{name} with {len(shards)}" for name, shards in manifest.splits.items())
    message = f"{directory} has no {split!r} shard (it has {held}, {manifest.tokens:,} tokens in all): "
    if split == "train":
        return message + (
            f"the validation shards took it all, tokenize again with --shard-tokens {max(1, manifest.tokens // 2)} or "
            "less, or fewer --val-shards"
        )
    if split == "val":
        return message + "tokenize again with --val-shards 1, or give another split"
    return message + f"give split={next(iter(manifest.splits))!r}"


def _verify(directory: Path, shards: list[ShardInfo]) -> None:
    for shard in shards:
        if not shard.sha256:
            raise UsageError(f"{directory} has no {MANIFEST_NAME}, so no hashes to verify against: drop verify=True")
        found = sha256_file(directory / shard.file)
        if found != shard.sha256:
            raise ShardError(
                f"{directory / shard.file} has SHA-256 {found}, the manifest says {shard.sha256}: fetch or "
                "make it again"
            )
