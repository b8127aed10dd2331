"""Where two engines differ: the shortest text, and the characters that make it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardkit.tokenization.battery import characters
from shardkit.tokenization.guard import EncodeBatch

MOST_GUARDED = 4096  # characters; more are no exception but another vocabulary
_MOST_KINDS = 64  # of differences; each costs seconds


@dataclass(slots=True)
class Differences:
    """What a comparison of `fast` with `reference` has found so far: `strings` compared, the `guard` (characters, of
    some `kinds`, that make a difference wherever they are), and `reason`, which tells of a difference that no character
    beyond ASCII makes."""

    fast: EncodeBatch
    reference: EncodeBatch
    strings: int = 0
    guard: set[str] = field(default_factory=set)
    reason: str | None = None
    kinds: int = 0

    def look(self, batches: Iterable[list[str]]) -> None:
        """Compare batches of texts, without the characters that are in the guard by then, up to the first `reason`."""
        for batch in batches:
            self.strings += len(batch)
            texts = self._without_guarded(batch)
            while (at := self._first(texts)) is not None:
                self._explain(self._shorten(texts[at]))
                if self.reason is not None:
                    return
                texts = self._without_guarded(texts[at:])

    def _explain(self, text: str) -> None:
        """Put the characters into the guard that make a difference in the place of one of `text`: of all its
        characters, the one whose place the fewest others may have."""
        found = [
            self._that_differ(text[:at], text[at + 1 :]) | {char}
            for at, char in enumerate(text)
            if not char.isascii() and char not in text[:at]
        ]
        if not found:
            self.reason = f"differs from the reference at {text!r:.80}"
            return
        self.guard |= min(found, key=len)
        self.kinds += 1
        if len(self.guard) > MOST_GUARDED or self.kinds > _MOST_KINDS:
            self.reason = f"differs from the reference at {len(self.guard):,} characters, the last in {text!r:.80}"

    def _that_differ(self, before: str, after: str) -> set[str]:
        chars = [char for char in characters()[128:] if char not in self.guard]
        found: set[str] = set()
        for at in range(0, len(chars), 8192):
            some = chars[at : at + 8192]
            texts = [before + char + after for char in some]
            if self._same(texts):
                continue
            found |= {char for char, text in zip(some, texts, strict=True) if not self._same([text])}
        return found

    def _shorten(self, text: str) -> str:
        """A text that differs, of which no character can be left out (delta debugging, Zeller 1999)."""
        size = max(1, len(text) // 2)
        while True:
            at, before = 0, len(text)
            while at < len(text):
                shorter = text[:at] + text[at + size :]
                if self._same([shorter]):
                    at += size
                else:
                    text = shorter
            if size == 1 and len(text) == before:
                return text
            size = max(1, size // 2)

    def _first(self, texts: Sequence[str]) -> int | None:
        """The number of the first text that differs."""
        if self._same(texts):
            return None
        low, high = 0, len(texts)  # the first is in texts[low:high]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._same(texts[low:middle]) else (low, middle)
        return low

    def _same(self, texts: Sequence[str]) -> bool:
        ids, offsets = self.reference(texts)
        try:
            found = self.fast(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 (a panic is no Exception; it is a difference like any other)
            return False
        return np.array_equal(found[1], offsets) and np.array_equal(found[0], ids)

    def _without_guarded(self, texts: Sequence[str]) -> list[str]:
        if not self.guard:
            return list(texts)
        table = dict.fromkeys(map(ord, self.guard))
        return [text if text.isascii() else text.translate(table) for text in texts]
