"""Where a token came from: its document, source file and row, from the shards and the manifest alone. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardkit.manifest import Manifest, SourceFile
from shardkit.shards import open_shard
from shardkit.stream import TokenStream

_BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """Where a token lies: `offset` in tokens within `shard`; documents and rows count from 0.

    `document` is the ordinal in the whole dataset, `source_file` and `source_row` where its text was read. What the
    dataset does not tell is None: a bare folder knows no documents, and a `filter` hides the rows.
    """

    shard: str
    offset: int
    document: int | None
    source_file: str | None
    source_row: int | None


def locate_token(manifest: Manifest, stream: TokenStream, token: int) -> Location:
    """Where token `token` of the stream lies and came from. Reads its shard up to there, to count EOT tokens."""
    number, offset = stream.shard_of(token)
    shard = stream.shards[number]
    document = None
    if manifest.tokenizer is not None:
        tokens = open_shard(stream.directory / shard.file).view(np.ndarray)[: offset + 1]
        eot = manifest.tokenizer.eot_id
        blocks = (tokens[begin : begin + _BLOCK_TOKENS] for begin in range(0, len(tokens), _BLOCK_TOKENS))
        document = shard.first_document - 1 + sum(int(np.count_nonzero(block == eot)) for block in blocks)
    file, row = _source_of(manifest, document)
    return Location(shard=shard.file, offset=offset, document=document, source_file=file, source_row=row)


def _source_of(manifest: Manifest, document: int | None) -> tuple[str | None, int | None]:
    if manifest.source is None or document is None:
        return None, None
    for file in manifest.source.files:
        if document < file.documents:
            return file.path, _row_of(file, document)
        document -= file.documents
    return None, None


def _row_of(file: SourceFile, document: int) -> int | None:
    if file.documents != file.rows - len(file.skipped_rows):
        return None
    row = document
    for skipped in sorted(file.skipped_rows):
        row += skipped <= row
    return row
