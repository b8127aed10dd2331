"""What a manifest consists of: one record for each shard, the source of the text, and the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shardkit.dataset.row_map import RowMap
from shardkit.redaction import public_address

LISTED_RUNS = 4096  # of a file's skipped rows
MAPS_BYTES = 32 << 20  # of maps of skipped rows in a manifest: of some 300 million rows of which one in ten was read


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One shard file.

    `tokens` and `bytes` (whole file, header included) are exact. `documents` counts the documents that start in the
    shard (its EOT tokens); `first_document` is the ordinal of the first of them in the whole dataset. `sha256` is of
    the whole file: empty where nobody has hashed it (a bare folder), and then `edges`, a hash of the file's first and
    last 4096 bytes, stands in for it in the fingerprint.
    """

    file: str
    split: str
    index: int
    tokens: int
    documents: int
    first_document: int
    sha256: str
    bytes: int
    edges: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """What one source file gave: `rows` read, `documents` and `tokens` made of them (EOT included).

    `bytes` is the file's size. `skipped_rows` are rows that became no document (blank lines, `--skip-bad-rows`,
    `--where`, `--sample`): a row, or the (first, last) of three or more that follow one another, at most `LISTED_RUNS`
    of these. Further ones are in `skipped_maps` (`row_map.py`); `unlisted_rows` counts the rest. Where there are none
    of these and `documents == rows - skipped`, the row of every document is known exactly; a `filter` breaks that.
    `duplicates` are those of the skipped rows that `--skip-duplicates` left out; None where that was not asked for, or
    by a version that did not count them.
    """

    path: str
    bytes: int
    rows: int = 0
    documents: int = 0
    tokens: int = 0
    skipped_rows: tuple[int | tuple[int, int], ...] = ()
    skipped_maps: tuple[str, ...] = ()
    unlisted_rows: int = 0
    duplicates: int | None = None

    def __post_init__(self) -> None:
        for text in self.skipped_maps:
            RowMap.of(text)

    @property
    def skipped(self) -> int:
        """How many rows became no document."""
        mapped = sum(RowMap.of(text).skipped for text in self.skipped_maps)
        return self.unlisted_rows + mapped + sum(last - first + 1 for first, last in _runs(self.skipped_rows))

    def row_of(self, document: int) -> int | None:
        """The row of the file's document number `document`; None where it is not known, or the map of it is damaged."""
        if self.unlisted_rows or self.documents != self.rows - self.skipped:
            return None
        row = document
        for first, last in _runs(self.skipped_rows):
            if first > row:
                break
            row += last - first + 1
        for rows in map(RowMap.of, self.skipped_maps):
            if rows.first > row:
                break
            if (found := rows.row_of(row)) is None:
                return None
            row = found
        return row


def add_skipped(file: SourceFile, more: Iterable[tuple[int, int]]) -> SourceFile:
    """`file` with further runs of skipped rows, (first, last), that come after those it has."""
    further, runs = list(more), [] if file.skipped_maps else _runs(file.skipped_rows)
    if not further or file.unlisted_rows:
        return replace(file, unlisted_rows=file.unlisted_rows + sum(last - first + 1 for first, last in further))
    if file.skipped_maps or len(runs) + len(further) > LISTED_RUNS:
        return replace(file, skipped_maps=(*file.skipped_maps, str(RowMap.of_runs(further))))
    for first, last in further:
        if runs and runs[-1][1] == first - 1:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    rows: list[int | tuple[int, int]] = []
    for first, last in runs:
        rows += [(first, last)] if last - first > 1 else range(first, last + 1)
    return replace(file, skipped_rows=tuple(rows))


def without_maps(file: SourceFile, known: int = 0) -> SourceFile:
    """`file`, whose maps after the first `known` are not kept: their rows are counted only."""
    counted = sum(RowMap.of(text).skipped for text in file.skipped_maps[known:])
    return replace(file, skipped_maps=file.skipped_maps[:known], unlisted_rows=file.unlisted_rows + counted)


def bounded_maps(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    """All files of a source, in order, with at most `MAPS_BYTES` of maps: the file that goes beyond, and those after
    it, have none. Nor have those after a file of which rows are not known, which a journal's bound may have done."""
    left, bounded = MAPS_BYTES, list[SourceFile]()
    for file in map(in_one_map, files):
        left = -1 if file.unlisted_rows else left - sum(map(len, file.skipped_maps)) if left >= 0 else left
        bounded.append(without_maps(file) if left < 0 and file.skipped_maps else file)
    return tuple(bounded)


def in_one_map(file: SourceFile) -> SourceFile:
    """`file`, with all its skipped rows in one map, if they are too many to be listed: the same however it was read."""
    runs = [RowMap.of(text).runs() for text in file.skipped_maps]
    if not runs or file.unlisted_rows or any(one is None for one in runs):  # nothing is known, or a map is damaged
        return file
    every = _runs([*_runs(file.skipped_rows), *(run for one in runs for run in one or ())])
    bare = replace(file, skipped_rows=(), skipped_maps=())
    return (
        add_skipped(bare, every)
        if len(every) <= LISTED_RUNS
        else replace(bare, skipped_maps=(str(RowMap.of_runs(every)),))
    )


def joined_figures(first: SourceFile, more: SourceFile) -> SourceFile:
    """What a file gave of which one part read its `first` rows and the next one `more`."""
    runs = ((start + first.rows, last + first.rows) for start, last in _runs(more.skipped_rows))
    joined = add_skipped(first, runs)
    maps = (RowMap.of(text) for text in more.skipped_maps)
    moved = tuple(str(replace(rows, first=rows.first + first.rows)) for rows in maps)
    if joined.unlisted_rows:  # then no row of the file is known
        joined = replace(joined, unlisted_rows=joined.unlisted_rows + sum(RowMap.of(text).skipped for text in moved))
        moved = ()
    return replace(
        joined,
        skipped_maps=(*joined.skipped_maps, *moved),
        rows=first.rows + more.rows,
        documents=first.documents + more.documents,
        tokens=first.tokens + more.tokens,
        unlisted_rows=joined.unlisted_rows + more.unlisted_rows,
    )


def _runs(rows: Iterable[int | tuple[int, int]]) -> list[tuple[int, int]]:
    """`rows` as the longest runs, (first, last), in order."""
    runs: list[tuple[int, int]] = []
    for first, last in sorted((row, row) if isinstance(row, int) else row for row in rows):
        if runs and runs[-1][1] == first - 1:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return runs


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """Where the text came from: a Hub dataset at a resolved commit, local files by name, or an address.

    An address is in its public form, whoever makes the record: a manifest is read by strangers.
    """

    id: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    text_field: str | None = None
    files: tuple[SourceFile, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", public_address(self.id))
        if re.search(r"https?://", self.id):  # earlier versions named a file there with its query
            files = tuple(replace(file, path=re.split(r"[?#]", file.path, maxsplit=1)[0]) for file in self.files)
            object.__setattr__(self, "files", files)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerInfo:
    """`name` as given to `--tokenizer` (of a file or folder `tokenizer.json`, of a model on the Hub with the commit);
    ids are below `vocab_size`; `ranks_sha256` pins the vocabulary itself: it is the SHA-256 of its `tokenizer.json`, or
    of tiktoken's rank file. Then `file_sha256` is that of the `tokenizer.json` beside the manifest, if there is one."""

    name: str
    vocab_size: int
    eot_id: int
    ranks_sha256: str
    file_sha256: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.vocab_size:,} ids, EOT {self.eot_id})"
