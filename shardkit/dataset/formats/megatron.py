"""Megatron-LM's indexed datasets: `X.bin` with the ids of all documents, `X.idx` with where each begins.

As `megatron/core/datasets/indexed_dataset.py` reads them: version 1 of the index, one sequence a document here. One EOT
after each document, as `tools/preprocess_data.py --append-eod` writes it; files without it are read too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.bin_files import TokenType, is_llmc
from shardkit.dataset.formats.eot import eot_after
from shardkit.dataset.formats.interface import SPLIT, Blocks, Given, Reading, Shape, Tokens
from shardkit.dataset.formats.raw_tokens import (
    RawWriter,
    TokenFile,
    as_ids,
    file_blocks,
    moved,
    raw_file,
    read_run,
)
from shardkit.dataset.shards import BLOCK_TOKENS, DTYPES
from shardkit.errors import ShardError, UsageError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")  # magic, version, dtype, sequences, documents + 1
_DTYPES: dict[int, np.dtype[np.integer]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_UINT16, _INT32 = 8, 4  # those that Megatron itself writes
_MOST = (1 << 31) - 1  # an id, and the tokens of a document: int32


def recognizes(path: Path) -> bool:
    """A folder with `.idx` files, one of these, its `.bin`, or the path without either ending."""
    return bool(_indexes(path))


def _indexes(path: Path) -> dict[str, Path]:
    """The index of each split, val first."""
    if not path.is_dir():
        index = path.with_suffix(".idx") if path.suffix in (".bin", ".idx") else path.with_name(f"{path.name}.idx")
        return {"train": index} if index.is_file() else {}
    found = sorted(path.glob("*.idx"), key=lambda index: (index.stem not in ("val", "valid"), index.name))
    if len(found) == 1 and found[0].stem not in ("val", "valid"):
        return {"train": found[0]}
    return {"val" if index.stem == "valid" else index.stem: index for index in found}


def without_index(path: Path) -> Path | None:
    """The first `.bin` of a folder, or the one of that path, which may lack its ending, that has neither an `.idx`
    beside it nor llm.c's header; None if there is none."""
    files = sorted(path.glob("*.bin")) if path.is_dir() else [path, path.with_name(f"{path.name}.bin")]
    plain = (file for file in files if file.suffix == ".bin" and file.is_file() and not is_llmc(file))
    return next((file for file in plain if not file.with_suffix(".idx").exists()), None)


def read(path: Path, given: Given) -> Reading:
    """All splits. Raises `ShardError` for damaged files, `UsageError` where it is not known what ends a document or a
    split."""
    indexes = _indexes(path)
    if wrong := [name for name in indexes if not SPLIT.fullmatch(name)]:
        raise UsageError(f"{path} holds several datasets ({wrong[0]}, ...): give the path of one, without its ending")
    eot_id = given.eot_of(str(path))
    opened = {split: _Index(file) for split, file in indexes.items()}
    splits = list(opened) if given.lengths is None else [split for split in given.lengths if split in opened]
    files = [opened[split].file._replace(split=split) for split in splits]
    small = all(file.dtype == np.dtype("<u2") for file in files)
    dtype = DTYPES["uint16"] if small else given.narrowest()
    tokens = sum(file.tokens for file in files)
    if given.lengths is None:
        blocks = partial(_documents, [opened[split] for split in splits], files, dtype, eot_id)
    else:
        blocks = moved(partial(file_blocks, files, dtype), given, tokens, path)  # type: ignore[assignment]
    return Reading(dtype=dtype, tokens=tokens, blocks=blocks, eot_id=eot_id, manifest=given.manifest)


class _Index:
    """An open index, and the file that it is of; both checked. Raises `ShardError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD.size)
            size = path.stat().st_size
        except OSError as error:
            raise ShardError(f"cannot read {path}: {error.strerror or error}") from None
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            raise ShardError(f"{path} is no index of Megatron-LM: it does not begin with MMIDIDX")
        _, version, code, sequences, bounds = _HEAD.unpack(head)
        expected = _HEAD.size + 12 * sequences + 8 * bounds
        if version != 1 or code not in _DTYPES or size not in (expected, expected + sequences) or not sequences:
            raise ShardError(
                f"{path} has version {version}, dtype {code}, {sequences:,} sequences in {size:,} bytes: expected "
                f"version 1, integers, {expected:,} bytes"
            )
        self._dtype, self._sequences = _DTYPES[code], sequences
        self._lengths = self._map("<i4", sequences, 0)
        self._pointers = self._map("<i8", sequences, 4 * sequences)
        self._bounds = self._map("<i8", bounds, 12 * sequences)
        self.file = self._checked()

    def _map(self, dtype: str, count: int, place: int) -> NDArray[np.signedinteger]:
        return np.memmap(self.path, np.dtype(dtype), "r", _HEAD.size + place, (count,)).view(np.ndarray)

    def _checked(self) -> TokenFile:
        file, size, at = raw_file("", self.path.with_suffix(".bin"), self._dtype), self._dtype.itemsize, 0
        for first in range(0, self._sequences, BLOCK_TOKENS):
            lengths = self._lengths[first : first + BLOCK_TOKENS].astype(np.int64)
            ends = at + np.cumsum(lengths * size)
            stated = self._pointers[first : first + len(ends)]
            if lengths.min() < 0 or not np.array_equal(ends - lengths * size, stated):
                raise ShardError(f"{self.path} has sequences that overlap or leave gaps: write it anew")
            at = int(ends[-1])
        if at != file.tokens * size or not self._bounds_are_right():
            raise ShardError(
                f"{self.path} and {file.path.name} do not go together: the index has {at:,} bytes of tokens, the file "
                f"{file.tokens * size:,}, or its documents are not in order"
            )
        return file

    def _bounds_are_right(self) -> bool:
        bounds, blocks = self._bounds, range(0, len(self._bounds), BLOCK_TOKENS)
        if not len(bounds) or bounds[0] != 0 or bounds[-1] != self._sequences:
            return False
        return all(np.all(np.diff(bounds[first : first + BLOCK_TOKENS + 1]) >= 0) for first in blocks)

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Where `count` documents start, from number `first` on, in tokens."""
        sequences = self._bounds[first : min(first + count, len(self._bounds) - 1)]
        places = self._pointers[np.minimum(sequences, self._sequences - 1)] // self._dtype.itemsize
        return np.where(sequences < self._sequences, places, self.file.tokens)  # empty documents at the end


class _Starts:
    """The starts of a file's documents, given out as the file is read. An unaligned map cannot be searched in place."""

    def __init__(self, index: _Index) -> None:
        self._index, self._number = index, 0
        self._held = np.empty(0, np.int64)

    def up_to(self, end: int) -> NDArray[np.int64]:
        """Those up to and with token `end`; what starts there comes the next time too."""
        while not len(self._held) or self._held[-1] <= end:
            more = self._index.starts(self._number, BLOCK_TOKENS)
            if not len(more):
                break
            self._number += len(more)
            self._held = np.concatenate([self._held, more])
        found = self._held[: np.searchsorted(self._held, end, "right")]
        self._held = self._held[np.searchsorted(self._held, end) :]
        return found


def _documents(indexes: list[_Index], files: list[TokenFile], dtype: TokenType, eot_id: int) -> Blocks:
    """Every document of the index with an EOT before it, and none after it."""
    for index, file in zip(indexes, files, strict=True):
        begin, starts = 0, _Starts(index)
        for block in read_run(file):
            end = begin + len(block)
            ids, places = as_ids(block, dtype, file.path), starts.up_to(end) - begin
            yield file.split, _with_eot(ids, places, eot_id, is_last=end == file.tokens)
            begin = end


def _with_eot(block: Tokens, starts: NDArray[np.int64], eot_id: int, *, is_last: bool) -> Tokens:
    """`block` with documents that start at `starts` (its end is among them, if the next one begins with a document)."""
    ends = np.append(starts, len(block) if is_last else 0) - 1
    ends = ends[ends >= 0]
    keep = np.ones(len(block), bool)
    keep[ends[block[ends] == eot_id]] = False
    place = np.concatenate([[0], np.cumsum(keep)])
    new = starts if is_last else starts[starts < len(block)]
    return np.insert(block[keep], place[new], block.dtype.type(eot_id))


def write(reading: Reading, blocks: Blocks, folder: Path, _: Shape) -> None:
    """`SPLIT.bin` and `SPLIT.idx` each. Raises `OutputError`, `UsageError` without an EOT, `ShardError`."""
    eot_id = reading.eot_id
    if eot_id is None:
        raise UsageError("Megatron's files are of documents: give --tokenizer NAME or --eot-id NUMBER to find them")
    pair: _Pair | None = None
    try:
        for split, block in eot_after(blocks, eot_id):
            if not len(block):
                continue
            if pair is None or pair.split != split:
                if pair is not None:
                    pair.finish()
                pair = _Pair(folder, split, reading.dtype)
            pair.write(block, eot_id)
        if pair is not None:
            pair.finish()
    except BaseException:
        if pair is not None:
            pair.abort()
        raise


class _Pair:
    """The two files of a split, while they are written. Lengths of documents go to a file of their own first."""

    def __init__(self, folder: Path, split: str, dtype: TokenType) -> None:
        self.split = split
        self._folder, self._code = folder, _UINT16 if dtype == np.dtype("<u2") else _INT32
        self._bin, self._lengths = RawWriter(folder / f"{split}.bin"), RawWriter(folder / "lengths.tmp")
        self._documents = self._open = 0  # the tokens of the document that has not ended

    def write(self, block: Tokens, eot_id: int) -> None:
        """Append tokens of the split, with each EOT at the end of its document."""
        if self._code == _INT32 and int(block.max()) > _MOST:
            raise ShardError(f"the tokens hold {int(block.max())}, Megatron's ids are below {_MOST + 1:,}")
        self._bin.write(block.astype(_DTYPES[self._code], copy=False))
        ends = np.flatnonzero(block == eot_id) + 1
        self._add(np.diff(ends, prepend=-self._open))
        self._open = len(block) - int(ends[-1]) if len(ends) else self._open + len(block)

    def finish(self) -> None:
        """Write the index."""
        if self._open:  # it goes on in the next split
            self._add(np.array([self._open]))
        for writer in (self._bin, self._lengths):
            writer.finish()
        index = RawWriter(self._folder / f"{self.split}.idx")
        count, size = self._documents, _DTYPES[self._code].itemsize
        try:
            index.write(_HEAD.pack(_MAGIC, 1, self._code, count, count + 1))
            for lengths in self._written():
                index.write(lengths)
            at = 0
            for lengths in self._written():
                ends = at + np.cumsum(lengths.astype("<i8") * size)
                index.write(np.concatenate([[at], ends[:-1]]).astype("<i8"))
                at = int(ends[-1])
            for first in range(0, count + 1, BLOCK_TOKENS):
                index.write(np.arange(first, min(first + BLOCK_TOKENS, count + 1), dtype="<i8"))
            index.finish()
        finally:
            index.abort()
        (self._folder / "lengths.tmp").unlink()

    def abort(self) -> None:
        """Close both, as they are."""
        self._bin.abort()
        self._lengths.abort()

    def _add(self, lengths: NDArray[np.signedinteger]) -> None:
        if len(lengths) and int(lengths.max()) > _MOST:
            raise ShardError(f"a document has {int(lengths.max()):,} tokens, Megatron's have at most {_MOST:,}")
        self._lengths.write(lengths.astype("<i4"))
        self._documents += len(lengths)

    def _written(self) -> Iterator[NDArray[np.integer]]:
        path = self._folder / "lengths.tmp"
        return read_run(TokenFile("", path, 0, self._documents, np.dtype("<i4")))
