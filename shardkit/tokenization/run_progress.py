"""How far a tokenizing run is, in figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeProgress:
    """How far a run is: totals over the whole run, `session_` figures since this process read its first chunk.

    `source_bytes_done` of `source_bytes` (0: unknown) is the share of the source's files already in the stream.
    `network_bytes` of the source came over the network in `network_seconds`; of all the workers' time `waited_share`
    went by in waiting for chunks (None: not known). `end_of_text` is the token that separates documents.
    """

    tokens: int
    documents: int
    shards: int
    source_bytes_done: int
    source_bytes: int
    session_tokens: int
    session_text_bytes: int
    session_seconds: float
    audited: int
    skipped: int
    process_ids: tuple[int, ...] = ()
    network_bytes: int = 0
    network_seconds: float = 0.0
    waited_share: float | None = None
    end_of_text: str | None = None
