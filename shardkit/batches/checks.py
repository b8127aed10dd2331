"""Whether a number that a user gave, or that a file holds, can be a count."""

from __future__ import annotations

from typing import TypeGuard

from shardkit.errors import UsageError


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number of at least 0, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise `UsageError`, which names the option `name`, for what is no whole number of at least `least`."""
    if not (is_count(value) and value >= least):
        raise UsageError(f"--{name.replace('_', '-')} is {value!r}: expected a whole number of at least {least}")
