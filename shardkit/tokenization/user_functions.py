"""The caller's functions (`transform`, `filter`) as bytes that travel to the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shardkit.errors import UsageError


def by_value(function: Callable[..., Any] | None) -> bytes | None:
    """dill's bytes of a function and the globals that it uses. Raises `UsageError` if it is none, or cannot travel."""
    import dill

    if function is None:
        return None
    if not callable(function):
        raise UsageError(f"transform and filter are functions of a text, got a {type(function).__name__}")
    try:
        return bytes(dill.dumps(function, recurse=True))
    except Exception as error:
        raise UsageError(
            f"{getattr(function, '__qualname__', function)} cannot travel to the workers ({error}): open files, locks "
            "and connections inside the function, not around it"
        ) from error
