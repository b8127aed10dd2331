"""Whether documents are what their own text gives: some are decoded, and encoded again."""

from __future__ import annotations

import json
from io import BufferedReader
from pathlib import Path

import numpy as np

from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import MEND
from shardkit.errors import ShardError
from shardkit.look.opened import tokenizer_of
from shardkit.look.shard_pass import whole_documents
from shardkit.tokenization.tokenizer import Tokenizer

_DOCUMENTS, _A_SHARD = 64, 4  # of a dataset, and at least of each shard
_LONGEST = 1 << 14  # tokens; longer documents are passed over


class Reencoding:
    """Encodes documents of a dataset again, in any thread; `why_not` says why that cannot be done, if it cannot.

    Of ids that others made, documents with special tokens, as chats have them, are passed over: no text gives these.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._a_shard = max(_A_SHARD, _DOCUMENTS // len(manifest.shards))
        self._tokenizer: Tokenizer | None = None
        self._special_ids: tuple[int, ...] = ()
        self.has_passed_over = False  # documents with special tokens
        tokenizer, self.why_not = tokenizer_of(manifest)
        if tokenizer is None:
            return
        if not _gives_text_back(tokenizer.vocabulary.tokenizer_json) and not tokenizer.vocabulary.by_character:
            self.why_not = f"{tokenizer.name} changes the text, so its ids do not give it back"
            return
        self._tokenizer = tokenizer
        self._special_ids = () if manifest.source is not None else tokenizer.vocabulary.special_ids

    def why_none(self, documents: int) -> str | None:
        """Why no document was encoded again, where `documents`, how many were, is 0."""
        if documents or self.why_not is not None or not self.has_passed_over:
            return self.why_not
        return "they hold special tokens, which no text gives"

    def check(self, file: BufferedReader, path: Path, shard: ShardInfo) -> int:
        """Check some documents of an open shard; how many they were. Raises `ShardError`, and `OSError`."""
        tokenizer, checked = self._tokenizer, 0
        if tokenizer is None:
            return 0
        most = min(self._a_shard, max(1, shard.documents))
        for place, ids in whole_documents(file, path, tokenizer.eot_id, most, _LONGEST):
            if self._special_ids and np.isin(ids, self._special_ids).any():
                self.has_passed_over = True
                continue
            expected, got = tokenizer.encode_ordinary(tokenizer.decode(ids)), ids.tolist()
            if expected != got:
                shorter = min(len(expected), len(got))
                at = next((number for number in range(shorter) if expected[number] != got[number]), shorter)
                raise ShardError(
                    f"{path}: the document at token {place:,} is not what {tokenizer.name} makes of its text (from its "
                    f"token {at:,} on expected {expected[at : at + 5]}, got {got[at : at + 5]}): of another tokenizer, "
                    f"or damaged, {MEND}"
                )
            checked += 1
        return checked


def _gives_text_back(tokenizer_json: str | None) -> bool:
    """Whether decoding gives the text that was encoded: of ranks and bytes it does, of a `tokenizer.json` if it takes
    the text as it is, by bytes."""
    if tokenizer_json is None:
        return True
    stated = json.loads(tokenizer_json)
    decoder = stated.get("decoder") or {}
    return stated.get("normalizer") is None and decoder.get("type") == "ByteLevel"
