"""Lines of JSON with checksums: each line ends with one over itself and all lines before it.

A line *holds* if it and every line before it are, byte for byte, what was written. That finds what a disk, a transfer
or an editor changed. It does not find a forgery: whoever forges a line can forge its checksum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

from shardkit.dataset.typed_json import parse_json

_CHECK_BYTES = 8
_NAME = b'"check": '  # in an object; in a list the checksum is the last item
_LINE = re.compile(rb'([\[{].*), (?:"check": )?"[0-9a-f]{16}"([\]}])\n', re.DOTALL)


def checksum(record: Any) -> str:
    """The checksum of one JSON value that stands alone, whatever the order of its keys."""
    return blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=_CHECK_BYTES).hexdigest()


class CheckedLines:
    """The checksum so far, of lines that are written, or read, one after the other.

    >>> written = CheckedLines()
    >>> lines = [written.seal({"step": 1}), written.seal([2, "b"])]
    >>> CheckedLines().unseal(lines)
    [{'step': 1}, [2, 'b']]
    >>> CheckedLines().unseal([lines[0].replace(b"1", b"2"), lines[1]])
    []
    """

    def __init__(self) -> None:
        self._sum = blake2b(digest_size=_CHECK_BYTES)

    def seal(self, record: dict[str, Any] | list[Any]) -> bytes:
        """The next line: `record`, which is not empty, and the checksum."""
        body = json.dumps(record).encode()
        self._sum.update(body)
        return self._line(body)

    def unseal(self, lines: Iterable[bytes]) -> list[Any]:
        """The records of the next lines, up to the first that does not hold: `seal` would go on in its place."""
        return list(self.each(lines))

    def each(self, lines: Iterable[bytes]) -> Iterator[Any]:
        """`unseal`, one record at a time."""
        for line in lines:
            if (match := _LINE.fullmatch(line)) is None:
                break
            before, body = self._sum.copy(), match[1] + match[2]
            self._sum.update(body)
            if self._line(body) != line:
                self._sum = before
                break
            yield parse_json(body)

    def copy(self) -> CheckedLines:
        """Another one that has seen the same lines."""
        other = CheckedLines()
        other._sum = self._sum.copy()
        return other

    def _line(self, body: bytes) -> bytes:
        name = _NAME if body.endswith(b"}") else b""
        return b'%b, %b"%b"%b\n' % (body[:-1], name, self._sum.hexdigest().encode(), body[-1:])
