"""Shards: plain one-dimensional `.npy` files of token ids. Owns their names, header, writing and opening.

A shard is what `np.save` writes for a one-dimensional `<u2` (or `<u4`) array: a 128-byte version-1.0 header and raw
little-endian tokens. Nothing here knows where tokens come from or what they mean.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import user_path
from shardkit.dataset.bin_files import bin_header
from shardkit.errors import ShardError
from shardkit.files import LongFile, fsync_dir, open_file, write_error

SHARD_NAME = re.compile(r"^(?P<prefix>[^/\\\x00-\x1f\x7f]+)_(?P<split>[a-z]+)_(?P<index>[0-9]{6,15})\.npy\Z")
_LONGEST_HEADER = 4096  # bytes; numpy writes 118
_MOST_TOKENS = 1 << 48  # of one shard
_EDGE_BYTES = 4096
Token = TypeVar("Token", bound=np.integer[Any])
BLOCK_TOKENS = 1 << 19  # fits a core's own cache
TOKENS_PER_SHARD = 100_000_000  # where nobody says how many
DTYPES: dict[str, np.dtype[np.uint16] | np.dtype[np.uint32]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

HEADERLESS = (  # a note on files of others
    "ids and nothing else, as Dolma and OLMo write them under that name? `shardkit convert FOLDER OUT --to npy --dtype "
    "uint16` makes shards of those"
)
MEND = "fetch or make it again (`shardkit pull`, or tokenize with --overwrite)"  # both replace what is damaged


def shard_name(prefix: str, split: str, index: int) -> str:
    """The file name of a shard, as `fineweb.py` writes it: `edufineweb_train_000001.npy`."""
    return f"{prefix}_{split}_{index:06d}.npy"


def shard_header(tokens: int, dtype: np.dtype[np.unsignedinteger]) -> bytes:
    """The `.npy` version-1.0 header of a shard: 128 bytes for every length that occurs."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (tokens,)}
    )
    return buffer.getvalue()


def longest_shard(tokens: int, dtype: np.dtype[np.unsignedinteger]) -> int:
    """The most bytes of a file with so many tokens that `open_shard` opens: with the longest header."""
    return 12 + _LONGEST_HEADER + tokens * dtype.itemsize


class ShardHeader(NamedTuple):
    """What a shard's header says: how many tokens of which dtype follow it, and its own length in bytes."""

    tokens: int
    dtype: np.dtype[np.unsignedinteger]
    bytes: int


def open_shard(path: str | Path) -> np.memmap:
    """Map a shard read-only: uint16 or uint32, shape `(tokens,)`. Reads the header alone and never unpickles. A file
    of llm.c (`.bin`) and nanoGPT's `train.bin` and `val.bin` are shards too.

    >>> from shardkit import open_shard
    >>> tokens = open_shard("out/sample_val_000000.npy")
    >>> tokens.shape, tokens.dtype
    ((100000,), dtype('uint16'))
    >>> int(tokens[0])  # every document begins with GPT-2's end-of-text token
    50256

    Raises `ShardError` if the file is missing, has no `.npy` header, is not one-dimensional little-endian uint16 or
    uint32, or is longer or shorter than its header says.
    """
    path = user_path(path)
    try:
        with open_file(path) as file:
            return map_tokens(file, path)
    except OSError as error:
        raise ShardError(f"cannot open shard {path}: {error.strerror or error}") from None


def map_tokens(file: BinaryIO, path: Path) -> np.memmap:
    """`open_shard` of a file that is open, at its beginning; `path` names it in errors. Raises `OSError` too."""
    header = read_header(file, path)
    return np.memmap(file, dtype=header.dtype, mode="r", offset=header.bytes, shape=(header.tokens,))


def shard_blocks(path: Path, begin: int, end: int) -> Iterator[NDArray[np.unsignedinteger]]:
    """The tokens `begin` to `end` of a shard, some at a time, each block in the memory of the one before: read, and not
    mapped, so that a disk that fails is an error, and the file may be removed. Raises `ShardError`."""
    try:
        with open_file(path) as file:
            header = read_header(file, path)
            file.seek(begin * header.dtype.itemsize, os.SEEK_CUR)
            yield from token_blocks(file, path, header.dtype, end - begin)
    except OSError as error:
        raise ShardError(f"cannot read shard {path}: {error.strerror or error}") from None


def token_blocks(
    file: BufferedReader, path: Path, dtype: np.dtype[Token], count: int
) -> Iterator[np.ndarray[tuple[int], np.dtype[Token]]]:
    """The next `count` tokens of a file that is open, some at a time, each block in the memory of the one before;
    `path` names it in errors. Raises `ShardError` if it has fewer, and `OSError`."""
    buffer = np.empty(min(BLOCK_TOKENS, count), dtype)
    for first in range(0, count, BLOCK_TOKENS):
        block = buffer[: count - first]
        if file.readinto(block.view(np.uint8).data) < block.nbytes:
            raise ShardError(f"{path} became shorter while it was read: run the same command again")
        yield block


def read_header(file: BinaryIO, path: Path) -> ShardHeader:
    """The header of the shard that `file` is at the beginning of, checked against the file's size.

    `path` names it in errors, and says by its ending whether it is a `.bin` file. Raises `ShardError` as `open_shard`
    does, and `OSError`.
    """
    if path.suffix == ".bin":
        return ShardHeader(*bin_header(file, path))
    magic = file.read(6)
    if magic != b"\x93NUMPY":
        raise ShardError(f"{path} has no .npy header (it starts with {magic!r}): is it {HEADERLESS}")
    version = file.read(2)
    length = int.from_bytes(file.read(2 if version == b"\x01\x00" else 4), "little")
    text = file.read(min(length, _LONGEST_HEADER))
    try:
        shape, dtype = _parse_header(version, text)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError, Warning) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ShardError(f"{path} has a damaged .npy header ({reason}): {MEND}") from None
    if len(shape) != 1 or dtype not in DTYPES.values():
        raise ShardError(
            f"{path} holds a {len(shape)}-dimensional {dtype} array; a shard is one-dimensional little-endian uint16 "
            "or uint32: write it with `shardkit tokenize`"
        )
    header, size = ShardHeader(shape[0], dtype, file.tell()), os.fstat(file.fileno()).st_size
    expected = header.bytes + header.tokens * dtype.itemsize
    if size != expected:
        raise ShardError(
            f"{path} has {size:,} bytes, its header says {expected:,} ({header.tokens:,} tokens): it is damaged or "
            f"unfinished, {MEND}"
        )
    if header.tokens == 0:
        raise ShardError(f"{path} holds no tokens: {MEND}")
    return header


@lru_cache(maxsize=64)  # the shards of a dataset have the same header, but for the last one
def _parse_header(version: bytes, text: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype from the text of a `.npy` header, a Python literal. Refuses what numpy refuses."""
    if version not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError(f"version {'.'.join(map(str, version))}")
    header = ast.literal_eval(text.decode("latin-1"))
    if type(header) is not dict or header.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError("it is no description of an array")
    shape, descr = header["shape"], header["descr"]
    if type(shape) is not tuple or not all(type(size) is int and 0 <= size <= _MOST_TOKENS for size in shape):
        raise ValueError("its shape is none")
    if type(header["fortran_order"]) is not bool or type(descr) is not str:
        raise ValueError("its order or its type is none")
    return shape, np.dtype(descr)


def edges_sha256(file: BinaryIO) -> str:
    """The hex SHA-256 of an open file's first and last 4096 bytes."""
    file.seek(0)
    head, size = file.read(_EDGE_BYTES), os.fstat(file.fileno()).st_size
    file.seek(max(0, size - _EDGE_BYTES))
    return hashlib.sha256(head + file.read(_EDGE_BYTES)).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenShard:
    """What `ShardWriter.finish` made: tokens, file bytes, and the SHA-256 of the whole file."""

    tokens: int
    bytes: int
    sha256: str


class ShardWriter:
    """Writes one shard front to back into `temp`, hashing as it goes; `finish` gives it its final name.

    `capacity` is the most tokens it may hold. Memory is flat.
    """

    def __init__(self, temp: Path, dtype: np.dtype[np.unsignedinteger], capacity: int) -> None:
        self.temp = temp
        self.dtype = np.dtype(dtype)
        self.capacity = capacity
        self.tokens = 0
        header = shard_header(capacity, self.dtype)
        self._header_bytes = len(header)
        self._hash = hashlib.sha256(header)
        try:
            self._file = LongFile(temp)
            self._file.write(header)
        except OSError as error:
            raise write_error(error, temp, len(header) + capacity * self.dtype.itemsize) from None

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.capacity - self.tokens

    def write(self, tokens: NDArray[np.unsignedinteger]) -> None:
        """Append `tokens`: shape `(n,)`, `n <= room`, already of the shard's dtype.

        Raises `OutputError` (`DiskFull`), and removes the unfinished file.
        """
        if len(tokens) > self.room or tokens.dtype != self.dtype:
            raise ValueError(f"{len(tokens)} {tokens.dtype} tokens for room {self.room} of {self.dtype}")
        view = np.ascontiguousarray(tokens).view(np.uint8).data
        try:
            self._file.write(view)
        except OSError as error:
            raise self._failed(error, self.room * self.dtype.itemsize) from None
        self._hash.update(view)
        self.tokens += len(tokens)

    def finish(self, final: Path) -> WrittenShard:
        """Sync the file, give it its final name and say what is in it. A part-filled shard gets a true header first.

        Raises `OutputError` (`DiskFull`), and removes the unfinished file.
        """
        try:
            if self.tokens < self.capacity:
                self._rewrite_header()
            size = self._file.sync()
            sha256 = self._hash.hexdigest() if self.tokens == self.capacity else self._file.sha256()
            self._file.close()
            os.replace(self.temp, final)
            fsync_dir(final.parent)
        except OSError as error:
            raise self._failed(error, 0) from None
        return WrittenShard(tokens=self.tokens, bytes=size, sha256=sha256)

    def abort(self) -> None:
        """Close and remove the unfinished file."""
        self._file.close()
        with suppress(OSError):  # the disk that failed; a later run removes it
            self.temp.unlink(missing_ok=True)

    def _rewrite_header(self) -> None:
        header = shard_header(self.tokens, self.dtype)
        if len(header) != self._header_bytes:
            raise ValueError(f"npy headers of {len(header)} and {self._header_bytes} bytes")
        self._file.rewrite(header)

    def _failed(self, error: OSError, to_come: int) -> Exception:
        """The error to raise; `to_come` bytes were still to be written beside those that wait."""
        failure = write_error(error, self.temp, to_come + self._file.waiting)
        self.abort()
        return failure
