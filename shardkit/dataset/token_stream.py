"""A split as one stream of tokens across its shards. Knows no windows, order or torch.

A long run is handed out straight from a shard's memory map, and every 64 MB what was read is given back to the kernel:
the page cache may keep it, the process's resident set may not. Scattered rows are read with `preadv` instead: a map
grows by up to 2 MB for each 2 kB row (the kernel maps whole folios), and a read at a place costs less than that fault.
Shards are opened when they are first read, at most a few hundred at once.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.dataset.shards import open_shard
from shardkit.errors import ManifestError, ShardError, UsageError
from shardkit.files import sha256_file

_RESIDENT_BYTES = 64 << 20
_MAX_OPEN = 200  # maps, and as many files: each holds a descriptor, and 1,024 is a common limit
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_CAN_PREAD = hasattr(os, "preadv")  # not on Windows
Tokens = NDArray[np.unsignedinteger]


class _OpenFile:
    """A shard opened to be read at any place; closed with its last reference."""

    def __init__(self, descriptor: int, header_bytes: int) -> None:
        self.descriptor = descriptor
        self.header_bytes = header_bytes

    def __del__(self) -> None:
        os.close(self.descriptor)


class TokenStream:
    """The shards of one split, end to end: token `t` of the stream is token `t - starts[i]` of shard `i`.

    For one thread at a time. `close` lets go of every map and file; reading again opens them anew. `wait`, where it is
    set, is called with a shard's file name before it is opened: it may be on its way.
    """

    def __init__(self, directory: Path, shards: Sequence[ShardInfo], dtype: str) -> None:
        self.directory = directory
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shards = tuple(shards)
        self.starts = [0, *accumulate(shard.tokens for shard in self.shards)]
        self._maps: dict[int, np.memmap] = {}
        self._arrays: dict[int, Tokens] = {}  # the same as plain arrays: slicing a memmap costs microseconds
        self._files: dict[int, _OpenFile] = {}
        self._touched = 0
        self.wait: Callable[[str], None] | None = None
        self.eot_id: int | None = None  # the token that begins each document, where it is known

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
        offset = token - self.starts[number]
        if token + count > self.starts[number + 1]:
            return None
        return self._view(number, offset, count)

    def read(self, token: int, out: Tokens) -> None:
        """Copy `len(out)` tokens from `token` on into `out`, across shard ends; `out` is contiguous, of `dtype`."""
        number = bisect_right(self.starts, token) - 1
        while (count := self.starts[number + 1] - token) < len(out):
            self._copy(number, token - self.starts[number], out[:count])
            token, out, number = token + count, out[count:], number + 1
        self._copy(number, token - self.starts[number], out)

    def keep(self, numbers: Collection[int]) -> None:
        """Unmap and close every shard but those: their files may be deleted then."""
        for held in (self._maps, self._arrays, self._files):
            for number in [number for number in held if number not in numbers]:
                del held[number]

    def gather(self, pieces: Sequence[tuple[int, int]], out: Tokens) -> int:
        """Copy `pieces`, (token, count) each, end to end into `out`; returns how many tokens they were.

        For short pieces, two thirds of what `read` takes for each.
        """
        view, size = out.view(np.uint8).data, self.dtype.itemsize
        place = low = high = 0  # in bytes of `out`; the shard of the last piece, in tokens
        for token, count in pieces:
            stop = place + count * size
            if not low <= token <= high - count:
                number = bisect_right(self.starts, token) - 1
                low, high = self.starts[number], self.starts[number + 1]
                if token + count > high or not _CAN_PREAD:
                    self.read(token, out[place // size : stop // size])
                    place, high = stop, 0
                    continue
                file = self._files.get(number) or self._open(number)
                descriptor, skip = file.descriptor, file.header_bytes - low * size
            got = os.preadv(descriptor, (view[place:stop],), skip + token * size)
            if got != stop - place:
                raise self._cut_short(number, stop - place - got)
            place = stop
        return place // size

    def close(self) -> None:
        """Unmap and close every shard."""
        self._maps.clear()
        self._arrays.clear()
        self._files.clear()
        self._touched = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}, "_arrays": {}, "_files": {}}

    def _copy(self, number: int, offset: int, out: Tokens) -> None:
        if not _CAN_PREAD:
            out[:] = self._view(number, offset, len(out))
            return
        file = self._files.get(number) or self._open(number)
        got = os.preadv(file.descriptor, (out.data,), file.header_bytes + offset * self.dtype.itemsize)
        if got != out.nbytes:
            raise self._cut_short(number, out.nbytes - got)

    def _cut_short(self, number: int, missing: int) -> ShardError:
        return ShardError(
            f"{self.directory / self.shards[number].file} ends {missing:,} bytes early: it was cut short while it was "
            "read, fetch or make it again"
        )

    def _view(self, number: int, offset: int, count: int) -> Tokens:
        array = self._arrays.get(number)
        if array is None:
            array = self._map(number)
        self._touched += count * array.itemsize
        if self._touched > _RESIDENT_BYTES:
            self._let_go()
        return array[offset : offset + count]

    def _let_go(self) -> None:
        """Drop what is resident of every map. Data stays in the page cache; a map read again faults it in again."""
        self._touched = 0
        for mapped in self._maps.values():
            base: object = mapped.base
            if _DONTNEED is not None and isinstance(base, mmap.mmap):
                base.madvise(_DONTNEED)

    def _map(self, number: int) -> Tokens:
        while len(self._maps) >= _MAX_OPEN:  # the oldest first
            oldest = next(iter(self._maps))
            del self._maps[oldest], self._arrays[oldest]
        self._maps[number] = self._check(number)
        self._arrays[number] = self._maps[number].view(np.ndarray)
        return self._arrays[number]

    def _open(self, number: int) -> _OpenFile:
        while len(self._files) >= _MAX_OPEN:  # under a shuffle the oldest is as good as any
            del self._files[next(iter(self._files))]
        header_bytes = self._check(number).offset
        path = self.directory / self.shards[number].file
        try:
            self._files[number] = _OpenFile(os.open(path, os.O_RDONLY), header_bytes)
        except OSError as error:
            raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from error
        return self._files[number]

    def _check(self, number: int) -> np.memmap:
        shard = self.shards[number]
        if self.wait is not None:
            self.wait(shard.file)
        path = self.directory / shard.file
        tokens = open_shard(path)
        if len(tokens) != shard.tokens or tokens.dtype != self.dtype:
            raise ShardError(
                f"{path} now holds {len(tokens):,} {tokens.dtype} tokens, {shard.tokens:,} {self.dtype} when the "
                "loader was made: it was replaced meanwhile, make a new loader"
            )
        return tokens


def open_split(source: str | os.PathLike[str] | Manifest, split: str, *, verify: bool) -> tuple[Manifest, TokenStream]:
    """Open `split` of a folder or of a manifest that was read from one: sizes and headers checked, hashes on request.

    Raises `ManifestError` where there is no finished dataset, `UsageError` where it has no such split, and `ShardError`
    for the first shard that is not what the manifest says.
    """
    if isinstance(source, Manifest):
        if source.directory is None:
            raise UsageError("this Manifest was not read from a folder: give the folder, or Manifest.load(folder)")
        manifest, directory, bare = source, source.directory, False
    else:
        directory = Path(source)
        if not directory.is_dir():
            raise ManifestError(f"no folder {directory}: give a folder of shards (`shardkit pull` fetches one)")
        manifest = Manifest.of_folder(directory)
        bare = not (directory / MANIFEST_NAME).exists()
        if bare:
            _check_gapless(manifest, directory)
    stream = open_stream(manifest, split)
    if not bare:  # else every header was read just now
        manifest.check_files(directory, split=split)
    if verify:
        _verify(directory, stream.shards)
    return manifest, stream


def open_stream(manifest: Manifest, split: str) -> TokenStream:
    """The stream of `split`, of shards in the manifest's folder that need not be there yet."""
    if manifest.directory is None:
        raise UsageError("this Manifest was not read from a folder: give the folder, or Manifest.load(folder)")
    shards = manifest.splits.get(split)
    if not shards:
        raise UsageError(_no_split(manifest, manifest.directory, split))
    return TokenStream(manifest.directory, shards, manifest.dtype)


def _check_gapless(manifest: Manifest, directory: Path) -> None:
    """Refuse bare shards with one missing between them: without a manifest nothing else tells a broken download."""
    found = {shard.index for shard in manifest.shards}
    if missing := sorted(set(range(min(found), max(found))) - found):
        raise ManifestError(
            f"{directory} has shards {min(found)} to {max(found)}, but lacks {', '.join(map(str, missing[:5]))}"
            f"{' and more' if len(missing) > 5 else ''}: fetch them, or give Manifest.from_shards(folder) to go without"
        )


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


def _verify(directory: Path, shards: Sequence[ShardInfo]) -> None:
    for shard in shards:
        if not shard.sha256:
            raise UsageError(f"{directory} has no {MANIFEST_NAME}, so no hashes to verify against: drop verify=True")
        found = sha256_file(directory / shard.file)
        if found != shard.sha256:
            raise ShardError(
                f"{directory / shard.file} has SHA-256 {found}, the manifest says {shard.sha256}: fetch or "
                "make it again"
            )
