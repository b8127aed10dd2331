"""`verify`: whether a dataset folder is what its manifest says, byte for byte and token for token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardkit.arguments import user_path
from shardkit.dataset.check import check_hash
from shardkit.dataset.known_files import KnownFiles
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.records import ShardInfo
from shardkit.dataset.shards import MEND, map_tokens
from shardkit.errors import ShardError
from shardkit.look.result_lines import ShownAsLines

_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyResult(ShownAsLines):
    """What was checked. `verified` says that every byte was compared with a SHA-256: it is False where hashes were left
    out, or `shards_without_hash` have none."""

    dataset: str
    verified: bool
    shards: int
    tokens: int
    documents: int
    shards_without_hash: int
    fingerprint: str


def verify(directory: str | Path, *, hashes: bool = True) -> VerifyResult:
    """Check every shard of the dataset folder `directory` against its manifest: length, dtype, SHA-256 (not with
    `hashes=False`), ids below the vocabulary's size, EOT count. Sizes and headers come first, for they are quick.

    Raises `ShardError` naming the first shard that is not what the manifest says, and `ManifestError`.

    >>> verify("out").verified
    True
    """
    directory = user_path(directory)
    known = KnownFiles(directory)
    manifest = Manifest.of_folder(directory)
    manifest.check_files(directory)
    for shard in manifest.shards:
        path = directory / shard.file
        with known.open(shard, manifest.dtype) as file:  # one file for all that is said of it
            if hashes:
                check_hash(file, path, shard)
                file.seek(0)
            if manifest.tokenizer is not None:
                tokens = map_tokens(file, path)
                _check_ids(tokens, path, shard, manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id)
    unhashed = sum(not (hashes and shard.sha256) for shard in manifest.shards)
    return VerifyResult(
        dataset=str(directory),
        verified=unhashed == 0,
        shards=len(manifest.shards),
        tokens=manifest.tokens,
        documents=manifest.documents,
        shards_without_hash=unhashed,
        fingerprint=manifest.fingerprint,
    )


def _check_ids(tokens: np.memmap, path: Path, shard: ShardInfo, vocab_size: int, eot_id: int) -> None:
    documents = 0
    for begin in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[begin : begin + _BLOCK_TOKENS]
        if (largest := int(block.max())) >= vocab_size:
            raise ShardError(f"{path} holds id {largest}, the vocabulary has {vocab_size:,}: not its shard, {MEND}")
        documents += int(np.count_nonzero(block == eot_id))
    if documents != shard.documents:
        raise ShardError(
            f"{path} holds {documents:,} EOT tokens, the manifest says {shard.documents:,}: it is damaged, {MEND}"
        )
