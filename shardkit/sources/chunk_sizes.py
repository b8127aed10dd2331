"""How much text a chunk has: the more, the fewer are given out, and the less even is the end of a run."""

from __future__ import annotations

from dataclasses import dataclass

_JOINED = 2  # times `least`, the most: of the tokens that wait for the text before, a worker holds 32 MB
_SHARES = 4  # of what is left, as many for each worker


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkSizes:
    """Chunks have `least` bytes of text, and more where it lies side by side and there is much for each of `workers`
    (None: never). Of the source's bytes `unread` are beyond the limits of the run. A file that is read front to back is
    given out whole from `whole_from` workers on (None: never), if with it as many times its size is left to read."""

    least: int
    workers: int | None = None
    unread: int = 0
    whole_from: int | None = None

    def most(self, left: int) -> int:
        """The bytes of text of the next chunk, at most, where `left` bytes of the source are left."""
        if self.workers is None:
            return self.least
        return max(self.least, min(_JOINED * self.least, (left - self.unread) // (_SHARES * self.workers)))

    def are_whole(self, size: int, left: int) -> bool:
        """Whether a file of `size` bytes is given out whole, where with it `left` bytes of the source are left."""
        if self.whole_from is None or self.workers is None or self.workers < self.whole_from:
            return False
        return self.whole_from * size <= left - self.unread
