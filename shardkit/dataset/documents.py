"""Where the documents of a stream begin, and where a token came from: its document, source file and row.

Worked out from the shards and the manifest alone, by the EOT rule: one EOT before each document, none inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.derived import content_key
from shardkit.dataset.derived_parts import Helpers, arrays_of_parts
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.token_stream import TokenStream
from shardkit.errors import UsageError

SCAN_VERSION = 1
_PART_TOKENS = 1 << 32  # that one process scans at a time: a few seconds
_BLOCK_TOKENS = 1 << 18  # fits a core's own cache; a second thread made the scan slower, memory is the limit
Starts = NDArray[np.int64]


def document_starts(stream: TokenStream, eot_id: int, cache: Path | None, helpers: Helpers | None = None) -> Starts:
    """The place of every EOT token in the stream, ascending; memory-mapped where `cache`, a folder, can keep it.

    Raises `UsageError` where the shards' dtype cannot hold `eot_id`.
    """
    if not 0 <= eot_id <= np.iinfo(stream.dtype).max:
        raise UsageError(
            f"the EOT id is {eot_id}, the shards of {stream.directory} hold {stream.dtype.name} tokens: give the id "
            "that the shards were tokenized with"
        )

    def scan(part: int) -> tuple[Starts]:
        begin = part * _PART_TOKENS
        return (np.concatenate([*_scan(stream, eot_id, begin, min(begin + _PART_TOKENS, stream.tokens))]),)

    parts = -(-stream.tokens // _PART_TOKENS)
    key = starts_key(stream, eot_id)
    arrays = arrays_of_parts(cache, "starts", key, {"starts": "<i8"}, parts, scan, helpers=helpers)
    return np.asarray(arrays["starts"], np.int64)


def starts_key(stream: TokenStream, eot_id: int) -> str:
    """What decides where documents start, as text."""
    return json.dumps(["starts", SCAN_VERSION, eot_id, content_key(stream)])


def _scan(stream: TokenStream, eot_id: int, first: int, end: int) -> Iterator[Starts]:
    buffer = np.empty(_BLOCK_TOKENS, stream.dtype)
    for begin in range(first, end, _BLOCK_TOKENS):
        block = buffer[: end - begin]
        stream.read(begin, block)
        yield np.flatnonzero(block == eot_id) + begin


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
        tokens = stream.known.map(shard, manifest.dtype).view(np.ndarray)[: offset + 1]
        eot = manifest.tokenizer.eot_id
        blocks = (tokens[begin : begin + _BLOCK_TOKENS] for begin in range(0, len(tokens), _BLOCK_TOKENS))
        document = shard.first_document - 1 + sum(int(np.count_nonzero(block == eot)) for block in blocks)
    file, row = source_of(manifest, document)
    return Location(shard=shard.file, offset=offset, document=document, source_file=file, source_row=row)


def source_of(manifest: Manifest, document: int | None) -> tuple[str | None, int | None]:
    """The source file and row that a document came from; None for what the manifest does not tell."""
    if manifest.source is None or document is None:
        return None, None
    for file in manifest.source.files:
        if document < file.documents:
            return file.path, file.row_of(document)
        document -= file.documents
    return None, None
