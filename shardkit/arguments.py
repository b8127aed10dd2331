"""What callers give, in the form that the rest of shardkit has it in: paths with a `~`, places, whole numbers of any
kind, text that is text."""

from __future__ import annotations

import operator
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shardkit.errors import UsageError


def user_path(path: object) -> Path:
    """The path, with `~` and `~name` as the home folders that a shell would put there; one of nobody stays as it is.
    Raises `UsageError` for what is no path."""
    if not isinstance(path, str | os.PathLike):
        hint = "; its folder is its .directory" if hasattr(path, "directory") else ""
        raise UsageError(f"expected a path, as text or a Path, got {reprlib.repr(path)}{hint}")
    return Path(os.path.expanduser(path))


def place_text(place: str | os.PathLike[str]) -> str:
    """The place as text, of which a `Path` is a folder of this machine, whatever it looks like. Raises `UsageError`."""
    if isinstance(place, str):
        return place
    path = user_path(place)
    if re.match(r"[a-z][a-z0-9]+:[/\\]", str(path)):
        raise UsageError(f"a Path of {path} has lost a slash: give an address as text")
    return str(path) if path.is_absolute() else os.path.join(os.curdir, path)


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


def check_texts(**texts: object) -> None:
    """Raise `UsageError`, which names the option, for what is neither text nor None."""
    for name, given in texts.items():
        if given is not None and not isinstance(given, str):
            raise UsageError(f"--{name.replace('_', '-')} is {reprlib.repr(given)}: expected text")


def whole_numbers(
    most: Mapping[str, int] = MappingProxyType({}), *, least: int = 1, or_none: bool = True, **numbers: Any
) -> list[Any]:
    """The `numbers`, in their order, each an `int` from `least` up to what `most` says of its name, or None if it may
    be. A float is one if it is whole. Raises `UsageError` for anything else."""
    found: list[Any] = []
    for name, given in numbers.items():
        value, option = as_int(given, floats=True), f"--{name.replace('_', '-')}"
        if value is None and or_none:
            pass
        elif not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{option} is {reprlib.repr(given)}: expected a whole number of at least {least}")
        elif value > most.get(name, value):
            raise UsageError(f"{option} is {value:,}: expected at most {most[name]:,}")
        found.append(value)
    return found
