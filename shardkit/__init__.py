"""shardkit: from raw text to training batches by the shortest, cheapest, most trustworthy road.

    from shardkit import ShardLoader, tokenize, push, pull, Manifest

Importing this package loads nothing heavy: each name imports what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardkit.errors import ShardkitError, UsageError
from shardkit.version import __version__

if TYPE_CHECKING:
    from shardkit.fetch import pull
    from shardkit.hub import push
    from shardkit.ledger import merge_ledger
    from shardkit.loader import ShardLoader
    from shardkit.manifest import Manifest
    from shardkit.pipeline import tokenize
    from shardkit.shards import open_shard
    from shardkit.tokenizers import Tokenizer

__all__ = [
    "Manifest",
    "ShardLoader",
    "ShardkitError",
    "Tokenizer",
    "UsageError",
    "__version__",
    "merge_ledger",
    "open_shard",
    "pull",
    "push",
    "tokenize",
]

_HOMES = {
    "Manifest": "shardkit.manifest",
    "ShardLoader": "shardkit.loader",
    "Tokenizer": "shardkit.tokenizers",
    "merge_ledger": "shardkit.ledger",
    "open_shard": "shardkit.shards",
    "pull": "shardkit.fetch",
    "push": "shardkit.hub",
    "tokenize": "shardkit.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
