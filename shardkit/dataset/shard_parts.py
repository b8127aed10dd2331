"""A shard that several processes write, each its ranges of the file, and one of them finishes.

Whole disk blocks go past the page cache, as `files.LongFile` writes them. What a range has of a block that it shares
with the ranges beside it, its edges, comes back from `PartWriter.write`, and so does a small range as a whole;
`FileParts` gathers what came back, and `finish_parts` writes the edges of all, with the header. It reads the file back
for its SHA-256, and compares each range with a hash of what was in memory: what gets a SHA-256 is what was given to be
written, wherever and by whomever.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import xxhash

from shardkit.files import DIRECT_BLOCK, blocks_past_cache, open_past_cache, write_at, write_through_cache

_DISK_BLOCK = 4096  # bytes: where direct reads and writes may begin and end on the disks of today
_SMALL = 1 << 16  # bytes of a range that is not worth a write of its own
_PART_BYTES = 256  # of memory, some, beside what its edges hold


class Edge(NamedTuple):
    """Bytes of a file, and the place of the first."""

    place: int
    data: bytes


class Part(NamedTuple):
    """A range of a file that somebody wrote: its place and length in bytes, its hash in memory (XXH3, 64 bits), and its
    edges, which are not in the file yet."""

    place: int
    length: int
    digest: int
    edges: tuple[Edge, ...]


def part_of_bytes(place: int, data: bytes) -> Part:
    """A part that is an edge as a whole."""
    return Part(place, len(data), xxhash.xxh3_64_intdigest(data), (Edge(place, data),))


class PartWriter:
    """Writes ranges of files that are there. No file stays open: one that is removed would keep its room on the disk.
    Methods raise `OSError`."""

    def __init__(self) -> None:
        self._block = mmap.mmap(-1, DIRECT_BLOCK)  # page-aligned, as direct writes must be

    def write(self, path: str, place: int, data: memoryview) -> Part:
        """Write `data` (of bytes) at `place` of a file, but for its edges; of little data nothing."""
        if len(data) < _SMALL:
            return part_of_bytes(place, bytes(data))
        return self._write(path, place, data)

    def join(self, path: str, parts: Iterable[Part]) -> list[Part]:
        """The parts of a file, where those that are edges as a whole and touch are written, and are one each."""
        runs: list[list[Part]] = []
        for part in sorted(parts):
            last = runs[-1][-1] if runs else None
            if last and _is_edge(last) and _is_edge(part) and part.place == last.place + last.length:
                runs[-1].append(part)
            else:
                runs.append([part])
        return [
            run[0]
            if len(run) == 1
            else self._write(path, run[0].place, memoryview(b"".join(part.edges[0].data for part in run)))
            for run in runs
        ]

    def _write(self, path: str, place: int, data: memoryview) -> Part:
        first = -(-place // _DISK_BLOCK) * _DISK_BLOCK
        last = (place + len(data)) // _DISK_BLOCK * _DISK_BLOCK
        if last <= first:
            return part_of_bytes(place, bytes(data))
        descriptor, direct = open_past_cache(path, os.O_WRONLY)
        try:
            with memoryview(self._block) as block:
                for at in range(first, last, DIRECT_BLOCK):
                    count = min(DIRECT_BLOCK, last - at)
                    block[:count] = data[at - place : at - place + count]
                    direct = _write_all(descriptor, at, block[:count], direct=direct)
        finally:
            os.close(descriptor)
        edges = Edge(place, bytes(data[: first - place])), Edge(last, bytes(data[last - place :]))
        digest = xxhash.xxh3_64_intdigest(data)
        return Part(place, len(data), digest, tuple(edge for edge in edges if edge.data))


def _is_edge(part: Part) -> bool:
    return len(part.edges) == 1 and len(part.edges[0].data) == part.length


def _write_all(descriptor: int, place: int, data: memoryview, *, direct: bool) -> bool:
    """Write whole disk blocks, past the page cache if `direct`; whether that can be."""
    while data:
        try:
            count = write_at(descriptor, data, place)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            write_through_cache(descriptor)  # block sizes that this disk cannot take
            direct = False
            continue
        data, place = data[count:], place + count
    return direct


class FileParts:
    """What came back from those who write a file: its `parts`, as few and with as little of edges as can be."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.parts: list[Part] = []
        self._memory = 0  # that the parts have taken since they were joined

    def add(self, part: Part, writer: PartWriter) -> None:
        """Note a part that was written; where many came back whole, have them written. Raises `OSError`."""
        self.parts.append(part)
        self._memory += _PART_BYTES + sum(len(edge.data) for edge in part.edges)
        if self._memory >= DIRECT_BLOCK:
            self.parts, self._memory = writer.join(self.path, self.parts), 0

    @property
    def written(self) -> int:
        """How many bytes are in the file."""
        return sum(part.length - sum(len(edge.data) for edge in part.edges) for part in self.parts)


def finish_parts(path: str, parts: Iterable[Part]) -> tuple[int, str]:
    """Write the edges of `parts`, which together are the whole file, and wait until all of it is on the disk: its size
    in bytes and its SHA-256. Raises `OSError`, with `EIO` if the file does not hold what was written to it."""
    ordered = sorted(parts)
    size = ordered[-1].place + ordered[-1].length
    with open(path, "r+b", buffering=0) as file:
        for place, data in _joined(edge for part in ordered for edge in part.edges):
            view = memoryview(data)
            while view:
                count = write_at(file.fileno(), view, place)
                view, place = view[count:], place + count
        os.fsync(file.fileno())
        if (there := os.fstat(file.fileno()).st_size) != size:
            raise OSError(errno.EIO, f"{there:,} bytes are there, {size:,} were written")
    digest, checks = hashlib.sha256(), _PartChecks(ordered)
    for block in blocks_past_cache(path, size):
        digest.update(block)
        checks.update(block)
    return size, digest.hexdigest()


def _joined(edges: Iterable[Edge]) -> Iterator[Edge]:
    """`edges`, in order of their places, those that touch as one."""
    place, pieces, end = 0, list[bytes](), -1
    for edge in edges:
        if edge.place != end:
            if pieces:
                yield Edge(place, b"".join(pieces))
            place, pieces = edge.place, []
        pieces.append(edge.data)
        end = edge.place + len(edge.data)
    if pieces:
        yield Edge(place, b"".join(pieces))


class _PartChecks:
    """Compares a file's bytes, which come in order, with the hashes of its parts."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = iter(parts)
        self._next(0)

    def update(self, block: memoryview) -> None:
        while block:
            piece = block[: self._left]
            self._hash.update(piece)
            self._left -= len(piece)
            block = block[len(piece) :]
            if not self._left:
                if self._hash.intdigest() != self._part.digest:
                    raise OSError(errno.EIO, f"other bytes than were written are in it, at {self._part.place:,}")
                self._next(self._part.place + self._part.length)

    def _next(self, place: int) -> None:
        part = next(self._parts, None)
        while part is not None and not part.length:
            part = next(self._parts, None)
        if part is None:
            return
        if part.place != place:
            raise ValueError(f"a part at {part.place:,} where one at {place:,} is missing or written twice")
        self._part, self._left, self._hash = part, part.length, xxhash.xxh3_64()
