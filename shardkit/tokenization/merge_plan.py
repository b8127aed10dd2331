"""What is made of the parts of a dataset: which tokens each of its shards holds, and what its manifest says.

All of it by counts: the parts' manifests, and, where a limit ends the stream within a part, that part's log and the
tokens of one of its shards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, ShardInfo, SourceFile
from shardkit.dataset.records import bounded_maps, joined_figures
from shardkit.dataset.shards import shard_blocks
from shardkit.dataset.tokenizer_file import TOKENIZER_NAME, file_sha256
from shardkit.errors import OutputError, ShardkitWarning
from shardkit.tokenization.merge_parts import Parts
from shardkit.tokenization.output_folder import check_prefix
from shardkit.tokenization.part_folders import FinishedPart, whole_identity
from shardkit.tokenization.piece_log import files_at
from shardkit.tokenization.run_spec import ShardShape
from shardkit.tokenization.tiktoken_files import is_encoding


class PartShard(NamedTuple):
    """A shard of a part, whose first token is number `begin` of the stream, and whose first document, if it has one, is
    number `first_document` of the dataset."""

    part: FinishedPart
    shard: ShardInfo
    begin: int
    first_document: int

    @property
    def path(self) -> Path:
        """Its file."""
        return self.part.folder / self.shard.file


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Where the stream ends at the latest; None: with the source."""

    max_docs: int | None
    max_tokens: int | None

    def are_met(self, tokens: int, documents: int) -> bool:
        """Whether a stream of so many tokens and whole documents ends there."""
        enough_tokens = self.max_tokens is not None and tokens >= self.max_tokens
        return enough_tokens or (self.max_docs is not None and documents >= self.max_docs)


class MergePlan:
    """The dataset in `directory` of the `parts`: `tokens` and `documents` of its stream, the `lengths` of its shards in
    tokens, and its `identity`, which names these very parts.

    Raises `OutputError` if a part was made by another version, or is damaged.
    """

    def __init__(self, directory: Path, parts: Parts) -> None:
        self.directory = directory
        self._place = parts
        self.most_fetched = parts.most_fetched
        self.parts = parts.listed
        try:
            stated = self.parts[0].identity
            self.shape = ShardShape.of_identity(stated)
            self._limits = Limits(max_docs=stated["max docs"], max_tokens=stated["max tokens"])
            self.eot_id = int(stated["end of text"])
            check_prefix(self.shape.prefix)
        except (LookupError, ValueError, TypeError):
            raise OutputError(f"{self.parts[0].place} was made by another version: tokenize the parts again") from None
        self.dtype = self.parts[0].manifest.dtype
        self._shards = list(_in_stream(self.parts))
        self._begins = [shard.begin for shard in self._shards]
        self.tokens, self.documents = self._end()
        self.lengths = self.shape.shard_lengths(self.tokens)
        self._ends = list(accumulate(self.lengths))
        content = [[part.index, [shard.sha256 for shard in part.manifest.shards]] for part in self.parts]
        text = json.dumps([whole_identity(stated), content])
        self.identity: dict[str, Any] = {"merge": hashlib.sha256(text.encode()).hexdigest()}

    def sources(self, number: int) -> Iterator[tuple[PartShard, int, int]]:
        """The tokens of shard `number`: of shards of parts, from which token to which, each checked against its
        SHA-256 before it is given. Raises `OutputError` for one that is damaged."""
        end = self._ends[number]
        at = end - self.lengths[number]
        place = bisect_right(self._begins, at) - 1
        while at < end:
            source = self._checked(self._shards[place])
            stop = min(end, source.begin + source.shard.tokens)
            yield source, at - source.begin, stop - source.begin
            at, place = stop, place + 1

    def expect(self, numbers: Iterable[int]) -> None:
        """From now on `sources` is asked for these shards, in order."""
        places = (range(*self._span(number)) for number in numbers)
        needed = (self._shards[place] for place in dict.fromkeys(chain.from_iterable(places)))
        self._place.expect((source.part, source.shard) for source in needed)

    def _span(self, number: int) -> tuple[int, int]:
        """Which shards of the parts hold the tokens of shard `number`: from which up to which, counted over all."""
        end = self._ends[number]
        return bisect_right(self._begins, end - self.lengths[number]) - 1, bisect_right(self._begins, end - 1)

    def manifest(self, shards: Iterable[ShardInfo]) -> Manifest:
        """The manifest of the dataset with those `shards`, of which each knows how many documents it has; and so, here,
        which is its first. Raises `OutputError` if it has not as many documents as its parts."""
        placed: list[ShardInfo] = []
        documents = 0
        for shard in shards:
            placed.append(dataclasses.replace(shard, first_document=documents))
            documents += shard.documents
        if documents != self.documents:
            raise OutputError(
                f"the shards of {self.directory} have {documents:,} documents, their parts {self.documents:,}: a part "
                "has changed since, remove what was merged and merge again"
            )
        first = self.parts[0].manifest
        if first.source is None:
            raise RuntimeError("a part without a source")
        options = {name: value for name, value in first.source.options.items() if name != "part"}
        source = dataclasses.replace(first.source, files=self._files(), options=options)
        return dataclasses.replace(first, source=source, shards=tuple(placed), directory=None)

    def tokenizer_files(self, manifest: Manifest) -> dict[str, bytes]:
        """Name and content of the files of the tokenizer of the dataset of `manifest`, from any part that has them
        still: every part had the same ones. Warns (`ShardkitWarning`) if none has."""
        files, info = self._place.tokenizer_files(manifest), manifest.tokenizer
        if not files and info is not None and (info.file_sha256 or not is_encoding(info.name)):
            warnings.warn(
                f"no part has the {TOKENIZER_NAME} any more that the manifests mean (SHA-256 {file_sha256(info)}): the "
                f"dataset comes without it, put it beside its {MANIFEST_NAME} if you have it",
                ShardkitWarning,
                stacklevel=2,
            )
        return files

    def check_made(self, manifest: Manifest, where: object, way_out: str) -> None:
        """Raise `OutputError` if `manifest`, of the dataset that is there, is not of what these parts make."""
        same = manifest.tokens == self.tokens and manifest.documents == self.documents
        if not same or self.manifest(manifest.shards) != manifest:
            raise OutputError(f"{where} holds another dataset than these parts make: {way_out}")

    def _end(self) -> tuple[int, int]:
        """How many tokens and documents the stream has, up to where a limit ends it."""
        tokens = sum(part.manifest.tokens for part in self.parts)
        documents = sum(part.manifest.documents for part in self.parts)
        if not self._limits.are_met(tokens, documents):
            return tokens, documents
        max_docs, max_tokens = self._limits.max_docs, self._limits.max_tokens
        if max_docs is not None and documents > max_docs:
            tokens, documents = self._begin_of(max_docs), max_docs
        if max_tokens is not None and tokens > max_tokens:
            tokens, documents = max_tokens, self._documents_before(max_tokens)
        return tokens, documents

    def _begin_of(self, document: int) -> int:
        """Which token document number `document` begins with."""
        place = bisect_right([shard.first_document for shard in self._shards], document) - 1
        source = self._checked(self._shards[place])
        at, wanted = source.begin, document - source.first_document
        for block in shard_blocks(source.path, 0, source.shard.tokens):
            places = np.flatnonzero(block == self.eot_id)
            if wanted < len(places):
                return at + int(places[wanted])
            at, wanted = at + len(block), wanted - len(places)
        raise OutputError(f"{source.path} has not the {source.shard.documents:,} documents that its manifest says")

    def _documents_before(self, token: int) -> int:
        """How many documents begin before a token, which is not the stream's first one."""
        source = self._checked(self._shards[bisect_right(self._begins, token - 1) - 1])
        blocks = shard_blocks(source.path, 0, token - source.begin)
        return source.first_document + sum(int(np.count_nonzero(block == self.eot_id)) for block in blocks)

    def _checked(self, source: PartShard) -> PartShard:
        """The shard, if its file is what it was when it was made."""
        self._place.check(source.part, source.shard)
        return source

    def _files(self) -> tuple[SourceFile, ...]:
        """What each source file gave, up to where the stream ends."""
        found: dict[int, SourceFile] = {}
        tokens = documents = 0
        ended = False
        for part in self.parts:
            given = list(part.manifest.source.files if part.manifest.source else ())
            after = tokens + part.manifest.tokens, documents + part.manifest.documents
            if ended:
                given = [SourceFile(path=file.path, bytes=file.bytes) for file in given]
            elif self._limits.are_met(*after):
                given, ended = self._cut(part, given, tokens, documents), True
            tokens, documents = after
            for number, file in enumerate(given, part.first_file):
                found[number] = joined_figures(found[number], file) if number in found else file
        return bounded_maps(found[number] for number in sorted(found))

    def _cut(self, part: FinishedPart, files: list[SourceFile], tokens: int, documents: int) -> list[SourceFile]:
        """What each of the files of `part`, within which the stream ends, gave up to there; so many tokens and
        documents are before it."""
        most_docs, most_tokens = self._limits.max_docs, self._limits.max_tokens
        return files_at(
            part.folder,
            files,
            tokens=self.tokens - tokens,
            documents=self.documents - documents,
            max_docs=None if most_docs is None else most_docs - documents,
            max_tokens=None if most_tokens is None else most_tokens - tokens,
        )


def _in_stream(parts: Iterable[FinishedPart]) -> Iterator[PartShard]:
    tokens = documents = 0
    for part in parts:
        for shard in part.manifest.shards:
            yield PartShard(part, shard, tokens, documents)
            tokens, documents = tokens + shard.tokens, documents + shard.documents
