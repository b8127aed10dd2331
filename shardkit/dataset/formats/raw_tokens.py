"""Runs of tokens in files: read some at a time, written front to back, whatever stands before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.bin_files import TokenType
from shardkit.dataset.formats.eot import cut, eot_before, turned_back
from shardkit.dataset.formats.interface import Blocks, Given, Tokens
from shardkit.dataset.shards import token_blocks
from shardkit.errors import OutputError, ShardError
from shardkit.files import LongFile, open_file, write_error


class TokenFile(NamedTuple):
    """The `tokens` of a `split` in the file at `path`, of `dtype`, after `skip` bytes."""

    split: str
    path: Path
    skip: int
    tokens: int
    dtype: np.dtype[np.integer]


def raw_file(split: str, path: Path, dtype: np.dtype[np.integer]) -> TokenFile:
    """A file that is nothing but tokens. Raises `ShardError` if it is none."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ShardError(f"cannot read {path}: {error.strerror or error}") from None
    if not size or size % dtype.itemsize:
        raise ShardError(
            f"{path} has {size:,} bytes: no whole number of {dtype.name} tokens, or none; fetch or make it again"
        )
    return TokenFile(split, path, 0, size // dtype.itemsize, dtype)


def file_blocks(files: Iterable[TokenFile], dtype: TokenType) -> Blocks:
    """The tokens of those files, as `dtype`. Raises `ShardError`, also for an id that it cannot hold."""
    for file in files:
        for block in read_run(file):
            yield file.split, as_ids(block, dtype, file.path)


def moved(blocks: Callable[[], Blocks], given: Given, tokens: int, path: Path) -> Callable[[], Blocks]:
    """What gives `blocks` of `tokens` tokens, with the EOT after each document, in shardkit's form; as they are where
    it is not known which id that is."""
    lengths, eot_id = given.lengths, given.eot_id
    if eot_id is None:
        return blocks if lengths is None else lambda: cut(blocks(), lengths, str(path))
    if lengths is None:
        return lambda: eot_before(blocks(), eot_id)
    return lambda: turned_back(blocks(), eot_id, lengths, tokens, str(path))


def read_run(file: TokenFile) -> Iterator[NDArray[np.integer]]:
    """The tokens of one file, as they are in it. Raises `ShardError`."""
    try:
        with open_file(file.path) as opened:
            opened.seek(file.skip)
            yield from token_blocks(opened, file.path, file.dtype, file.tokens)
    except OSError as error:
        raise ShardError(f"cannot read {file.path}: {error.strerror or error}") from None


def as_ids(block: NDArray[np.integer], dtype: TokenType, path: Path) -> Tokens:
    """`block` as `dtype`. Raises `ShardError`, which names `path`, for a number that is no id of that dtype."""
    if block.dtype == dtype:
        return block  # type: ignore[return-value]
    if len(block) and not 0 <= int(block.min()) <= int(block.max()) <= np.iinfo(dtype).max:
        wrong = int(block.min()) if block.min() < 0 else int(block.max())
        raise ShardError(f"{path} holds {wrong}, which is no {dtype.name} id: give --dtype=uint32, if ids are larger")
    return block.astype(dtype)


class RawWriter:
    """A new file of tokens. `write` and `finish` raise `OutputError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = LongFile(path)
        except OSError as error:
            raise write_error(error, path, 0) from None

    def write(self, data: NDArray[np.generic] | bytes) -> None:
        """Append bytes, or an array's."""
        view = data if isinstance(data, bytes) else np.ascontiguousarray(data).view(np.uint8).data
        try:
            self._file.write(view)
        except OSError as error:
            raise self._failed(error, len(view)) from None

    def finish(self, head: bytes = b"") -> None:
        """Have all of it on the disk, the first bytes replaced by `head`."""
        try:
            if head:
                self._file.rewrite(head)
            self._file.sync()
            self._file.close()
        except OSError as error:
            raise self._failed(error, 0) from None

    def abort(self) -> None:
        """Close it, as it is."""
        with suppress(OSError):
            self._file.close()

    def _failed(self, error: OSError, to_come: int) -> OutputError:
        failure = write_error(error, self.path, to_come + self._file.waiting)
        self.abort()
        return failure
