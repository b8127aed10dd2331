"""The folder for what shardkit may make again: streamed shards, and comparisons of engines."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """`$SHARDKIT_CACHE`, or `~/.cache/shardkit`; it need not exist."""
    return Path(os.environ.get("SHARDKIT_CACHE") or Path.home() / ".cache" / "shardkit").expanduser().absolute()
