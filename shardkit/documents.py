"""Where documents start in a split: a scan for EOT, at the speed that tokens are read, kept beside the dataset.

A stream is `[EOT] + document` for each document, so EOT is a document's first token and never inside one. A split may
begin in the middle of a document, whose start lies in another split, and end in the middle of one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import UsageError
from shardkit.kept import content_key, kept_arrays
from shardkit.stream import TokenStream

SCAN_VERSION = 1
_BLOCK_TOKENS = 1 << 18  # fits a core's own cache; a second thread made it slower, memory is the limit

Starts = NDArray[np.int64]


def document_starts(stream: TokenStream, eot_id: int, cache: Path | None) -> Starts:
    """The place of every EOT token in the stream, ascending; memory-mapped where `cache`, a folder, can keep it.

    Raises `UsageError` where the shards' dtype cannot hold `eot_id`.
    """
    if not 0 <= eot_id <= np.iinfo(stream.dtype).max:
        raise UsageError(
            f"the EOT id is {eot_id}, the shards of {stream.directory} hold {stream.dtype.name} tokens: give the id "
            "that the shards were tokenized with"
        )
    kept = kept_arrays(cache, "starts", starts_key(stream, eot_id), {"starts": "<i8"}, lambda: _scan(stream, eot_id))
    return np.asarray(kept["starts"], np.int64)


def starts_key(stream: TokenStream, eot_id: int) -> str:
    """What decides where documents start, as text."""
    return json.dumps(["starts", SCAN_VERSION, eot_id, content_key(stream)])


def _scan(stream: TokenStream, eot_id: int) -> Iterator[tuple[Starts]]:
    buffer = np.empty(_BLOCK_TOKENS, stream.dtype)
    for begin in range(0, stream.tokens, _BLOCK_TOKENS):
        block = buffer[: stream.tokens - begin]
        stream.read(begin, block)
        yield (np.flatnonzero(block == eot_id) + begin,)
