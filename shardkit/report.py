"""Figures of a run, for people and scripts."""

from __future__ import annotations

from typing import Any

from shardkit.assembler import Progress
from shardkit.manifest import Manifest


def run_summary(manifest: Manifest, last: Progress | None, seconds: float) -> dict[str, Any]:
    """What `shardkit tokenize` prints at its end. `last` is None when the dataset was already complete.

    `tokens_per_second` counts from the first read of this session. `audited_documents` were encoded by the reference
    too, in this session, with `audit_differences` (always 0: the first one stops the run).
    """
    skipped = sum(len(file.skipped_rows) for file in manifest.source.files) if manifest.source else 0
    summary: dict[str, Any] = {
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "shards": len(manifest.shards),
        "skipped_rows": skipped,
        "encoder": " ".join(manifest.encoder.values()),
        "fingerprint": manifest.fingerprint,
        "already_complete": last is None,
        "seconds": round(seconds, 3),
    }
    if last is not None and last.session_tokens:
        summary["tokens_per_second"] = round(last.session_tokens / max(last.session_seconds, 1e-9))
        summary["bytes_per_token"] = round(last.session_text_bytes / last.session_tokens, 3)
        summary["audited_documents"] = last.audited
        summary["audit_differences"] = 0
    return summary
