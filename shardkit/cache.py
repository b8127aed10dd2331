"""stub"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardkit.manifest import Manifest


class ShardCache:
    manifest: Manifest
    directory: Path
    unfinished: bool

    @classmethod
    def open(
        cls, source: str, *, split: str, folder: Path | None, cache_bytes: int | None, revision: str | None
    ) -> ShardCache:
        raise NotImplementedError

    def want(self, shards: Sequence[str]) -> None: ...
    def wait(self, shard: str) -> None: ...
    def close(self) -> None: ...
