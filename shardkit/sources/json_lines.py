"""Lines of JSON: the text of each, and what else is asked of it beside what the parser says."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.sources.pieces import UTF16, UTF16_MARKS, Texts, convert_rows, no_text
from shardkit.sources.source import ReadOptions
from shardkit.sources.whole_rows import row_text

_SPACE = re.compile(rb"[ \t\n\r\x0b\x0c]*")
_MISSING = object()


def json_rows(
    data: bytes, options: ReadOptions, path: str, *, place: int, in_bytes: bool, first: bool, values: bool = False
) -> Texts:
    """The documents of lines of JSON of the file `path`. The first one is at `place`: its byte (`in_bytes`), or its
    row; `first` says that the file begins with it. Of `values` a string is a document too, as of an array of texts."""
    if first and data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
        place += len(codecs.BOM_UTF8) if in_bytes else 0
    chosen, is_utf16 = options.choice, first and data.startswith(UTF16_MARKS)
    names = {n: [json.dumps(part) for part in {n, *n.split(".")}] for n in (*options.document_columns, *chosen.columns)}

    def text(line: bytes) -> str | None:
        if not line or line.isspace():
            return None
        if is_utf16:
            raise ValueError(UTF16)
        decoded = line.decode("utf-8")  # json.loads(bytes) would guess UTF-16, and let surrogates through
        try:
            row = json.loads(decoded)
            repeated = [name for name, parts in names.items() if any(decoded.count(part) > 1 for part in parts)]
            twice = next((name for name in repeated if is_key_twice(decoded, _path(row, name))), None)
        except RecursionError:
            raise ValueError("JSON nested too deep to read") from None
        if values and isinstance(row, str) and not chosen.columns and not options.columns:
            return row
        if not isinstance(row, dict):
            raise ValueError(f"a JSON {type(row).__name__}, not an object")
        if twice is not None:
            raise ValueError(f"field {twice!r} is there twice")
        if chosen.columns and not chosen.keeps({name: _given(row, name) for name in chosen.columns}):
            return None
        found = {name: _field(row, name) for name in options.document_columns}
        for name, value in found.items():
            if value is _MISSING:
                raise _no_field(row, name, options)
        if options.columns:
            return row_text(found)
        value = found[options.text_field]
        if value is not None and not isinstance(value, str):
            kind = f"a {type(value).__name__}"
            raise ValueError(no_text("field", options.text_field, kind, is_chat=_is_chat(value)))
        return value or ""

    count = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    # where there is no room for many blank lines, to split is the fastest way
    rows: Iterable[tuple[int, bytes]] = filled_lines(data) if count > len(data) >> 5 else enumerate(data.split(b"\n"))
    if chosen.sample is not None:
        places = place + (_line_starts(data)[:count] if in_bytes else np.arange(count))
        sampled = np.append(chosen.in_sample(path, places), False)  # after the last line end there is nothing
        rows = (item for item in rows if sampled[item[0]])
    return convert_rows(rows, count, text, options, surely_bad=None if values else is_no_object)


def _line_starts(data: bytes) -> NDArray[np.int64]:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    return np.concatenate([[0], ends + 1])


def _path(row: Any, name: str) -> Sequence[str]:
    """The names that lead to a field: itself, or, of one within others, its parts."""
    return (name,) if isinstance(row, dict) and name in row else name.split(".")


def _field(row: dict[str, Any], name: str) -> Any:
    """The value of a field, which may be within others (`meta.text`); `_MISSING` if there is none."""
    value: Any = row
    for part in _path(row, name):
        if value is None:
            return None
        if not isinstance(value, dict) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _no_field(row: dict[str, Any], name: str, options: ReadOptions) -> ValueError:
    """What is said of a row without the field `name`: of a chat, if it holds one, how that becomes text."""
    chat = next((key for key, value in row.items() if _is_chat(value)), None)
    if chat is not None and not options.columns:
        return ValueError(no_text("field", chat, "a list", is_chat=True))
    asked = "columns" if options.columns else "--text-field"
    return ValueError(f"no field {name!r} among {', '.join(map(repr, list(row)[:8]))} ({asked})")


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _given(row: dict[str, Any], name: str) -> Any:
    value = _field(row, name)
    return None if value is _MISSING else value


def filled_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. A run of blank ones costs no more than its bytes."""
    at = row = 0
    while at < len(data):
        space = _SPACE.match(data, at)
        filled = len(data) if space is None or space.end() == len(data) else data.rfind(b"\n", at, space.end()) + 1
        if filled > at:
            row += data.count(b"\n", at, filled)
            at = filled
            continue
        end = data.find(b"\n", at)
        end = len(data) if end < 0 else end
        yield row, data[at:end]
        at, row = end + 1, row + 1


class _Pairs(tuple[tuple[str, Any], ...]):
    """An object as it is written: all its names with their values."""


def is_key_twice(text: str, path: Sequence[str]) -> bool:
    """Whether a name on the `path` to a field stands twice in its object: `json.loads` gives the last value of
    several."""
    value = json.loads(text, object_pairs_hook=_Pairs)
    for name in path:
        found = [item for key, item in value if key == name] if isinstance(value, _Pairs) else []
        if len(found) != 1:
            return len(found) > 1
        value = found[0]
    return False


def is_no_object(line: bytes) -> bool:
    return not line.lstrip().startswith(b"{")
