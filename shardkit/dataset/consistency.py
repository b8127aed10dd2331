"""Whether what a manifest or a journal states of its shards is possible: names, order, sums, hashes. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shardkit.dataset.records import ShardInfo, TokenizerInfo
from shardkit.dataset.shards import DTYPES, SHARD_NAME, longest_shard

_SHA256 = re.compile("[0-9a-f]{64}")
_LONGEST_NAME = 255  # bytes; what file systems take


def check_shards(shards: Iterable[ShardInfo]) -> None:
    """Check each shard, and that they follow each other as in a stream; some of them may be left out.

    Raises `ValueError` for the first one that is not possible.
    """
    before: ShardInfo | None = None
    last: dict[str, int] = {}  # the index of each split's last shard
    for shard in shards:
        _check_alone(shard)
        if shard.index <= last.get(shard.split, -1) or (before is not None and shard.index < before.index):
            raise ValueError(f"it names a shard twice, or not in the order of their indices: {shard.file}")
        documents = 0 if before is None else before.first_document + before.documents
        follows = shard.index == (0 if before is None else before.index + 1)
        if shard.first_document < documents or (follows and shard.first_document != documents):
            raise ValueError(
                f"{shard.file} begins with document {shard.first_document}, {documents} begin in the shards before it"
            )
        before, last[shard.split] = shard, shard.index


def check_tokens_per_shard(shards: Iterable[ShardInfo], *, dtype: str, tokens_per_shard: int) -> None:
    """Check that each shard's bytes can hold its tokens, of `dtype`, and that it is not too long. `ValueError`."""
    if dtype not in DTYPES:
        raise ValueError(f"it has dtype {dtype!r:.60}, expected one of {', '.join(DTYPES)}")
    for shard in shards:
        if shard.tokens > tokens_per_shard:
            raise ValueError(f"{shard.file} has {shard.tokens} tokens, tokens_per_shard is {tokens_per_shard}")
        least = shard.tokens * DTYPES[dtype].itemsize
        if not least < shard.bytes <= longest_shard(shard.tokens, DTYPES[dtype]):
            raise ValueError(f"{shard.file} has {shard.tokens} {dtype} tokens in {shard.bytes} bytes")


def check_tokenizer(tokenizer: TokenizerInfo, dtype: str) -> None:
    """Check that the EOT is a token of the vocabulary, and that shards of `dtype` can hold it. Raises `ValueError`."""
    if not tokenizer.eot_id < tokenizer.vocab_size or tokenizer.eot_id >> 8 * DTYPES[dtype].itemsize:
        raise ValueError(
            f"its tokenizer has eot_id {tokenizer.eot_id} of {tokenizer.vocab_size} ids, its shards are {dtype}"
        )


def _check_alone(shard: ShardInfo) -> None:
    match = SHARD_NAME.match(shard.file)
    if match is None or len(shard.file.encode()) > _LONGEST_NAME:
        raise ValueError(f"it names a shard {shard.file!r:.99}, expected PREFIX_SPLIT_000000.npy")
    if (match["split"], int(match["index"])) != (shard.split, shard.index):
        raise ValueError(f"{shard.file} is stated as shard {shard.index} of split {shard.split!r:.60}")
    if not 0 < shard.tokens < shard.bytes or shard.documents > shard.tokens:
        raise ValueError(
            f"{shard.file} has {shard.tokens} tokens, {shard.documents} documents among them, in {shard.bytes} bytes"
        )
    hashes = [text for text in (shard.sha256, shard.edges) if text]
    if not hashes or not all(map(_SHA256.fullmatch, hashes)):
        raise ValueError(f"{shard.file} has sha256 {shard.sha256!r:.80}, expected 64 hexadecimal digits")
