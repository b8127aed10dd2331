"""`--skip-duplicates`: of documents with the same tokens the first one of the stream stays.

The main process looks at them in stream order, so any number of workers leaves the same ones out. What was seen is
nowhere but in memory and in the shards: a run that goes on reads the finished ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.journal import Journal
from shardkit.dataset.shards import shard_blocks
from shardkit.errors import OutputError, ShardError
from shardkit.tokenization.worker import EncodedChunk

_HASH_BYTES = 16  # of a set, some 100 bytes of memory a document


class Duplicates:
    """What the stream in `directory` has held before the place where `journal` says that it goes on, and since.

    Raises `OutputError` if a finished shard is not there to be read.
    """

    def __init__(self, directory: Path, journal: Journal, eot_id: int) -> None:
        self._begun: Any = None  # the hash of a document that comes in several pieces
        documents = sum(file.documents for file in journal.resume.files.values())  # of the chunks before that place
        try:
            blocks = (block for s in journal.shards for block in shard_blocks(directory / s.file, 0, s.tokens))
            self._seen = set(_first_hashes(blocks, documents, eot_id))
        except ShardError as error:
            raise OutputError(
                f"--skip-duplicates reads the finished shards to go on: {error}, or start again with --overwrite"
            ) from None

    def without(self, result: EncodedChunk) -> EncodedChunk:
        """The piece without the documents that were there before, whose rows are skipped ones. A text file that is so
        long that it comes in several pieces stays."""
        tokens, starts = result.tokens, result.eot_positions
        if result.chunk.input.kind == "txt" and (not result.last or self._begun is not None):
            self._add_part(tokens[1:] if len(starts) else tokens, last=result.last)
            return result
        ends = np.append(starts, len(tokens))[1:]
        kept = np.array([self._is_new(tokens[a + 1 : b]) for a, b in zip(starts, ends, strict=True)], bool)
        if kept.all():
            return result
        rows = np.arange(len(kept)) if result.document_rows is None else result.document_rows
        lengths = ends - starts
        skipped = np.zeros(result.rows + 2, bool)
        for first, last in result.skipped.tolist():
            skipped[first + 1 : last + 2] = True
        skipped[rows[~kept] + 1] = True
        changes = np.flatnonzero(skipped[1:] != skipped[:-1])  # where runs begin, and the rows after their ends
        return dataclasses.replace(
            result,
            tokens=tokens[np.repeat(kept, lengths)],
            eot_positions=np.cumsum(np.append(0, lengths[kept]), dtype=np.int64)[:-1],
            document_rows=rows[kept],
            skipped=np.stack([changes[::2], changes[1::2] - 1], axis=1),
        )

    def _is_new(self, tokens: NDArray[np.unsignedinteger]) -> bool:
        digest, before = _hash_of(tokens).digest(), len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > before

    def _add_part(self, tokens: NDArray[np.unsignedinteger], *, last: bool) -> None:
        if self._begun is None:
            self._begun = _hash_of(tokens)
        else:
            self._begun.update(tokens.tobytes())
        if last:
            self._seen.add(self._begun.digest())
            self._begun = None


def _hash_of(tokens: NDArray[np.unsignedinteger]) -> Any:
    return hashlib.blake2b(tokens.tobytes(), digest_size=_HASH_BYTES)


def _first_hashes(blocks: Iterator[NDArray[np.unsignedinteger]], documents: int, eot_id: int) -> Iterator[bytes]:
    """The hashes of the first `documents` documents of a stream."""
    begun: Any = None
    left = documents
    for block in blocks if documents else ():
        start = 0
        for at in np.flatnonzero(block == eot_id).tolist():
            if begun is not None:
                begun.update(block[start:at].tobytes())
                yield begun.digest()
                left -= 1
                if not left:
                    return
            begun, start = hashlib.blake2b(digest_size=_HASH_BYTES), at + 1
        if begun is not None:
            begun.update(block[start:].tobytes())
    if begun is not None and left:
        yield begun.digest()
