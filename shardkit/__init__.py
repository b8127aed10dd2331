"""shardkit: from raw text to training batches by the shortest, cheapest, most trustworthy road.

    from shardkit import ShardLoader, tokenize, push, pull, Manifest

Importing this package loads nothing heavy: each name imports what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardkit.errors import ShardkitError

if TYPE_CHECKING:
    from shardkit.manifest import Manifest
    from shardkit.pipeline import tokenize
    from shardkit.shards import open_shard

__version__ = "0.1.0"
__all__ = ["Manifest", "ShardkitError", "__version__", "open_shard", "tokenize"]

_HOMES = {
    "Manifest": "shardkit.manifest",
    "open_shard": "shardkit.shards",
    "tokenize": "shardkit.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
