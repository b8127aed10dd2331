"""An engine that leaves documents with certain characters to the reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

TokenBatch = tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]
EncodeBatch = Callable[[Sequence[str]], TokenBatch]
_FEW = 16  # up to so many are looked for one by one: `in` looks for one character at the speed of memchr


def make_search(characters: str) -> Callable[[str], bool]:
    """A function that says whether a text has one of `characters`, none of which is ASCII."""
    if len(characters) <= _FEW:
        return lambda text: not text.isascii() and any(char in text for char in characters)
    found = re.compile(f"[{re.escape(characters)}]").search
    return lambda text: not text.isascii() and found(text) is not None


def guard_engine(fast: EncodeBatch, reference: EncodeBatch, characters: str) -> EncodeBatch:
    """`fast`, but `reference` for documents with one of `characters`, none of which is ASCII."""
    if not characters:
        return fast
    has_any = make_search(characters)

    def encode(texts: Sequence[str]) -> TokenBatch:
        left = np.fromiter(map(has_any, texts), np.bool_, len(texts))
        if not left.any():
            return fast(texts)
        flags = left.tolist()
        fast_ids, fast_offsets = fast([text for text, out in zip(texts, flags, strict=True) if not out])
        ids, offsets = reference([text for text, out in zip(texts, flags, strict=True) if out])
        counts = np.empty(len(texts), np.int64)
        counts[~left], counts[left] = np.diff(fast_offsets), np.diff(offsets)
        from_reference = np.repeat(left, counts)
        flat = np.empty(len(from_reference), np.uint32)
        flat[~from_reference], flat[from_reference] = fast_ids, ids
        return flat, np.concatenate([[0], np.cumsum(counts)])

    return encode
