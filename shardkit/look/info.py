"""`shardkit info`: what a dataset folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardkit.dataset.manifest import Manifest
from shardkit.files import format_bytes


def describe(directory: Path) -> dict[str, Any]:
    """What `shardkit info` prints: totals, tokenizer, source, and a line a split."""
    manifest = Manifest.of_folder(directory)
    source, tokenizer = manifest.source, manifest.tokenizer
    origin = [source.id, source.config, source.split, source.revision, source.options.get("path")] if source else []
    splits = [
        {
            "split": split,
            "shards": f"{len(shards):,} shards",
            "tokens": f"{sum(s.tokens for s in shards):,} tokens",
            "documents": f"{sum(s.documents for s in shards):,} documents",
            "bytes": format_bytes(sum(s.bytes for s in shards)),
        }
        for split, shards in manifest.splits.items()
    ]
    return {
        "dataset": str(directory),
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "tokens_per_shard": manifest.tokens_per_shard,
        "dtype": manifest.dtype,
        "tokenizer": tokenizer and f"{tokenizer.name} ({tokenizer.vocab_size:,} ids, EOT {tokenizer.eot_id})",
        "encoder": encoder_words(manifest) or None,
        "source": " ".join(str(part) for part in origin if part) or None,
        "source_files": len(source.files) if source else None,
        "fingerprint": manifest.fingerprint,
        "splits": splits,
    }


def encoder_words(manifest: Manifest) -> str:
    """The engine that made a dataset, its version, and of how many characters documents were left to the reference."""
    facts = manifest.encoder
    words = " ".join(facts[name] for name in ("engine", "version") if name in facts)
    guarded = facts.get("guarded_characters", "0")
    return words if guarded == "0" else f"{words}, documents with one of {guarded} characters by the reference"
