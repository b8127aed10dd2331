"""Which rows and documents the first tokens of a piece of a chunk are of, what they add to the figures of its file, and
how a row is named."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.records import SourceFile, add_skipped
from shardkit.sources.source import Chunk
from shardkit.tokenization.worker import EncodedChunk


class PieceRows(Protocol):
    """What an `EncodedChunk` says of its rows."""

    rows: int
    document_rows: NDArray[np.int64] | None
    skipped: NDArray[np.int64]
    duplicates: NDArray[np.int64]


def eots_before(result: EncodedChunk, tokens: int) -> int:
    """How many of the chunk's first `tokens` tokens are EOTs."""
    if tokens == 0 or tokens == result.count:  # as mostly
        return len(result.eot_positions) if tokens else 0
    return int(np.searchsorted(result.eot_positions, tokens))


def rows_of(result: PieceRows, documents: int) -> int:
    """How many rows of the chunk the first `documents` documents took."""
    if documents == 0:
        return 0
    return documents if result.document_rows is None else int(result.document_rows[documents - 1]) + 1


def with_piece(before: SourceFile, piece: PieceRows, tokens: int, documents: int, *, whole: bool) -> SourceFile:
    """A file's figures `before`, and what of a piece is in the stream: `documents` in `tokens`, of the `whole` piece,
    or of what comes before the place where the stream ends."""
    rows = piece.rows if whole else rows_of(piece, documents)
    added = before
    if len(piece.skipped):
        runs = piece.skipped[piece.skipped[:, 0] < rows].clip(max=rows - 1) + before.rows
        added = add_skipped(before, runs.tolist()) if len(runs) else before
    duplicates = None if before.duplicates is None else before.duplicates + int(np.sum(piece.duplicates < rows))
    return dataclasses.replace(
        added,
        duplicates=duplicates,
        rows=before.rows + rows,
        documents=before.documents + documents,
        tokens=before.tokens + tokens,
    )


def row_words(chunk: Chunk, row: int) -> str:
    """The row of a file, or of the stretch of it that a part reads."""
    stretch = chunk.input.stretch
    where = ""
    if stretch is not None and stretch.start:
        where = f" from {'byte' if chunk.input.format == 'jsonl' else 'row group'} {stretch.start} on"
    return f"line {row + 1}{where}" if chunk.input.format.startswith("jsonl") else f"row {row}{where}"
