"""Look at a dataset folder: what it holds, whether it is what its manifest says, what a document says.

EOT is the index: a token's document is the number of EOTs before it, so no sidecar file is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.errors import ShardError, UsageError
from shardkit.files import format_bytes, sha256_file
from shardkit.manifest import Manifest, ShardInfo
from shardkit.provenance import source_of
from shardkit.shards import open_shard
from shardkit.tokenizers import Tokenizer

_BLOCK = 1 << 22


def describe(directory: Path) -> dict[str, Any]:
    """What `shardkit info` prints: totals, tokenizer, source, and a line a split."""
    manifest = Manifest.of_folder(directory)
    source, tokenizer = manifest.source, manifest.tokenizer
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
        "encoder": " ".join(manifest.encoder.values()) or None,
        "source": source and " ".join(filter(None, [source.id, source.config, source.split, source.revision])),
        "source_files": len(source.files) if source else None,
        "fingerprint": manifest.fingerprint,
        "splits": splits,
    }


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


def peek_document(
    directory: Path, document: int, *, max_tokens: int = 300, tokenizer: str | None = None
) -> dict[str, Any]:
    """Document number `document` (from 0) of the dataset: where it is, where it came from, and its text, decoded.

    Raises `UsageError` if there is no such document, or nothing says which tokenizer made it.
    """
    manifest = Manifest.of_folder(directory)
    decoder = decoder_of(manifest, str(directory), tokenizer)
    counts = _document_counts(directory, manifest, decoder.eot_id)
    if not 0 <= document < sum(counts):
        raise UsageError(f"no document {document}: {directory} holds {sum(counts):,} documents, from 0")
    number, before = 0, 0
    while before + counts[number] <= document:
        before += counts[number]
        number += 1
    offset, ids = _read_document(directory, manifest, number, document - before, decoder.eot_id, max_tokens)
    file, row = source_of(manifest, document)
    return {
        "document": document,
        "shard": manifest.shards[number].file,
        "offset": offset,
        "source_file": file,
        "source_row": row,
        "tokens_shown": len(ids),
        "text": decoder.decode(ids),
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


def decoder_of(manifest: Manifest, where: str, tokenizer: str | None) -> Tokenizer:
    """The tokenizer to decode the dataset at `where` with: as named, else the manifest's, else GPT-2's."""
    ours = manifest.tokenizer
    name = tokenizer or (ours.name if ours else "gpt2")
    decoder = Tokenizer(name, encoder="tiktoken")
    if tokenizer is None and ours and decoder.info.ranks_sha256 != ours.ranks_sha256:
        raise UsageError(f"{name} here is another vocabulary than {where} was made with: name it with --tokenizer")
    return decoder


def _document_counts(directory: Path, manifest: Manifest, eot_id: int) -> list[int]:
    if manifest.tokenizer is not None:
        return [shard.documents for shard in manifest.shards]
    return [int(np.count_nonzero(open_shard(directory / shard.file) == eot_id)) for shard in manifest.shards]


def _read_document(
    directory: Path, manifest: Manifest, number: int, nth: int, eot_id: int, max_tokens: int
) -> tuple[int, NDArray[np.unsignedinteger]]:
    """Offset of the `nth` EOT in shard `number`, and the ids after it up to the next EOT, across shard ends."""
    tokens = open_shard(directory / manifest.shards[number].file)
    offset = int(np.flatnonzero(tokens == eot_id)[nth])
    parts: list[NDArray[np.unsignedinteger]] = []
    at, room = offset + 1, max_tokens
    for shard in manifest.shards[number:]:
        tokens = open_shard(directory / shard.file)
        part = np.array(tokens[at : at + room])
        ends = np.flatnonzero(part == eot_id)
        parts.append(part[: ends[0]] if len(ends) else part)
        room -= len(part)
        if len(ends) or room <= 0:
            break
        at = 0
    return offset, np.concatenate(parts)
