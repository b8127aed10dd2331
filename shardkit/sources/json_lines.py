"""What `texts.py` asks of lines of JSON, beside what the parser says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

_SPACE = re.compile(rb"[ \t\n\r\x0b\x0c]*")


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


def is_key_twice(text: str, key: str) -> bool:
    """Whether the object that `text` is has `key` more than once; `json.loads` gives the last value of several."""
    objects: list[list[str]] = []  # the keys of each; the outermost ends last
    json.loads(text, object_pairs_hook=lambda pairs: objects.append([name for name, _ in pairs]))
    return bool(objects) and objects[-1].count(key) > 1


def is_no_object(line: bytes) -> bool:
    return not line.lstrip().startswith(b"{")
