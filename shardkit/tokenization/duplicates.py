"""`--skip-duplicates`: of documents with the same tokens the first one of the stream stays.

The main process looks at their hashes in stream order, so any number of workers leaves the same ones out. What was seen
is nowhere but in memory and in the shards: a run that goes on reads the finished ones, wherever they are.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.journal import Journal
from shardkit.dataset.manifest import ShardInfo
from shardkit.dataset.shards import shard_blocks
from shardkit.errors import OutputError, ShardError
from shardkit.tokenization.document_hashes import hashes_of_stream
from shardkit.tokenization.earlier_shards import earlier_shards
from shardkit.tokenization.live_push import LivePush
from shardkit.tokenization.runner import Runner
from shardkit.tokenization.worker import EncodedChunk


class Duplicates:
    """What the stream in `directory` has held before the place where `journal` says that it goes on, and since.

    Raises `OutputError` if a finished shard is not there to be read, `HubError` if one cannot be fetched by `uploads`.
    """

    def __init__(self, directory: Path, journal: Journal, eot_id: int, uploads: LivePush | None = None) -> None:
        self._in_pieces = False  # whether a document is at hand that comes in several pieces
        documents = sum(file.documents for file in journal.resume.files.values())  # of the chunks before that place
        try:
            # the last of these has the first EOT after those documents, or the stream ends before
            shards = [shard for shard in journal.shards if shard.first_document <= documents]
            with closing(_blocks(directory, shards, uploads)) as blocks:
                self._seen = set(hashes_of_stream(blocks, documents, eot_id))
        except ShardError as error:
            raise OutputError(
                f"--skip-duplicates reads the finished shards to go on: {error}, or start again with --overwrite"
            ) from None

    def leave_out(self, piece: EncodedChunk, runner: Runner) -> None:
        """Leave out the documents that were there before, whose rows are skipped ones then. A text file that is so long
        that it comes in several pieces stays."""
        if piece.chunk.input.kind == "txt" and (not piece.last or self._in_pieces):
            self._seen.update(piece.hashes)
            self._in_pieces = not piece.last
            return
        kept = np.array([self._is_new(digest) for digest in piece.hashes], bool)
        if kept.all():
            return
        starts = piece.eot_positions
        lengths = np.append(starts, piece.count)[1:] - starts
        rows = np.arange(len(kept)) if piece.document_rows is None else piece.document_rows
        skipped = np.zeros(piece.rows + 2, bool)
        for first, last in piece.skipped.tolist():
            skipped[first + 1 : last + 2] = True
        skipped[rows[~kept] + 1] = True
        changes = np.flatnonzero(skipped[1:] != skipped[:-1])  # where runs begin, and the rows after their ends
        runner.keep(piece, np.stack([starts[kept], starts[kept] + lengths[kept]], axis=1))
        count = int(lengths[kept].sum())
        piece.text_bytes = piece.text_bytes * count // max(1, piece.count)
        piece.count = count
        piece.eot_positions = np.cumsum(np.append(0, lengths[kept]), dtype=np.int64)[:-1]
        piece.document_rows = rows[kept]
        piece.duplicates = rows[~kept]
        piece.skipped = np.stack([changes[::2], changes[1::2] - 1], axis=1)

    def _is_new(self, digest: bytes) -> bool:
        before = len(self._seen)
        self._seen.add(digest)
        return len(self._seen) > before


def _blocks(
    directory: Path, shards: Sequence[ShardInfo], uploads: LivePush | None
) -> Generator[NDArray[np.unsignedinteger], None, None]:
    with closing(earlier_shards(directory, shards, uploads)) as paths:
        for path, shard in zip(paths, shards, strict=True):
            yield from shard_blocks(path, 0, shard.tokens)
