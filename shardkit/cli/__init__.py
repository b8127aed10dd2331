"""The command line. A command parses, calls one function, prints; everything heavy is imported inside it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("main", "run"):
        from shardkit.cli import commands

        return getattr(commands, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
