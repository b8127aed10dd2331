"""A journal at a remote, where a file can only be replaced as a whole: its lines in segments.

A segment holds at most `SEGMENT_LINES` lines and 64 kB: `journal.jsonl` the first ones, `journal-000128.jsonl` those
from line 128 on, and so on. Only the last segment changes when a shard is added, so the bytes sent grow with the
shards, not with their square.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from shardkit.dataset.folder import WORK_DIR
from shardkit.dataset.journal import JOURNAL_FILE

SEGMENT_LINES = 128  # most lines of a segment: about 60 kB where a shard is made of few source files
SEGMENT_BYTES = 1 << 16  # most bytes of one with more than one line
_SEGMENT_NAME = re.compile(rf"{re.escape(WORK_DIR)}/journal-(\d{{6,}})\.jsonl")


class SentSegments:
    """How far a journal is at a remote, which has its lines before number `sent`. `lines` may grow meanwhile."""

    def __init__(self, lines: Sequence[bytes], sent: int = 0) -> None:
        self._lines, self._sent = lines, sent
        self._starts: list[int] = []  # of segments

    def up_to(self, end: int) -> dict[str, bytes]:
        """The segments that hold a line from number `sent` to `end`, by file name, in order: what must be written to
        the remote, so that it has the lines before `end`; then it counts as having them."""
        if end <= self._sent:
            return {}
        self._extend_starts(end)
        first = max(0, bisect_right(self._starts, self._sent) - 1)
        changed = {
            f"{WORK_DIR}/journal-{start:06d}.jsonl" if start else JOURNAL_FILE: b"".join(self._lines[start:stop])
            for start, stop in pairwise([*self._starts[first:], end])
            if stop > self._sent
        }
        self._sent = end
        return changed

    def _extend_starts(self, end: int) -> None:
        """Note where further segments begin, before line `end`. That of a line depends on the lines before it alone."""
        starts = self._starts
        at = starts[-1] if starts else 0
        size = 0
        for number in range(at, end):
            size += len(self._lines[number])
            if not starts or (number > at and (size > SEGMENT_BYTES or number - at == SEGMENT_LINES)):
                starts.append(number)
                at, size = number, len(self._lines[number])


def segment_files(names: Iterable[str]) -> list[str]:
    """Those of `names` that are segments of a journal, in the order of their lines."""
    return sorted((name for name in names if _first_line(name) is not None), key=lambda name: _first_line(name) or 0)


def joined_segments(segments: Mapping[str, bytes]) -> bytes:
    """The journal whose segments are given by file name, up to the first line that none of them holds.

    A `journal.jsonl` of more than `SEGMENT_LINES` lines, as earlier versions wrote it, may be followed by segments too.
    """
    lines: list[bytes] = []
    for name in segment_files(segments):
        start, more = _first_line(name) or 0, segments[name].splitlines(keepends=True)
        if start > len(lines) or (start == len(lines) and lines and not lines[-1].endswith(b"\n")):
            break
        if start + len(more) > len(lines):
            lines[start:] = more
    return b"".join(lines)


def _first_line(name: str) -> int | None:
    """The number of the first line of the segment that is called `name`; None for another file."""
    if name == JOURNAL_FILE:
        return 0
    match = _SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else None
