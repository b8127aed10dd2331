"""A stream of tokens cut into shards: as a manifest has them, or of equal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from shardkit.dataset.formats.interface import Blocks, Reading, Shape, Tokens
from shardkit.dataset.manifest import Manifest
from shardkit.dataset.shards import TOKENS_PER_SHARD, shard_name
from shardkit.errors import ShardError


class Writer(Protocol):
    """Writes one shard: `ShardWriter`, or another format's."""

    @property
    def room(self) -> int:
        """Tokens that still fit."""

    def write(self, tokens: Tokens) -> None:
        """Append some."""

    def abort(self) -> None:
        """Remove the unfinished file."""


OneWriter = TypeVar("OneWriter", bound=Writer)


class Slot(NamedTuple):
    """A shard to be written: its name as an `.npy` file, split, number, and the most tokens that it takes."""

    file: str
    split: str
    number: int
    room: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How a stream is cut: the shards of a `manifest` where it is to be the same, else every `tokens`."""

    manifest: Manifest | None
    prefix: str
    tokens: int

    @classmethod
    def of(cls, reading: Reading, shape: Shape) -> Cut:
        """How `shape` asks for it; like the source where it asks for nothing."""
        known, tokens = reading.manifest, shape.shard_tokens or reading.shard_tokens
        prefix = reading.prefix or shape.prefix
        if known is not None and tokens in (None, known.tokens_per_shard):
            return cls(manifest=known, prefix=prefix, tokens=known.tokens_per_shard)
        return cls(manifest=None, prefix=prefix, tokens=tokens or TOKENS_PER_SHARD)

    def shards(self) -> Callable[[str], Slot]:
        """What gives the next shard of a split, in the order of the stream."""
        if self.manifest is None:
            numbers = iter(range(1 << 50))
            return lambda split: self._next(split, next(numbers))
        slots = {
            split: iter([Slot(s.file, s.split, s.index, s.tokens) for s in shards])
            for split, shards in self.manifest.splits.items()
        }
        return lambda split: next(slots[split])

    def _next(self, split: str, number: int) -> Slot:
        return Slot(shard_name(self.prefix, split, number), split, number, self.tokens)


def write_shards(
    blocks: Blocks,
    cut: Cut,
    open_writer: Callable[[Slot], OneWriter],
    finish: Callable[[Slot, OneWriter, int], None],
    eot_id: int | None,
) -> None:
    """Write the stream shard after shard; `finish(slot, writer, documents)` ends one.

    Raises `ShardError` if a shard of the manifest does not become full, and what the writer raises.
    """
    next_of, documents = cut.shards(), 0
    current: tuple[Slot, OneWriter] | None = None
    try:
        for split, block in blocks:
            while len(block):
                if current is not None and (not current[1].room or current[0].split != split):
                    _check_full(cut, *current)
                    finish(*current, documents)
                    current = None
                if current is None:
                    slot = next_of(split)
                    current, documents = (slot, open_writer(slot)), 0
                writer = current[1]
                part, block = block[: writer.room], block[writer.room :]
                writer.write(part)
                documents += int(np.count_nonzero(part == eot_id)) if eot_id is not None else 0
        if current is not None:
            _check_full(cut, *current)
            finish(*current, documents)
            current = None
    finally:
        if current is not None:
            current[1].abort()


def _check_full(cut: Cut, slot: Slot, writer: Writer) -> None:
    if writer.room and cut.manifest is not None:
        raise ShardError(f"the tokens for {slot.file} end {writer.room:,} early: the source is damaged or was changed")


def temp_of(folder: Path) -> Path:
    """The shard that is being written."""
    return folder / "shard.tmp"
