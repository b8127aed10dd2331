"""Where the EOT stands: before each document (shardkit, llm.c, modded-nanogpt) or after it (nanoGPT, Megatron, Dolma).

A stream with one form becomes the other by a turn of one token: the EOT at its front goes to its end. A document that
goes on in the next split has its EOT there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shardkit.dataset.formats.interface import Blocks
from shardkit.errors import ShardError


def eot_after(blocks: Blocks, eot_id: int) -> Blocks:
    """Each EOT after its document. A split that ends within a document has none at its end."""
    last: str | None = None
    for split, block in blocks:
        if split != last and len(block):
            if block[0] == eot_id:
                if last is not None:
                    yield last, block[:1].copy()
                block = block[1:]
            last = split
        yield split, block
        dtype = block.dtype
    if last is not None:
        yield last, np.array([eot_id], dtype)


def eot_before(blocks: Blocks, eot_id: int) -> Blocks:
    """Each EOT before its document, for files of others: every split begins with a document."""
    last: str | None = None
    held = None  # the last token of what has been read: an EOT at the end of a split goes to its front
    for split, block in blocks:
        if not len(block):
            continue
        if split != last:
            if last is not None and held is not None and held[0] != eot_id:
                yield last, held
            yield split, np.array([eot_id], block.dtype)
            last, held = split, None
        if held is not None:
            yield split, held
        held = block[-1:].copy()
        yield split, block[:-1]
    if last is not None and held is not None and held[0] != eot_id:
        yield last, held


def turned_back(blocks: Blocks, eot_id: int, lengths: Mapping[str, int], tokens: int, where: str) -> Blocks:
    """What `eot_after` was given, of splits of those `lengths`, from the `tokens` tokens that it gave.

    Raises `ShardError`, naming `where`, if they cannot be these.
    """
    missing = sum(lengths.values()) - tokens + 1  # 0 where the stream begins within a document
    if missing not in (0, 1):
        raise ShardError(_another(where, sum(lengths.values()), tokens))
    return cut(_turned(blocks, eot_id, missing, where), lengths, where)


def _turned(blocks: Blocks, eot_id: int, missing: int, where: str) -> Blocks:
    held = None
    for split, block in blocks:
        if not len(block):
            continue
        if held is not None:
            yield split, held
        elif missing:
            yield split, np.array([eot_id], block.dtype)
        held = block[-1:].copy()
        yield split, block[:-1]
    if held is None or held[0] != eot_id:
        raise ShardError(f"{where} does not end with the end-of-text token {eot_id}: it was changed, convert it again")


def cut(blocks: Blocks, lengths: Mapping[str, int], where: str) -> Blocks:
    """The tokens of `blocks`, one after the other, as splits of those `lengths`. Raises `ShardError` if they are more
    or fewer."""
    rest = iter(lengths.items())
    name, room = next(rest, ("", 0))
    seen = 0
    for _, block in blocks:
        seen += len(block)
        while len(block):
            while not room:
                name, room = next(rest, ("", 0))
                if not name:
                    raise ShardError(_another(where, sum(lengths.values()), seen))
            part, block = block[:room], block[room:]
            room -= len(part)
            yield name, part
    if seen != sum(lengths.values()):
        raise ShardError(_another(where, sum(lengths.values()), seen))


def _another(where: str, expected: int, found: int) -> str:
    return (
        f"{where} holds {found:,} tokens, its shardkit.json says {expected:,}: it is damaged or was changed, convert "
        "it again"
    )
