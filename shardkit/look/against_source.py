"""Whether a dataset holds what its source gives: places of source files are read and encoded again."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import Manifest, ShardInfo, SourceFile
from shardkit.dataset.shards import DTYPES, read_header, token_blocks
from shardkit.errors import ShardError, UsageError
from shardkit.look.opened import tokenizer_of
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.parquet import first_rows
from shardkit.sources.source import Source
from shardkit.tokenization.worker import ChunkEncoder, Job

_PLACES = 16  # of a source: a place in each of so many files, at equal distances, or several where there are fewer
_CHUNK_BYTES = 1 << 20
# What changes the stream and cannot be done again from what the manifest says.
_NOT_AGAIN = ("transform", "filter", "skip_duplicates", "sources")


class Place(NamedTuple):
    """Where source file `number` is read: from `start` (a row group) on, whose first document is of `row`, and
    `document` in the dataset. `is_first` of the places in its file."""

    number: int
    start: int
    row: int
    document: int
    is_first: bool


class SourceComparison:
    """Compares shards with the `source` that they were made of, in any thread; `why_not` says why that cannot be done,
    if it cannot. Raises `UsageError` for another source, and what opening one raises."""

    def __init__(self, manifest: Manifest, source: str | None) -> None:
        self._lock = threading.Lock()
        self._places: list[Place] = []
        self.why_not = _why_not(manifest, source)
        if self.why_not is not None or source is None:
            return
        tokenizer, self.why_not = tokenizer_of(manifest)
        if tokenizer is None:
            return
        self._source = _opened(manifest, source)
        self._files = manifest.source.files if manifest.source else ()
        self._places = list(_places(self._source, self._files))
        self._eot_id, self._dtype = tokenizer.eot_id, DTYPES[manifest.dtype]
        job = Job(vocabulary=tokenizer.vocabulary, encoder="tiktoken", read=self._source.options, audit_stride=1)
        self._encoder = ChunkEncoder(job)

    def check(self, file: BufferedReader, path: Path, shard: ShardInfo) -> tuple[int, int]:
        """Compare an open shard at the places whose documents begin in it; of how many files that was the first place,
        and how many places were compared. Raises `ShardError`, and `SourceError` for a source that cannot be read."""
        end = shard.first_document + shard.documents
        places = [place for place in self._places if shard.first_document <= place.document < end]
        if not places:
            return 0, 0
        file.seek(0)
        header = read_header(file, path)
        offsets = self._offsets(file, path, shard, places)
        for place, offset in zip(places, offsets, strict=True):
            with self._lock:
                expected = self._given_at(place)
            file.seek(header.bytes + offset * header.dtype.itemsize)
            count = min(len(expected), header.tokens - offset)
            got = np.frombuffer(file.read(count * header.dtype.itemsize), header.dtype)
            if differs := np.flatnonzero(got != expected[:count])[:1].tolist():
                at, name = differs[0], self._files[place.number].path
                raise ShardError(
                    f"{path}: from token {offset + at:,} on it does not hold what {name} gives from its row "
                    f"{place.row:,} on, {at:,} tokens later (expected {expected[at : at + 5].tolist()}, got "
                    f"{got[at : at + 5].tolist()}): the file has changed, its size has not, or the manifest was "
                    "edited; tokenize again"
                )
        return sum(place.is_first for place in places), len(places)

    def _offsets(self, file: BufferedReader, path: Path, shard: ShardInfo, places: list[Place]) -> list[int]:
        """Where in an open shard, which is at its tokens, the documents of `places` begin."""
        found: list[int] = []
        done, at = shard.first_document, 0
        for block in token_blocks(file, path, self._dtype, shard.tokens):
            starts = np.flatnonzero(block == self._eot_id)
            while len(found) < len(places) and places[len(found)].document < done + len(starts):
                found.append(at + int(starts[places[len(found)].document - done]))
            done, at = done + len(starts), at + len(block)
        return found

    def _given_at(self, place: Place) -> NDArray[np.unsignedinteger]:
        """The first tokens that a source file gives from a place on, and the EOT before them."""
        number, path = place.number, self._files[place.number].path
        for chunk in iter_chunks(self._source, number, place.start, 0, chunk_bytes=_CHUNK_BYTES):
            if chunk.file != number:
                break
            for piece in self._encoder.encode(chunk):
                if piece.error is not None:
                    raise piece.error
                if piece.bad_row is not None:
                    raise ShardError(f"{path}, row {piece.bad_row[0]:,} of {chunk.where}: {piece.bad_row[1]}")
                if len(piece.tokens):
                    return piece.tokens
        raise ShardError(f"{path} gives no document, where the manifest counts some: it is another file")


def _places(source: Source, files: Sequence[SourceFile]) -> Iterator[Place]:
    """Up to `_PLACES` places in files that gave documents, in the order of the stream: of each file its beginning, or,
    of one of row groups, where some of these begin, as far as it is known which documents are theirs."""
    filled = [number for number, file in enumerate(files) if file.documents]
    before = [0, *accumulate(file.documents for file in files)]
    picked = sorted({filled[i * len(filled) // _PLACES] for i in range(_PLACES)} if filled else ())
    each = max(1, _PLACES // max(1, len(picked)))
    for place, number in enumerate(picked):
        file, found = files[number], [(0, 0, 0)]
        if source.files[number].kind == "parquet" and file.row_of(file.documents - 1) is not None:
            shares = [(part + place / len(picked)) / each for part in range(each)]  # of one file its beginning too
            rows = first_rows(source.files[number])
            found = sorted({_group_at(file, rows, int(share * file.documents)) for share in shares})
        for start, row, document in found:
            yield Place(number, start, row, before[number] + document, (start, row, document) == found[0])


def _group_at(file: SourceFile, rows: Sequence[int], document: int) -> tuple[int, int, int]:
    """The row group that a document of a file is of, whose `rows` it begins with; and the row and number of the first
    document in that."""
    numbers = range(file.documents)
    group = bisect_right(rows, file.row_of(document) or 0) - 1
    first = bisect_left(numbers, rows[group], key=lambda number: file.row_of(number) or 0)
    return group, file.row_of(first) or 0, first


def _why_not(manifest: Manifest, source: str | None) -> str | None:
    if manifest.source is None:
        return "no manifest names the source"
    if source is None:
        return f"its source, {manifest.source.id}, was not given"
    changed = [name for name in _NOT_AGAIN if manifest.source.options.get(name)]
    return f"it was made with {changed[0]}, which is not in the manifest" if changed else None


def _opened(manifest: Manifest, source: str) -> Source:
    """The source, opened as it was for the dataset."""
    info = manifest.source
    assert info is not None
    of_hub = info.revision is not None and not os.path.exists(source)
    opened = open_source(
        source,
        name=info.config if of_hub else None,
        split=info.split or "train",
        revision=info.revision if of_hub else None,
        include=info.options.get("include"),
        text_field=info.text_field or "text",
        separator=info.options.get("separator"),
        skip_bad_rows=bool(info.options.get("skip_bad_rows")),
        where=info.options.get("where"),
        sample=info.options.get("sample"),
    )
    if opened.texts is not None:
        raise UsageError(f"{source} is a pipe: a source to compare with is a file, a folder, or a remote")
    made_of, found = ([(file.path, file.bytes) for file in files] for files in (info.files, opened.files))
    if made_of != found:
        other = next((pair for pair in zip(made_of, found, strict=False) if pair[0] != pair[1]), None)
        why = f"{len(found):,} files, expected {len(made_of):,}"
        if other is not None:
            (name, size), (its_name, its_size) = other
            why = f"{its_name} of {its_size:,} bytes, expected {name} of {size:,} bytes"
        raise UsageError(f"{source} is not the source of this dataset: it has {why}")
    return opened
