"""What a format is: functions of a module. Tokens pass between formats as shardkit's own shards have them: split
after split, one EOT before each document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.bin_files import TokenType
from shardkit.dataset.manifest import Manifest, TokenizerInfo
from shardkit.dataset.shards import DTYPES
from shardkit.errors import UsageError

Tokens = NDArray[np.unsignedinteger]
Blocks = Iterator[tuple[str, Tokens]]  # (split, some tokens of it); a block lasts until the next one is asked for
SPLIT = re.compile("[a-z]+")  # a name of one; files are named by it


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What is known of a source beside its files: by the options, or by the record that an earlier conversion left.

    `lengths` are the tokens of each split in shardkit's form; None for files that shardkit did not write.
    """

    eot_id: int | None = None
    dtype: str | None = None
    tokenizer: TokenizerInfo | None = None
    manifest: Manifest | None = None
    lengths: Mapping[str, int] | None = None

    def eot_of(self, what: str) -> int:
        """The EOT id. Raises `UsageError` where nobody says it."""
        if self.eot_id is None:
            raise UsageError(
                f"{what} needs to know which token ends a document: give --tokenizer NAME, or --eot-id NUMBER (GPT-2's "
                "is 50256)"
            )
        return self.eot_id

    def narrowest(self) -> TokenType:
        """The dtype for ids that a file holds in 4 or 8 bytes: uint16 where it is known that they fit."""
        if self.manifest is not None:
            return DTYPES[self.manifest.dtype]
        small = self.tokenizer is not None and self.tokenizer.vocab_size <= 1 << 16
        return DTYPES[self.dtype or ("uint16" if small else "uint32")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A source that is open: its `dtype`, about how many `tokens` it has, and its `blocks` in shardkit's form, from the
    start each time. `manifest` is that of the shards that it is, or was converted from; `prefix` and `shard_tokens` are
    those of shards without one."""

    dtype: TokenType
    tokens: int
    blocks: Callable[[], Blocks]
    eot_id: int | None
    manifest: Manifest | None = None
    prefix: str | None = None
    shard_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What is to be written: tokens of one shard (None: as the manifest has it), the names' start, the vocabulary."""

    shard_tokens: int | None
    prefix: str
    tokenizer: TokenizerInfo | None


class Reader(Protocol):
    """What a module of this package has, to read a format."""

    def recognizes(self, path: Path) -> bool:
        """Whether the folder, file or prefix of files is of this format, by names and first bytes."""

    def read(self, path: Path, given: Given) -> Reading:
        """Open it. Raises `ShardError` for damaged files, `UsageError` for what must be given."""


# Writes `blocks` of a reading into an empty folder; gives the manifest, if what it writes has one.
Write = Callable[[Reading, Blocks, Path, Shape], Manifest | None]
