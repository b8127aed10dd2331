"""What a run is: everything that decides its bytes, as an identity to compare and as a manifest to publish."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.journal import Journal
from shardkit.dataset.manifest import Manifest, SourceFile, SourceInfo
from shardkit.dataset.shards import shard_header
from shardkit.errors import HubError
from shardkit.sources.source import Source
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.user_functions import function_id
from shardkit.version import __version__


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Where the stream ends early: after so many documents, or so many tokens. None: at the source's end."""

    docs: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """What the shards of a run look like."""

    directory: Path
    prefix: str
    tokens_per_shard: int
    val_shards: int
    dtype: np.dtype[np.unsignedinteger]
    eot_id: int
    limits: Limits


def shard_file_bytes(plan: ShardPlan) -> int:
    """Bytes of a full shard's file."""
    return len(shard_header(plan.tokens_per_shard, plan.dtype)) + plan.tokens_per_shard * plan.dtype.itemsize


def working_bytes(journal: Journal) -> int:
    """Bytes to allow for the files of `.shardkit/` while one more shard is made: the journal, a copy of it being
    written, and the summary."""
    return 2 * journal.path.stat().st_size + 8192


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A source, a tokenizer, a plan of shards, the caller's `functions` by name. Workers and runner do not count."""

    source: Source
    tokenizer: Tokenizer
    plan: ShardPlan
    functions: Mapping[str, Callable[..., Any] | None]
    chunk_bytes: int

    def identity(self) -> dict[str, Any]:
        """The first line of the journal: a folder whose line differs holds another run."""
        info, plan, tokenizer = self.source.info, self.plan, self.tokenizer
        files = json.dumps([[file.path, file.bytes] for file in self.source.files])
        return {
            "source": info.id, "config": info.config, "split": info.split, "revision": info.revision,
            "text field": info.text_field, "input files": hashlib.sha256(files.encode()).hexdigest(),
            "separator": self.source.options.separator, "skip bad rows": self.source.options.skip_bad_rows,
            "tokenizer": tokenizer.info.name, "vocabulary": tokenizer.info.ranks_sha256,
            "encoder": f"{tokenizer.engine} {tokenizer.engine_version}", "shard tokens": plan.tokens_per_shard,
            "val shards": plan.val_shards, "prefix": plan.prefix, "max docs": plan.limits.docs,
            "max tokens": plan.limits.tokens, "chunk bytes": self.chunk_bytes,
            **{name: function_id(function) for name, function in self.functions.items()},
        }  # fmt: skip

    def manifest(self, journal: Journal, files: tuple[SourceFile, ...]) -> Manifest:
        """The finished dataset's manifest."""
        tokenizer, info = self.tokenizer, self.source.info
        return Manifest(
            shardkit_version=__version__,
            tokenizer=tokenizer.info,
            dtype=self.plan.dtype.name,
            tokens_per_shard=self.plan.tokens_per_shard,
            encoder={"engine": tokenizer.engine, "version": tokenizer.engine_version},
            source=SourceInfo(
                id=info.id, config=info.config, split=info.split, revision=info.revision, text_field=info.text_field,
                files=files, options=self._stated_options(),
            ),
            shards=tuple(journal.shards),
        )  # fmt: skip

    def already_at(self, manifest: Manifest, repo: str) -> Manifest:
        """`manifest`, found complete at `repo`, if it is this run's. Raises `HubError` if it is another's."""
        info, source = self.source.info, manifest.source
        same = (
            source is not None
            and (source.id, source.config, source.split, source.revision, source.text_field)
            == (info.id, info.config, info.split, info.revision, info.text_field)
            and [(f.path, f.bytes) for f in source.files] == [(f.path, f.bytes) for f in self.source.files]
            and dict(source.options) == self._stated_options()
            and manifest.tokenizer == self.tokenizer.info
            and manifest.tokens_per_shard == self.plan.tokens_per_shard
            and all(
                (shard.split == "val") == (shard.index < self.plan.val_shards)
                and shard.file.startswith(f"{self.plan.prefix}_{shard.split}_")
                for shard in manifest.shards
            )
        )
        if not same:
            raise HubError(f"{repo} holds another finished dataset: push to another repo")
        return manifest

    def _stated_options(self) -> dict[str, Any]:
        """The options that a reader of the manifest needs in order to make it again, where they are not the default."""
        options = {
            "separator": self.source.options.separator, "skip_bad_rows": self.source.options.skip_bad_rows or None,
            "max_docs": self.plan.limits.docs, "max_tokens": self.plan.limits.tokens,
            **{name: function_id(function) for name, function in self.functions.items()},
        }  # fmt: skip
        return {name: value for name, value in options.items() if value is not None}
