"""`shardkit verify`: whether a dataset folder is what its manifest says, byte for byte and token for token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import open_shard
from shardkit.errors import ShardError
from shardkit.files import sha256_file
from shardkit.look.info import _BLOCK


def verify(directory: Path, *, hashes: bool = True) -> dict[str, Any]:
    """Check every shard against the manifest: length, dtype, SHA-256, ids below the vocabulary's size, EOT count.

    Raises `ShardError` naming the first shard that is not what the manifest says.
    """
    manifest = Manifest.of_folder(directory)
    manifest.check_files(directory)
    unhashed = 0
    for shard in manifest.shards:
        path = directory / shard.file
        if hashes and shard.sha256 and (found := sha256_file(path)) != shard.sha256:
            raise ShardError(
                f"{path} has SHA-256 {found}, the manifest says {shard.sha256}: it is damaged, fetch or make it again"
            )
        unhashed += not (hashes and shard.sha256)
        if manifest.tokenizer is not None:
            _check_ids(path, shard, manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id)
    return {
        "verified": True,
        "shards": len(manifest.shards),
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "shards_without_hash": unhashed,
        "fingerprint": manifest.fingerprint,
    }


def _check_ids(path: Path, shard: ShardInfo, vocab_size: int, eot_id: int) -> None:
    tokens = open_shard(path)
    documents = 0
    for at in range(0, len(tokens), _BLOCK):
        block = tokens[at : at + _BLOCK]
        if (largest := int(block.max())) >= vocab_size:
            raise ShardError(f"{path} holds id {largest}, the vocabulary has {vocab_size:,}: not its shard")
        documents += int(np.count_nonzero(block == eot_id))
    if documents != shard.documents:
        raise ShardError(f"{path} holds {documents:,} EOT tokens, the manifest says {shard.documents:,}: damaged")
