"""Reads and checks JSON that somebody else wrote, or that may be damaged. Every such text is read here.

Whatever is in a text, the only exception is a `ValueError`, which names the place and what was expected there. Whether
values make sense together is not checked here, but by the callers (`consistency.py` for shards).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Record = TypeVar("Record")
_Reader = Callable[[Any], Any]  # a value as `json` gives it, to a checked one

_MOST = (1 << 63) - 1  # of every number in our files: what an int64 holds
_DEEPEST = 32  # levels of nesting, in values of free shape
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_VALUE = dataclasses.MISSING


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text (bytes are UTF-8). Raises only `ValueError`: also where a name is twice in an object,
    a number is NaN or infinite, a string cannot be written again, or the nesting is too deep for Python."""
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read_record(kind: type[Record], value: object) -> Record:
    """`value`, as `parse_json` gave it, as the dataclass `kind`: every field there, of its type, and no others.

    Numbers are whole, from 0 to 2**63 - 1. Raises `ValueError`.

    >>> from shardkit.dataset.records import TokenizerInfo
    >>> read_record(TokenizerInfo, {"name": "gpt2", "vocab_size": 5.5, "eot_id": 4, "ranks_sha256": ""})
    Traceback (most recent call last):
    ...
    ValueError: vocab_size is 5.5, expected a whole number from 0 to 9223372036854775807
    """
    try:
        return typing.cast(Record, _reader_of(typing.cast(Any, kind))(value))
    except ValueError as error:
        raise ValueError(str(error).strip(". ")) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _misfit(value: object, expected: str) -> ValueError:
    """The error for `value`; the caller, who knows its place, puts that before it."""
    simple = value is None or isinstance(value, str | int | float)
    shown = f"{value!r:.60}" if simple else f"a {type(value).__name__}"
    return ValueError(f" is {shown}, expected {expected}")


@functools.cache
def _reader_of(kind: Any) -> _Reader:
    """What reads a value of the annotation `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _read_any
    if kind is int:
        return _read_count
    if kind in (str, bool):
        return functools.partial(_read_plain, kind)
    if origin in (types.UnionType, typing.Union):
        kinds = [_reader_of(arg) for arg in args if arg is not types.NoneType]
        read = kinds[0] if len(kinds) == 1 else functools.partial(_read_either, *kinds)
        return functools.partial(_read_optional, read) if types.NoneType in args else read
    if origin is tuple and args[-1] is not Ellipsis:
        return functools.partial(_read_fixed, [_reader_of(arg) for arg in args])
    if origin in (tuple, list):
        return functools.partial(_read_items, origin, _reader_of(args[0]))
    if origin in (dict, collections.abc.Mapping):
        return functools.partial(_read_mapping, args[0], _reader_of(args[1]))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        readers = {field.name: _reader_of(hints[field.name]) for field in dataclasses.fields(kind)}
        needed = [
            field.name
            for field in dataclasses.fields(kind)
            if field.default is _NO_VALUE and field.default_factory is _NO_VALUE
        ]
        return functools.partial(_read_fields, kind, readers, needed)
    raise TypeError(f"no JSON is read as {kind}")


def _read_count(value: Any) -> int:
    if type(value) is int and 0 <= value <= _MOST:
        return value
    raise _misfit(value, f"a whole number from 0 to {_MOST}")


def _read_plain(kind: type, value: Any) -> Any:
    if type(value) is kind:
        return value
    raise _misfit(value, "text" if kind is str else "true or false")


def _read_optional(read: _Reader, value: Any) -> Any:
    return None if value is None else read(value)


def _read_either(plain: _Reader, run: _Reader, value: Any) -> Any:
    """A plain value, or a list of them."""
    return run(value) if type(value) is list else plain(value)


def _read_fixed(readers: list[_Reader], value: Any) -> Any:
    if type(value) is not list or len(value) != len(readers):
        raise _misfit(value, f"a list of {len(readers)}")
    return tuple(read(item) for read, item in zip(readers, value, strict=True))


def _read_items(kind: type, read: _Reader, value: Any) -> Any:
    if type(value) is not list:
        raise _misfit(value, "a list")
    items = []
    try:
        for item in value:
            items.append(read(item))  # noqa: PERF401 (the number of the wrong one is wanted)
    except ValueError as error:
        raise ValueError(f"[{len(items)}]{error}") from None
    return kind(items)


def _read_mapping(key_kind: type, read: _Reader, value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise _misfit(value, "an object")
    result: dict[Any, Any] = {}
    for name, item in value.items():
        if key_kind is int and not re.fullmatch("0|[1-9][0-9]{0,17}", name):
            raise ValueError(f" has the name {name!r:.60}, expected a whole number")
        try:
            result[key_kind(name)] = read(item)
        except ValueError as error:
            raise ValueError(f"[{name!r:.60}]{error}") from None
    return result


def _read_fields(kind: type, readers: dict[str, _Reader], needed: list[str], value: Any) -> Any:
    if type(value) is not dict:
        raise _misfit(value, "an object")
    if missing := [name for name in needed if name not in value]:
        raise ValueError(f" has no {missing[0]!r} in it")
    if unknown := value.keys() - readers.keys():
        raise ValueError(f" has {min(unknown)!r:.60} in it, which this shardkit does not know")
    fields = {}
    for name, item in value.items():
        try:
            fields[name] = readers[name](item)
        except ValueError as error:
            raise ValueError(f".{name}{error}") from None
    return kind(**fields)


def _read_any(value: Any, depth: int = 0) -> Any:
    """A value of free shape: finite, and of bounded depth, so that whatever is done with it ends."""
    if depth > _DEEPEST:
        raise ValueError(f" is nested more than {_DEEPEST} deep")
    if isinstance(value, float) and not math.isfinite(value):
        raise _misfit(value, "a number")
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _read_any(item, depth + 1)
    return value
