"""A split as one stream of tokens across its shards. Knows no windows, order or torch.

A long run is handed out straight from a shard's memory map, where that is safe (`shard_maps.py`). Scattered rows are
read with `preadv` instead: a map grows by up to 2 MB for each 2 kB row (the kernel maps whole folios), and a read at a
place costs less than that fault. A read that fails is tried again (`patience.py`). A shard is checked when it is first
opened; opened again it must be the file that was checked (`known_files.py`).
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import user_path
from shardkit.dataset.check import check_shard
from shardkit.dataset.folder import MANIFEST_NAME, check_gapless
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.open_files import OpenFiles
from shardkit.dataset.patience import ReadPatience, UnreadError
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shard_maps import ShardMaps
from shardkit.dataset.shards import MEND
from shardkit.errors import ManifestError, ShardError, UsageError

_CAN_PREAD = hasattr(os, "preadv")  # not on Windows, whose `os` mypy knows
Tokens = NDArray[np.unsignedinteger]
Result = TypeVar("Result")


class TokenStream:
    """The shards of one split, end to end: token `t` of the stream is token `t - starts[i]` of shard `i`.

    For one thread at a time. `close` lets go of every map and file; reading opens them anew. `wait`, where it is set,
    is called with a shard's file name before it is opened: it may be on its way. Reading tries again for some seconds
    what fails for a moment; it raises `ShardError` for a shard that is missing, damaged, or another one by now.
    """

    def __init__(self, known: KnownFiles, shards: Sequence[ShardInfo], dtype: str) -> None:
        self.directory = known.directory
        self.known = known
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shards = tuple(shards)
        self.starts = array("q", [0, *accumulate(shard.tokens for shard in self.shards)])
        self.wait: Callable[[str], None] | None = None
        self.eot_id: int | None = None  # the token that begins each document, where it is known
        self._prefix = os.path.join(known.directory, "")
        self._header_bytes = array("i", (s.bytes - s.tokens * self.dtype.itemsize for s in self.shards))
        self._files = OpenFiles(len(self.shards))
        self._descriptors = self._files.descriptors
        self._maps = ShardMaps(self.directory)
        self._run = np.empty(0, self.dtype)

    @property
    def tokens(self) -> int:
        """Tokens in the whole stream."""
        return self.starts[-1]

    def shard_of(self, token: int) -> tuple[int, int]:
        """The shard that holds stream token `token`, and its offset there, in tokens."""
        number = bisect_right(self.starts, token) - 1
        return number, token - self.starts[number]

    def run(self, token: int, count: int) -> Tokens | None:
        """The `count` tokens from `token` on, where one shard holds them all; else None.

        The result points into the shard's map, or is a buffer that the next run overwrites: copy it out before.
        """
        number = bisect_right(self.starts, token) - 1
        if token + count > self.starts[number + 1]:
            return None
        if self._maps.are_safe:
            tokens = self._maps.get(number)
            self._maps.note_read(count * self.dtype.itemsize)
            offset = token - self.starts[number]
            return (self._map(number) if tokens is None else tokens)[offset : offset + count]
        if len(self._run) < count:
            self._run = np.empty(count, self.dtype)
        self.read(token, self._run[:count])
        return self._run[:count]

    def read(self, token: int, out: Tokens) -> None:
        """Copy `len(out)` tokens from `token` on into `out`, across shard ends; `out` is contiguous, of `dtype`."""
        try:
            self._read(token, out)
        except UnreadError as unread:
            self._again(unread, partial(self._read, token, out))

    def _read(self, token: int, out: Tokens) -> None:
        number = bisect_right(self.starts, token) - 1
        while (count := self.starts[number + 1] - token) < len(out):
            self._copy(number, token - self.starts[number], out[:count])
            token, out, number = token + count, out[count:], number + 1
        self._copy(number, token - self.starts[number], out)

    def gather(self, pieces: Sequence[tuple[int, int]], out: Tokens) -> int:
        """Copy `pieces`, (token, count) each, end to end into `out`; returns how many tokens they were.

        For short pieces, two thirds of what `read` takes for each.
        """
        try:
            return self._gather(pieces, out)
        except UnreadError as unread:
            return self._again(unread, partial(self._gather, pieces, out))

    def _gather(self, pieces: Sequence[tuple[int, int]], out: Tokens) -> int:
        view, size = out.view(np.uint8).data, self.dtype.itemsize
        place = low = high = number = 0  # in bytes of `out`; the shard of the last piece, in tokens
        try:
            for token, count in pieces:
                stop = place + count * size
                if not low <= token <= high - count:
                    number = bisect_right(self.starts, token) - 1
                    low, high = self.starts[number], self.starts[number + 1]
                    if token + count > high or not _CAN_PREAD:
                        self._read(token, out[place // size : stop // size])
                        place, high = stop, 0
                        continue
                    if (descriptor := self._descriptors[number]) < 0:
                        descriptor = self._open(number)
                    skip = self._header_bytes[number] - low * size
                at = skip + token * size
                got = os.preadv(descriptor, (view[place:stop],), at)  # type: ignore[attr-defined, unused-ignore]
                if got != stop - place:
                    self._read_on(number, view[place + got : stop], at + got)
                place = stop
        except OSError as error:
            raise UnreadError(number, error) from error
        return place // size

    def _again(self, unread: UnreadError, read: Callable[[], Result]) -> Result:
        """Do what failed again, with the shard's file opened anew, while that may help."""
        patience = ReadPatience()
        while True:
            if self._descriptors[unread.number] >= 0:
                self._files.close_one(unread.number)
            patience.wait(self._path(unread.number), unread.error)
            try:
                return read()
            except UnreadError as error:
                unread = error

    def close_all_but(self, numbers: Collection[int]) -> None:
        """Unmap and close every shard but those: their files may be deleted then, and come again as others."""
        self._maps.close(but=numbers)
        self._files.close(but=numbers)
        self.known.forget(but={self.shards[number].file for number in numbers})

    def close(self) -> None:
        """Unmap and close every shard."""
        self._maps.close()
        self._files.close()

    def __getstate__(self) -> dict[str, object]:
        files = OpenFiles(len(self.shards))
        return {**self.__dict__, "_files": files, "_descriptors": files.descriptors, "_run": self._run[:0]}

    def _copy(self, number: int, offset: int, out: Tokens) -> None:
        if (descriptor := self._descriptors[number]) < 0:
            descriptor = self._open(number)
        place = self._header_bytes[number] + offset * self.dtype.itemsize
        try:
            got = _read_at(descriptor, out.view(np.uint8).data, place)
            if got != out.nbytes:
                self._read_on(number, out.view(np.uint8).data[got:], place + got)
        except OSError as error:
            raise UnreadError(number, error) from error

    def _read_on(self, number: int, rest: memoryview, place: int) -> None:
        """Fill `rest` from byte `place` of an open shard: a read may have given less than it was asked for."""
        while rest:
            got = _read_at(self._descriptors[number], rest, place)
            if not got:
                raise ShardError(
                    f"{self._path(number)} ends {len(rest):,} bytes early: it was cut short while it was read, {MEND}"
                )
            rest, place = rest[got:], place + got

    def _map(self, number: int) -> Tokens:
        def mapped() -> Tokens:
            if (descriptor := self._descriptors[number]) < 0:
                descriptor = self._open(number)
            try:
                start, tokens = self._header_bytes[number], self.shards[number].tokens
                return self._maps.add(number, descriptor, self.dtype, start, tokens)
            except OSError as error:
                raise UnreadError(number, error) from error

        try:
            return mapped()
        except UnreadError as unread:
            return self._again(unread, mapped)

    def _open(self, number: int) -> int:
        """Open a shard's file. Raises `ShardError` where it is not the one that the dataset was opened with, and
        `UnreadError`."""
        shard = self.shards[number]
        if self.wait is not None:
            self.wait(shard.file)
        try:
            descriptor = self._files.open(number, self._prefix + shard.file)
            try:
                self.known.check_descriptor(descriptor, shard, self.dtype)
            except (ShardError, OSError):
                self._files.close_one(number)  # else it would be read the next time without a check
                raise
        except OSError as error:
            raise UnreadError(number, error) from error
        return descriptor

    def _path(self, number: int) -> Path:
        return self.directory / self.shards[number].file


def _read_at(descriptor: int, out: memoryview, place: int) -> int:
    """Read bytes from `place` on into `out`; returns how many."""
    if _CAN_PREAD:
        return int(os.preadv(descriptor, (out,), place))  # type: ignore[attr-defined, unused-ignore]
    os.lseek(descriptor, place, os.SEEK_SET)
    data = os.read(descriptor, len(out))
    out[: len(data)] = data
    return len(data)


def open_split(source: str | os.PathLike[str] | Manifest, split: str, *, verify: bool) -> tuple[Manifest, TokenStream]:
    """Open `split` of a folder or of a manifest that was read from one: every shard has the right size.

    Each shard's header is checked when it is first read, or with `verify` at once, and the SHA-256 too. Raises
    `ManifestError` where there is no finished dataset, `UsageError` where it has no such split, and `ShardError` for
    the first shard that is not what the manifest says.
    """
    if isinstance(source, Manifest):
        manifest, known = source, KnownFiles(_directory_of(source))
        _check_current(manifest, split)
    else:
        directory = user_path(source)
        known = KnownFiles(directory)
        if not directory.is_dir():
            raise ManifestError(f"no folder {directory}: give a folder of shards (`shardkit pull` fetches one)")
        manifest = Manifest.of_folder(directory)
        if not (directory / MANIFEST_NAME).exists():
            numbers = [shard.index for shard in manifest.shards]
            check_gapless(numbers, str(directory), "fetch them, or give Manifest.from_shards(folder) to go without")
    stream = open_stream(manifest, split, known)
    if verify and not all(shard.sha256 for shard in stream.shards):
        raise UsageError(f"{stream.directory} has no {MANIFEST_NAME}, so no hashes to verify against: drop verify=True")
    known.check_sizes(stream.shards)
    if verify:
        for shard in stream.shards:
            check_shard(stream.directory / shard.file, shard, dtype=manifest.dtype, hashed=True)
    return manifest, stream


def open_stream(manifest: Manifest, split: str, known: KnownFiles) -> TokenStream:
    """The stream of `split`, of shards that need not be in the manifest's folder yet. Raises `UsageError`."""
    shards = manifest.splits.get(split)
    if not shards:
        raise UsageError(_no_split(manifest, known.directory, split))
    return TokenStream(known, shards, manifest.dtype)


def _directory_of(manifest: Manifest) -> Path:
    if manifest.directory is None:
        raise UsageError("this Manifest was not read from a folder: give the folder, or Manifest.load(folder)")
    return manifest.directory


def _check_current(manifest: Manifest, split: str) -> None:
    """Refuse a manifest whose folder holds another dataset by now. Bare shards have nothing that would say so."""
    hashes = {(shard.file, shard.sha256) for shard in manifest.splits.get(split, []) if shard.sha256}
    if not hashes:
        return
    now = Manifest.load(_directory_of(manifest))
    if not hashes <= {(shard.file, shard.sha256) for shard in now.shards}:
        raise ManifestError(
            f"{manifest.directory} holds another dataset (fingerprint {now.fingerprint[:12]}...) than when its "
            f"manifest was read ({manifest.fingerprint[:12]}...): read it again, with Manifest.load"
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
    return message + f"give split={' or '.join(map(repr, manifest.splits))}"
