"""JSON that is no lines: an array, or objects one after another over several lines, read front to back into lines.

A `.json` file is lines of JSON as often as an array; its beginning says which.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from shardkit.errors import SourceError
from shardkit.sources.ranges import checked_read
from shardkit.sources.source import InputFile, check_row_bytes

HEAD_BYTES = 1 << 16  # that tell lines from anything else
_NEAR_THE_END = 16  # characters: where the parser stumbles so near the end, the rest may be missing
_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_ENDS = str.maketrans("\r\n", "  ")  # between values, where they are space; within a string none may be


def is_lines(head: bytes) -> bool:
    """Whether a file that begins so is lines of JSON: its first line that is not blank is a whole object, or seems to
    be meant as one."""
    first, end, _ = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if first.startswith(b"["):
        return False
    if not end or not first.startswith(b"{"):
        return True
    return first.rstrip().endswith(b"}")


class JsonValues:
    """The values of an array, or those that stand one after another, of the file that `stream` reads, each as a line.

    Iterating raises `SourceError` where the text is no such thing: no value after that can be found.
    """

    def __init__(self, file: InputFile, stream: Any, block_bytes: int) -> None:
        self._file, self._stream, self._block_bytes = file, stream, block_bytes
        # what is not UTF-8 stays what it is, and is found with the row that holds it
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._before = 0  # characters before `_text`
        self._row = 0

    def __iter__(self) -> Iterator[bytes]:
        first = self._next_character()
        if first == "\ufeff":
            self._at += 1
            first = self._next_character()
        is_array = first == "["
        self._at += is_array
        following = self._next_character()
        while following and not (is_array and self._row == 0 and following == "]"):
            yield self._value()
            following = self._next_character()
            if is_array and following == ",":
                self._at += 1
                following = self._next_character()
            elif is_array and following != "]":
                raise self._fault("expected , or ]" if following else "it ends within its array")
            elif is_array:
                break
        if is_array:
            if not following:
                raise self._fault("it ends within its array")
            self._at += 1
            if self._next_character():
                raise self._fault("something follows its array")

    def _value(self) -> bytes:
        """The value that begins here."""
        while True:
            try:
                _, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _NEAR_THE_END
                if not is_cut or not self._fill():
                    self._at = error.pos
                    raise self._fault(error.msg) from None
                continue
            except RecursionError:
                raise self._fault("nested too deep to read") from None
            if end == len(self._text) and self._fill():
                continue  # of a number there may be more
            value = self._text[self._at : end].translate(_LINE_ENDS)
            self._at, self._row = end, self._row + 1
            return value.encode("utf-8", "surrogateescape")

    def _next_character(self) -> str:
        """What comes next that is not space; nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space is not None else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill():
                return ""

    def _fill(self) -> bool:
        """Read on; False at the end."""
        if self._ended:
            return False
        left = len(self._text) - self._at
        check_row_bytes(self._file, f"row {self._row:,}", left)
        # as much again as is there, or a long value would be looked through too often
        block = checked_read(self._file, lambda: self._stream.read(max(self._block_bytes, left)))
        self._ended = not block
        self._text, self._at, self._before = (
            self._text[self._at :] + self._decode(block, not block),
            0,
            self._before + self._at,
        )
        return True

    def _fault(self, why: str) -> SourceError:
        return SourceError(
            f"{self._file.path}, row {self._row:,}: not JSON ({why} at character {self._before + self._at + 1:,}): "
            "rows after it cannot be found, mend the file"
        )
