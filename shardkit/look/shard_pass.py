"""One pass over a shard's file: its SHA-256, its largest id, its EOT tokens, each block of it read once."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.check import check_sha256
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import MEND, read_header
from shardkit.errors import ShardError

_BLOCK_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class FileStart:
    """Where the text of a source file begins, as the manifest counts: `offset` in tokens of a shard, after so many
    `documents` of that shard."""

    path: str
    offset: int
    documents: int


def file_starts(manifest: Manifest) -> dict[int, list[FileStart]]:
    """By the shards' places in the manifest: where the source files begin. Only as far as no shard is left out."""
    if manifest.source is None:
        return {}
    begins: list[tuple[int, int, str]] = []
    tokens = documents = 0
    for file in manifest.source.files:
        if file.documents:
            begins.append((tokens, documents, file.path))
        tokens, documents = tokens + file.tokens, documents + file.documents
    found: dict[int, list[FileStart]] = {}
    first = at = 0
    for number, shard in enumerate(manifest.shards):
        if shard.index != number:
            break
        while at < len(begins) and begins[at][0] < first + shard.tokens:
            start, before, path = begins[at]
            begin = FileStart(path=path, offset=start - first, documents=before - shard.first_document)
            found.setdefault(number, []).append(begin)
            at += 1
        first += shard.tokens
    return found


def check_tokens(
    file: BufferedReader, path: Path, shard: ShardInfo, manifest: Manifest, *, hashed: bool, starts: Sequence[FileStart]
) -> None:
    """Check an open shard, at its beginning: the SHA-256 if it is `hashed`, and, where the manifest knows a tokenizer,
    the ids, the number of EOTs, and that the source files begin at `starts`. Raises `ShardError`, and `OSError`."""
    header = read_header(file, path)
    file.seek(0)
    digest, tokenizer = hashlib.sha256(file.read(header.bytes)), manifest.tokenizer
    looks = tokenizer is not None
    eot_id = tokenizer.eot_id if tokenizer else 0
    mask = np.empty(_BLOCK_BYTES // header.dtype.itemsize, np.bool_)
    largest = documents = done = 0
    wrong, to_come = "", deque(starts)
    for block in _blocks(file, header.dtype):
        if hashed:
            digest.update(block.data)
        if looks:
            largest = max(largest, int(block.max()))
            is_eot = np.equal(block, eot_id, out=mask[: len(block)])
            while to_come and to_come[0].offset < done + len(block):
                start = to_come.popleft()
                before = documents + int(np.count_nonzero(is_eot[: start.offset - done]))
                if before != start.documents or not is_eot[start.offset - done]:
                    wrong = wrong or f"{start.path} does not begin at token {start.offset:,}, as the manifest says"
            documents += int(np.count_nonzero(is_eot))
        done += len(block)
    if done < shard.tokens:
        raise ShardError(f"{path} ends early: it was cut short while it was read, {MEND}")
    if hashed and shard.sha256:
        check_sha256(path, digest.hexdigest(), shard)
    if tokenizer is None:
        return
    if largest >= tokenizer.vocab_size:
        raise ShardError(
            f"{path} holds id {largest}, the vocabulary has {tokenizer.vocab_size:,}: not its shard, {MEND}"
        )
    if documents != shard.documents:
        raise ShardError(
            f"{path} holds {documents:,} EOT tokens, the manifest says {shard.documents:,}: it is damaged, {MEND}"
        )
    if wrong:
        raise ShardError(f"{path}: {wrong}: the manifest was edited, or is of other shards, {MEND}")


def _blocks(file: BufferedReader, dtype: np.dtype[np.unsignedinteger]) -> Iterator[NDArray[np.unsignedinteger]]:
    """What is left of the file; each block is overwritten by the next one."""
    buffer = bytearray(_BLOCK_BYTES)
    while count := file.readinto(buffer):
        yield np.frombuffer(buffer, dtype, count // dtype.itemsize)


def whole_documents(
    file: BufferedReader, path: Path, eot_id: int, most: int, window: int
) -> Iterator[tuple[int, NDArray[np.unsignedinteger]]]:
    """Up to `most` documents from all over an open shard, each the first that begins and ends within `window` tokens:
    its EOT's place in the shard, and its ids without the EOT. Raises `ShardError`, and `OSError`."""
    file.seek(0)
    header = read_header(file, path)
    seen = -1
    for number in range(most):
        begin = header.tokens * number // most
        if begin <= seen:
            continue
        file.seek(header.bytes + begin * header.dtype.itemsize)
        read = file.read(min(window, header.tokens - begin) * header.dtype.itemsize)
        block = np.frombuffer(read, header.dtype, len(read) // header.dtype.itemsize)
        for first, last in pairwise(np.flatnonzero(block == eot_id).tolist()):
            seen = begin + first
            yield seen, block[first + 1 : last]
            break
