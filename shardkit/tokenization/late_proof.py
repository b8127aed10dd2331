"""The proof of a run over a source of which nobody knows how much text it has: it is made once much has gone by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from shardkit.sources.source import Chunk
from shardkit.tokenization import proving
from shardkit.tokenization.run_size import has_known_size, limit_bytes
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.tokenizer import Tokenizer


class LateProof:
    """Of a run that began with the reference: `after` says with what it goes on."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._is_wanted = spec.tokenizer.is_unproven and not has_known_size(spec.source)
        self._most = limit_bytes(max_docs=spec.max_docs, max_tokens=spec.max_tokens) or math.inf
        self._text_bytes = 0
        self._over = False  # no more chunks come

    def watched(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """`chunks`, whose end is noted."""
        yield from chunks
        self._over = True

    def after(self, text_bytes: int) -> RunSpec | None:
        """The run as it goes on when so much more text is encoded; None where that changes nothing. Proves, where so
        much has gone by that the rest is likely to be worth it too, and warns (`ShardkitWarning`) as `with_proof`
        does."""
        self._text_bytes += text_bytes
        enough = proving.WORTH_BYTES
        if not self._is_wanted or self._over or not enough <= self._text_bytes <= self._most - enough:
            return None
        self._is_wanted = False
        vocabulary = proving.with_proof(self._spec.tokenizer.vocabulary, enough)
        tokenizer = Tokenizer(vocabulary)
        return dataclasses.replace(self._spec, tokenizer=tokenizer) if tokenizer.is_fast else None
