"""The closing figures of a run, for people and scripts."""

from __future__ import annotations

from typing import Any

from shardkit.dataset.manifest import Manifest
from shardkit.look.info import encoder_words
from shardkit.tokenization.progress_bar import bound_words
from shardkit.tokenization.run_progress import TokenizeProgress


def run_summary(manifest: Manifest, last: TokenizeProgress | None, seconds: float) -> dict[str, Any]:
    """What `shardkit tokenize` prints at its end. `last` is None when the dataset was already complete.

    `tokens_per_second` counts from the first read of this session. `audited_documents` were encoded by the reference
    too, in this session, and gave the same ids: the first difference stops a run. Of a source that came over the
    network, `network_mb_per_second`, the share of the workers' time that went by in waiting, and the bound in words.
    """
    skipped = sum(file.skipped for file in manifest.source.files) if manifest.source else 0
    summary: dict[str, Any] = {
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "shards": len(manifest.shards),
        "only_shard_cut": _cut_words(manifest),
        "skipped_rows": skipped,
        "skipped_duplicates": manifest.skipped_duplicates,
        "encoder": encoder_words(manifest),
        "end_of_text": last.end_of_text if last is not None else None,
        "fingerprint": manifest.fingerprint,
        "already_complete": last is None,
        "seconds": round(seconds, 3),
    }
    if last is not None and last.session_tokens:
        summary["tokens_per_second"] = round(last.session_tokens / max(last.session_seconds, 1e-9))
        summary["bytes_per_token"] = round(last.session_text_bytes / last.session_tokens, 3)
        summary["audited_documents"] = last.audited
    if last is not None and last.network_bytes:
        summary["network_bytes"] = last.network_bytes
        summary["network_mb_per_second"] = round(last.network_bytes / max(last.network_seconds, 1e-9) / 1e6, 1)
        summary["waited_share"] = None if last.waited_share is None else round(last.waited_share, 3)
        summary["bound"] = bound_words(last)
    return summary


def _cut_words(manifest: Manifest) -> str | None:
    """That the stream would have filled one shard only, and so was cut in two; None if it was not."""
    if [shard.split for shard in manifest.shards] != ["val", "train"] or manifest.tokens > manifest.tokens_per_shard:
        return None
    val, train = (shard.tokens for shard in manifest.shards)
    return (
        f"no more than a shard of {manifest.tokens_per_shard:,}: the first {val:,} tokens are val, {train:,} are train"
    )
