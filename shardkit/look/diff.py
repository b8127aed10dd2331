"""`diff`: whether two datasets hold the same tokens, else what their manifests say differently, and the first token
that differs; whether two ledgers are of the same batches, and two states go on with the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardkit.arguments import user_path
from shardkit.bars import TransferBar, shown
from shardkit.batches.ledger import merge_ledger
from shardkit.dataset.documents import source_of
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import DTYPES, MEND
from shardkit.errors import ShardError, UsageError
from shardkit.look.difference import Difference
from shardkit.look.opened import OpenedDataset, opened, tokenizer_of
from shardkit.look.result_lines import ShownAsLines
from shardkit.look.state_diff import StateDiff, diff_states
from shardkit.remote.address import is_remote
from shardkit.remote.uploader import TransferProgress

_BLOCK_TOKENS = 1 << 20
_TOKENS_BEFORE, _TOKENS_AFTER = 8, 24  # of the text that is shown
_MOST_CHARACTERS = 300  # of what a manifest says of one thing
Block = NDArray[np.unsignedinteger]


@dataclass(frozen=True, kw_only=True, slots=True)
class DifferingToken:
    """A side of the first difference: the dataset, its token there (`id`), where it lies, which document it is in and
    where that came from (None where nothing says it), and the text around it. At a stream's end all but `dataset` are
    None."""

    dataset: str
    id: int | None = None
    shard: str | None = None
    offset: int | None = None
    document: int | None = None
    source_file: str | None = None
    source_row: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        if self.id is None:
            return f"{self.dataset}: ends there"
        words = [f"{self.dataset}: id {self.id}, {self.shard} at {self.offset:,}"]
        words += [] if self.document is None else [f"document {self.document:,}"]
        words += [] if self.source_file is None else [self.source_file]
        words += [] if self.source_row is None else [f"row {self.source_row:,}"]
        return ", ".join(words) + ("" if self.text is None else f": {self.text!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDiff(ShownAsLines):
    """Whether `a` and `b` hold the same tokens in the same order, however they are cut into shards. `tokens_compared`
    were read; of the others the manifests' hashes are the same. `differs` is what the manifests say differently, and
    `first_difference` both sides of the first token that differs, number `at_token` of the stream."""

    a: str
    b: str
    same: bool
    tokens_compared: int
    differs: tuple[Difference, ...]
    at_token: int | None = None
    first_difference: tuple[DifferingToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerDiff(ShownAsLines):
    """Whether two ledgers are of the same batches as far as both go; else the first batch end at which they differ, in
    rows from the start of the run."""

    a: str
    b: str
    same: bool
    differ_before_row: int | None


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: TransferProgress | bool | None = True
) -> DatasetDiff | LedgerDiff | StateDiff:
    """Whether the datasets `a` and `b`, folders or remotes as `pull` takes them, hold the same tokens in the same
    order; and if not, or made otherwise, what differs. Two folders of ledgers are compared by their hashes, and
    two files with loaders' states (`json.dump(loader.state_dict(), file)`) by the rows that these go on with.

    Shards of the same SHA-256 at the same place are not read. Of a remote one shard at a time is here. A bar says how
    far it is; `progress=False` silences it, and `progress(file, done_bytes, total_bytes)` is called in its place.

    Raises `ManifestError`, `ShardError`, `HubError`, `StateError` (ledgers of other data), or `UsageError`.

    >>> found = diff("out", "out")
    >>> found.same, found.tokens_compared
    (True, 0)
    """
    if all(not is_remote(place) and user_path(place).is_file() for place in (a, b)):
        return diff_states(user_path(a), user_path(b))
    ledgers = [_is_ledger(place) for place in (a, b)]
    if all(ledgers):
        row = merge_ledger(user_path(a)).first_difference(merge_ledger(user_path(b)))
        return LedgerDiff(a=str(a), b=str(b), same=row is None, differ_before_row=row)
    if any(ledgers):
        raise UsageError(f"{a} and {b} are a ledger and no ledger: give two datasets, or two ledgers")
    with shown(progress, lambda: TransferBar("diff")) as tell, ExitStack() as stack:
        sides = [_Side(stack.enter_context(opened(place)), stack) for place in (a, b)]
        one, other = sides
        at, compared, places = _compare(one, other, tell or (lambda *_: None))
        return DatasetDiff(
            a=one.dataset.name,
            b=other.dataset.name,
            same=at is None,
            tokens_compared=compared,
            differs=tuple(_differences(one.dataset.manifest, other.dataset.manifest)),
            at_token=at,
            first_difference=() if at is None else tuple(map(_Side.describe, sides, places)),
        )


def _is_ledger(place: str | os.PathLike[str]) -> bool:
    if is_remote(place):
        return False
    folder = user_path(place)
    return any(folder.glob("from*.jsonl")) and not any(folder.glob("*.npy"))


Place = tuple[int, int]  # a shard's number, and an offset in it, in tokens


class _Side:
    """One of the datasets, of which one shard is open at a time."""

    def __init__(self, dataset: OpenedDataset, stack: ExitStack) -> None:
        self.dataset, self.shards = dataset, dataset.manifest.shards
        self._dtype = DTYPES[dataset.manifest.dtype]
        self._open: tuple[int, AbstractContextManager[BufferedReader], BufferedReader] | None = None
        stack.callback(self._close)

    def read(self, number: int, offset: int, count: int) -> Block:
        """`count` tokens of a shard, or as many as there are."""
        shard = self.shards[number]
        if self._open is None or self._open[0] != number:
            self._close()
            context = self.dataset.shard(shard)
            self._open = number, context, context.__enter__()
        file = self._open[2]
        file.seek(shard.bytes - (shard.tokens - offset) * self._dtype.itemsize)
        wanted = min(count, shard.tokens - offset)
        if len(data := file.read(wanted * self._dtype.itemsize)) < wanted * self._dtype.itemsize:
            raise ShardError(f"{self.dataset.place_of(shard)} ends early: it was cut short while it was read, {MEND}")
        return np.frombuffer(data, self._dtype)

    def describe(self, place: Place | None) -> DifferingToken:
        """The token at `place`, and where it came from."""
        if place is None:
            return DifferingToken(dataset=self.dataset.name)
        (number, offset), manifest = place, self.dataset.manifest
        shard, tokenizer = self.shards[number], manifest.tokenizer
        document, begin = None, max(0, offset - _TOKENS_BEFORE)
        if tokenizer is not None:
            document = shard.first_document - 1
            for first in range(0, offset + 1, _BLOCK_TOKENS):
                block = self.read(number, first, min(_BLOCK_TOKENS, offset + 1 - first))
                starts = np.flatnonzero(block == tokenizer.eot_id)
                document += len(starts)
                begin = max(begin, first + int(starts[-1])) if len(starts) else begin
        file, row = source_of(manifest, document)
        return DifferingToken(
            dataset=self.dataset.name,
            id=int(self.read(number, offset, 1)[0]),
            shard=shard.file,
            offset=offset,
            document=document,
            source_file=file,
            source_row=row,
            text=_text(manifest, self.read(number, begin, offset - begin + _TOKENS_AFTER)),
        )

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].__exit__(None, None, None)
            self._open = None


def _compare(one: _Side, other: _Side, tell: TransferProgress) -> tuple[int | None, int, list[Place | None]]:
    """The first token that differs (None: none does), how many were read, and where it lies on both sides (None where
    the stream has ended)."""
    sides, places = (one, other), [(0, 0), (0, 0)]
    at = compared = 0
    total = one.dataset.manifest.tokens * DTYPES[one.dataset.manifest.dtype].itemsize
    while all(place[0] < len(side.shards) for side, place in zip(sides, places, strict=True)):
        shards = [side.shards[place[0]] for side, place in zip(sides, places, strict=True)]
        if places[0][1] == places[1][1] == 0 and _alike(*shards):
            count = shards[0].tokens
        else:
            count = min(_BLOCK_TOKENS, *(s.tokens - place[1] for s, place in zip(shards, places, strict=True)))
            blocks = [side.read(*place, count) for side, place in zip(sides, places, strict=True)]
            wrong = np.flatnonzero(blocks[0] != blocks[1])
            if len(wrong):
                first = int(wrong[0])
                return at + first, compared + first + 1, [(number, offset + first) for number, offset in places]
            compared += count
        at += count
        places = [_after(side, place, count) for side, place in zip(sides, places, strict=True)]
        tell(shards[0].file, at * DTYPES[one.dataset.manifest.dtype].itemsize, total)
    ended = [place[0] == len(side.shards) for side, place in zip(sides, places, strict=True)]
    if all(ended):
        return None, compared, []
    return at, compared, [None if end else place for end, place in zip(ended, places, strict=True)]


def _alike(one: ShardInfo, other: ShardInfo) -> bool:
    return bool(one.sha256) and one.sha256 == other.sha256


def _after(side: _Side, place: Place, count: int) -> Place:
    number, offset = place
    ends = offset + count == side.shards[number].tokens
    return (number + 1, 0) if ends else (number, offset + count)


def _text(manifest: Manifest, ids: Block) -> str | None:
    tokenizer, _ = tokenizer_of(manifest)
    return None if tokenizer is None else tokenizer.decode(ids)


def _differences(a: Manifest, b: Manifest) -> Iterator[Difference]:
    facts, others = _facts(a), _facts(b)
    for what in dict.fromkeys([*facts, *others]):
        one, other = facts.get(what, "none"), others.get(what, "none")
        if one != other:
            yield Difference(what=what, a=one[:_MOST_CHARACTERS], b=other[:_MOST_CHARACTERS])
    files, other_files = ((m.source.files if m.source else ()) for m in (a, b))
    for one_file, other_file in zip(files, other_files, strict=False):
        if one_file != other_file:
            yield Difference(what="first file whose rows differ", a=_file_words(one_file), b=_file_words(other_file))
            break


def _facts(manifest: Manifest) -> dict[str, str]:
    """What a manifest says, in words, by name."""
    source, tokenizer = manifest.source, manifest.tokenizer
    facts: dict[str, Any] = {}
    if tokenizer is not None:
        facts["tokenizer"] = f"{tokenizer}, vocabulary {tokenizer.ranks_sha256[:12]}"
    if source is not None:
        names = ("id", "config", "split", "revision", "text_field")
        facts |= {f"source {name.replace('_', ' ')}": getattr(source, name) for name in names}
        facts |= {f"option {name}": value for name, value in source.options.items()}
        facts["files"] = len(source.files)
        facts["rows"] = sum(file.rows for file in source.files)
        facts["rows left out"] = sum(file.skipped for file in source.files)
    if manifest.skipped_duplicates is not None:
        facts["duplicates left out"] = manifest.skipped_duplicates
    facts |= {f"encoder {name}": value for name, value in manifest.encoder.items()}
    facts |= {"documents": manifest.documents, "tokens": manifest.tokens, "dtype": manifest.dtype}
    facts["tokens a shard"] = manifest.tokens_per_shard
    facts["shards"] = ", ".join(f"{split} {len(shards):,}" for split, shards in manifest.splits.items())
    return {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in facts.items()}


def _file_words(file: Any) -> str:
    return f"{file.path} ({file.rows:,} rows, {file.documents:,} documents, {file.tokens:,} tokens)"
