"""A result as people or programs read it: name and value, a line each, lists as indented lines; or one JSON object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from shardkit.notebook import html_lines
from shardkit.redaction import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Result = Mapping[str, Any] | DataclassInstance


class ShownAsLines:
    """A result whose `str`, and whose cell in a notebook, are the lines that its command prints."""

    __slots__ = ()

    def __str__(self: DataclassInstance) -> str:
        return "\n".join(result_lines(self))

    def _repr_html_(self) -> str:
        return html_lines(str(self))


def result_lines(result: Result) -> Iterator[str]:
    """The lines of `result`; what is None, no words or no items is left out. Control characters are escaped."""
    for name, value in _fields(result).items():
        label = name.replace("_", " ")
        if isinstance(value, list | tuple):
            if value:
                yield f"{label}:"
            for item in value:
                yield "  " + "  ".join(_words(v) for v in (item.values() if isinstance(item, dict) else [item]))
        elif name == "text":
            yield f"{label}:\n{printable(value)}"
        elif value is not None and value != "":
            yield f"{label}: {_words(value)}"


def result_json(result: Result) -> str:
    """`result` as one line of JSON: its numbers are numbers."""
    return json.dumps(dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result)


def _fields(result: Result) -> Mapping[str, Any]:
    if isinstance(result, Mapping):
        return result
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else printable(str(value), lines=False)
