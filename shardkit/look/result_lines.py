"""The result of a command for people: name and value, a line each; lists as indented lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardkit.redaction import printable


def result_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The lines of `result`; values that are None are left out. Control characters are escaped."""
    for name, value in result.items():
        label = name.replace("_", " ")
        if isinstance(value, list):
            yield f"{label}:"
            for item in value:
                yield "  " + "  ".join(_words(v) for v in (item.values() if isinstance(item, dict) else [item]))
        elif name == "text":
            yield f"{label}:\n{printable(value)}"
        elif value is not None:
            yield f"{label}: {_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else printable(str(value), lines=False)
