"""What a run is: everything that decides its bytes, as an identity to compare and as a manifest to publish."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shardkit.dataset.manifest import Manifest, ShardInfo, SourceFile
from shardkit.dataset.records import bounded_maps
from shardkit.dataset.shards import shard_header, shard_name
from shardkit.errors import HubError
from shardkit.sources.parts import Part
from shardkit.sources.source import Source
from shardkit.tokenization.function_id import function_id
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.user_functions import by_value
from shardkit.tokenization.worker import AUDIT_STRIDE, Job
from shardkit.version import __version__

# What the identity of a part has beside the whole's. That has the states of all files in one hash, as each of many
# parts has it: by name those of the part's files alone.
PART, BEGINS, ENDS, FILE_STATES = "part", "begins at", "ends at", "file states"
_EXACTLY_ONE = "exactly 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardShape:
    """How a stream is cut into shards. With `cuts_only_shard` one that would fill no more than one shard is cut into
    one of `val_tokens` and one of the rest."""

    prefix: str
    tokens_per_shard: int
    val_shards: int
    cuts_only_shard: bool = False

    @classmethod
    def of_identity(cls, identity: Mapping[str, Any]) -> ShardShape:
        """The shape that `identity` states. Raises `LookupError`, `ValueError`."""
        val = identity["val shards"]
        return cls(
            prefix=str(identity["prefix"]),
            tokens_per_shard=int(identity["shard tokens"]),
            val_shards=1 if val == _EXACTLY_ONE else int(val),
            cuts_only_shard=val == 1,
        )

    @property
    def stated_val_shards(self) -> int | str:
        """`val_shards` in an identity: the default, which cuts the only shard, is another run than one of exactly one
        val shard."""
        return self.val_shards if self.cuts_only_shard or self.val_shards != 1 else _EXACTLY_ONE

    def split(self, index: int) -> str:
        """The split of shard number `index`."""
        return "val" if index < self.val_shards else "train"

    def shard_file(self, index: int) -> str:
        """The file name of shard number `index`."""
        return shard_name(self.prefix, self.split(index), index)

    def val_tokens(self, tokens: int) -> int:
        """How many of a stream of `tokens` are val, where it would fill one shard only: at most 1 %, or one."""
        return max(1, tokens // 100)

    def shard_lengths(self, tokens: int) -> list[int]:
        """How many tokens each shard of a stream of `tokens` holds."""
        if self.cuts_only_shard and 1 < tokens <= self.tokens_per_shard:
            return [self.val_tokens(tokens), tokens - self.val_tokens(tokens)]
        full, rest = divmod(tokens, self.tokens_per_shard)
        return [self.tokens_per_shard] * full + [rest] * (rest > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec(ShardShape):
    """A source, a tokenizer, the shape of the shards, where the stream ends (None: with the source), and the caller's
    functions. Workers, runner and remote do not count: any of them gives the same bytes. Of a run that makes one part
    of a dataset (`for_part`), `whole` is the identity of all of it.

    Raises `UsageError` for a function of which nobody can say what it does (`function_id.py`).
    """

    source: Source
    tokenizer: Tokenizer
    max_docs: int | None
    max_tokens: int | None
    transform: Callable[[str], str | None] | None
    filter: Callable[[str], bool] | None
    chunk_bytes: int
    skip_duplicates: bool = False
    part: Part | None = None
    whole: Mapping[str, Any] | None = None
    transform_id: str | None = field(init=False)
    filter_id: str | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "transform_id", function_id(self.transform))
        object.__setattr__(self, "filter_id", function_id(self.filter))

    def for_part(self, part: Part, source: Source) -> RunSpec:
        """The run that makes that part, of which it reads `source`: all of it is train, and what is val is known where
        the parts are merged. The limits stay: no part is longer than the whole may be."""
        whole = self.identity()
        states = json.dumps(whole.pop(FILE_STATES))
        whole["states of all files"] = hashlib.sha256(states.encode()).hexdigest()
        return dataclasses.replace(self, source=source, val_shards=0, cuts_only_shard=False, part=part, whole=whole)

    @property
    def may_be_cut(self) -> bool:
        """Whether it makes a part in which a limit may end the stream when the parts are merged."""
        return self.part is not None and (self.max_docs is not None or self.max_tokens is not None)

    @property
    def shard_bytes(self) -> int:
        """Bytes of a full shard's file."""
        dtype = self.tokenizer.dtype
        return len(shard_header(self.tokens_per_shard, dtype)) + self.tokens_per_shard * dtype.itemsize

    def job(self) -> Job:
        """What the workers need of it. Raises `UsageError` for a function that cannot travel to them."""
        return Job(
            vocabulary=self.tokenizer.vocabulary,
            encoder="fast" if self.tokenizer.is_fast else "tiktoken",
            read=self.source.options,
            hashes_documents=self.skip_duplicates,
            chunk_bytes=self.chunk_bytes,
            audit_stride=max(1, min(AUDIT_STRIDE, self.tokens_per_shard // 4096)),
            transform=by_value(self.transform),
            filter=by_value(self.filter),
        )

    def identity(self) -> dict[str, Any]:
        """The first line of the journal: a folder whose line differs holds another run."""
        states = [[file.path, file.state] for file in self.source.files if file.version]
        if self.whole is not None and self.part is not None:
            ours = {PART: self.part.name, BEGINS: self.part.begin, ENDS: self.part.end, FILE_STATES: states}
            return {**self.whole, **ours}
        info, options, tokenizer = self.source.info, self.source.options, self.tokenizer
        files = json.dumps([[file.path, file.bytes] for file in self.source.files])
        return {
            "source": info.id,
            "config": info.config,
            "split": info.split,
            "revision": info.revision,
            **info.options,
            "text field": info.text_field,
            "input files": hashlib.sha256(files.encode()).hexdigest(),
            FILE_STATES: states,
            "separator": options.separator,
            "skip bad rows": options.skip_bad_rows,
            # not there where all rows are read, as in runs that were begun before there was a choice
            **{n: v for n, v in (("where", options.where), ("sample", options.sample)) if v is not None},
            **({"columns": list(options.columns)} if options.columns else {}),
            **({"skip duplicates": True} if self.skip_duplicates else {}),
            "tokenizer": tokenizer.info.name.split("@")[0],  # a model's commit changes with any of its files
            "vocabulary": tokenizer.info.ranks_sha256,
            "end of text": tokenizer.eot_id,
            # of engines that give the same ids any may go on with what another began
            "encoder": tokenizer.exact_as,
            "shard tokens": self.tokens_per_shard,
            "val shards": self.stated_val_shards,
            "prefix": self.prefix,
            "max docs": self.max_docs,
            "max tokens": self.max_tokens,
            "chunk bytes": self.chunk_bytes,
            "transform": self.transform_id,
            "filter": self.filter_id,
        }

    def manifest(self, shards: Iterable[ShardInfo], files: tuple[SourceFile, ...]) -> Manifest:
        """The manifest of the finished dataset: its `shards`, and what each source file gave.

        Of the options it states those that a reader needs in order to make it again, where they are not the default.
        """
        tokenizer, info = self.tokenizer, self.source.info
        options = {
            "separator": self.source.options.separator,
            "skip_bad_rows": self.source.options.skip_bad_rows or None,
            "columns": list(self.source.options.columns) or None,
            "where": self.source.options.where,
            "sample": self.source.options.sample,
            "skip_duplicates": self.skip_duplicates or None,
            "max_docs": self.max_docs,
            "max_tokens": self.max_tokens,
            "transform": self.transform_id,
            "filter": self.filter_id,
            "part": None if self.part is None else self.part.name,
        }
        stated = dict(info.options) | {name: value for name, value in options.items() if value is not None}
        return Manifest(
            shardkit_version=__version__,
            tokenizer=tokenizer.info_with_file,
            dtype=tokenizer.dtype.name,
            tokens_per_shard=self.tokens_per_shard,
            encoder=tokenizer.encoder_facts,
            source=dataclasses.replace(info, files=bounded_maps(files), options=stated),
            shards=tuple(shards),
        )

    def check_is_this_run(self, manifest: Manifest, repo: str) -> None:
        """Raise `HubError` if `manifest`, of the finished dataset at `repo`, is not what this run makes."""
        if not self.makes(manifest):
            raise HubError(f"{repo} holds another finished dataset: push to another repo")

    def makes(self, manifest: Manifest) -> bool:
        """Whether `manifest` is one that this run ends with, as far as can be said without its tokens.

        The engine and shardkit's version may differ: they give the same bytes.
        """
        files = manifest.source.files if manifest.source else ()
        expected = dataclasses.replace(
            self.manifest(manifest.shards, files),
            shardkit_version=manifest.shardkit_version,
            encoder=manifest.encoder,
        )
        if manifest.tokenizer is not None and expected.tokenizer is not None:  # the commit may be another
            named = dataclasses.replace(expected.tokenizer, name=manifest.tokenizer.name)
            expected = dataclasses.replace(expected, tokenizer=named)
        return (
            manifest == expected
            and [(file.path, file.bytes) for file in files] == [(file.path, file.bytes) for file in self.source.files]
            and [shard.file for shard in manifest.shards] == [self.shard_file(i) for i in range(len(manifest.shards))]
            and [shard.tokens for shard in manifest.shards] == self.shard_lengths(manifest.tokens)
            and manifest.tokens == sum(file.tokens for file in files)
        )
