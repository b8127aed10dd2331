"""A source in parts: contiguous, balanced by bytes, the same for whoever asks. Nodes that tokenize one each need not
talk to each other.

Part `index` of `count` ends where the next one begins. A file that a border falls into is cut where one of its chunks
begins, if it can be read from there (parquet, jsonl); else, or where less than a sixteenth of a part would be gained,
the border moves to the file's nearer end.
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from shardkit.errors import UsageError
from shardkit.sources.parquet import chunk_starts
from shardkit.sources.source import InputFile, Source, Stretch

MOST_PARTS = 1 << 20
_SLACK = 16  # a file is not cut for less than that part of a part


class Border(NamedTuple):
    """Where a part ends and the next one begins: at the chunk that begins at `start` of file number `file`, of whose
    bytes some `offset` lie before it."""

    file: int
    start: int = 0
    offset: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Part `index` of `count` of a source, from the border `begin` to the border `end`."""

    index: int
    count: int
    begin: Border
    end: Border

    @property
    def name(self) -> str:
        """As `--part` has it."""
        return f"{self.index}/{self.count}"


def parse_part(text: str) -> tuple[int, int]:
    """Index and count of a part that is written "3/64"; indices count from 0. Raises `UsageError`."""
    match = re.fullmatch(r"\s*([0-9]{1,7})\s*/\s*([0-9]{1,7})\s*", text) if isinstance(text, str) else None
    if match is None:
        raise UsageError(f"--part {text!r:.40} is no part: expected I/N, as 0/64 for the first of 64")
    index, count = int(match[1]), int(match[2])
    if not 0 < count <= MOST_PARTS:
        raise UsageError(f"--part {index}/{count}: expected 1 to {MOST_PARTS:,} parts")
    if index >= count:
        raise UsageError(f"--part {index}/{count}: parts count from 0, the last one of {count} is {count - 1}/{count}")
    return index, count


def cut_part(source: Source, index: int, count: int, chunk_bytes: int) -> tuple[Part, Source]:
    """Part `index` of `count`, and what it reads of `source`: none, all or a stretch of each file. The footer of a
    parquet file that a border falls into is read.

    Raises `UsageError` for an iterable, and `SourceError` for a file that cannot be read.
    """
    if source.texts is not None:
        raise UsageError("--part cuts files, and this source is an iterable: give a path, a URL or a Hub dataset")
    begin, end = (_border(source, number, count, chunk_bytes) for number in (index, index + 1))
    part = Part(index=index, count=count, begin=begin, end=end)
    files = [_stretch(source.files[n], n, begin, end) for n in range(begin.file, end.file + (end.start > 0))]
    return part, dataclasses.replace(source, files=tuple(files if begin < end else ()))


def _stretch(file: InputFile, number: int, begin: Border, end: Border) -> InputFile:
    """What the part between two borders reads of file `number`."""
    first = begin if number == begin.file else Border(number)
    if first.start == 0 and number != end.file:
        return file
    stop, to = (end.start, end.offset) if number == end.file else (None, file.bytes)
    return dataclasses.replace(file, stretch=Stretch(start=first.start, stop=stop, bytes=to - first.offset))


def _border(source: Source, number: int, count: int, chunk_bytes: int) -> Border:
    """Where part `number` of `count` begins; of number `count`, where the last one ends."""
    files = source.files
    starts = [0, *accumulate(file.bytes for file in files)]  # of the files, in the bytes of all; the end of these
    total = starts[-1]
    if number in (0, count) or total == 0:
        return Border(len(files) * number // count)
    wanted = total * number // count
    at = bisect_right(starts, wanted) - 1
    file, offset = files[at], wanted - starts[at]
    slack = total // (count * _SLACK)
    if offset <= slack:
        return Border(at)
    if file.bytes - offset <= slack:
        return Border(at + 1)
    places = _places(source, at, offset, chunk_bytes)
    return min(places, key=lambda place: abs(starts[place.file] + place.offset - wanted))


def _places(source: Source, number: int, offset: int, chunk_bytes: int) -> list[Border]:
    """Where a border near `offset` of file `number` may lie, in order: its ends, and where chunks begin."""
    file, ends = source.files[number], (Border(number), Border(number + 1))
    between: list[Border] = []
    if file.kind == "jsonl" and not file.is_read_front_to_back:
        near = offset // chunk_bytes * chunk_bytes
        between = [Border(number, at, at) for at in (near, near + chunk_bytes) if 0 < at < file.bytes]
    elif file.kind == "parquet":
        found = chunk_starts(file, source.options, chunk_bytes)
        between = [Border(number, group, before) for group, before in found if group > 0]
    return [ends[0], *between, ends[1]]
