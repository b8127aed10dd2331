"""Which rows and documents the first tokens of a piece of a chunk are of, and how a row is named."""

from __future__ import annotations

import numpy as np

from shardkit.sources.source import Chunk
from shardkit.tokenization.worker import EncodedChunk


def eots_before(result: EncodedChunk, tokens: int) -> int:
    """How many of the chunk's first `tokens` tokens are EOTs."""
    return int(np.searchsorted(result.eot_positions, tokens))


def rows_of(result: EncodedChunk, documents: int) -> int:
    """How many rows of the chunk the first `documents` documents took."""
    if documents == 0:
        return 0
    return documents if result.document_rows is None else int(result.document_rows[documents - 1]) + 1


def row_words(chunk: Chunk, row: int) -> str:
    return f"line {row + 1}" if chunk.input.format.startswith("jsonl") else f"row {row}"
