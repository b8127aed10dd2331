"""What callers give, in the form that the rest of shardkit has it in: paths with a `~`, whole numbers of any kind."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shardkit.errors import UsageError


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` and `~name` as the home folders that a shell would put there; one of nobody stays as it is."""
    return Path(os.path.expanduser(path))


def as_int(value: Any, *, floats: bool = False) -> Any:
    """`value` as an `int` if it is a whole number of another type (numpy's; with `floats` also `1e8`); anything else as
    it is, for a check to refuse."""
    if isinstance(value, bool):
        return value
    if floats and isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        return value


def whole_numbers(
    most: Mapping[str, int] = MappingProxyType({}), *, least: int = 1, **numbers: Any
) -> list[int | None]:
    """The `numbers`, in their order, each an `int` from `least` up to what `most` says of its name, or None. A float is
    one if it is whole. Raises `UsageError` for anything else."""
    found: list[int | None] = []
    for name, given in numbers.items():
        value, option = as_int(given, floats=True), f"--{name.replace('_', '-')}"
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{option} is {given!r}: expected a whole number of at least {least}")
        if value is not None and value > most.get(name, value):
            raise UsageError(f"{option} is {value:,}: expected at most {most[name]:,}")
        found.append(value)
    return found
