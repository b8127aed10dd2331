"""Which shards a cache folder holds and which must go for the next one: bookkeeping, no files, no clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


class Room:
    """The shard files of a folder, by name, and those on their way. All sizes in bytes."""

    def __init__(self, held: Mapping[str, int]) -> None:
        self.held = dict(held)
        self.coming: dict[str, int] = {}
        self._wanted_at: dict[str, int] = {}
        self._now = 0

    @property
    def used(self) -> int:
        """Held and promised."""
        return sum(self.held.values()) + sum(self.coming.values())

    def want(self, shards: Collection[str]) -> None:
        """Note what is wanted now, so that what was wanted last goes last."""
        self._now += 1
        self._wanted_at |= dict.fromkeys(shards, self._now)

    def drop(self, shard: str) -> None:
        """It is no more, or does not come."""
        self.held.pop(shard, None)
        self.coming.pop(shard, None)

    def arrive(self, shard: str) -> None:
        """It has come whole."""
        self.held[shard] = self.coming.pop(shard)

    def make(self, size: int, *, bound: int | None, free: int, wanted: Collection[str]) -> list[str] | None:
        """The unwanted shards that must go before `size` more bytes may come; None if that would not be enough.

        `bound` is for all shards (None: no bound, then nothing goes); `free` is what the disk has free now.
        """
        spare = free - sum(self.coming.values())
        if bound is None:
            return [] if spare >= size else None
        over = max(self.used + size - bound, size - spare)
        leaving = []
        for shard in sorted(self.held.keys() - set(wanted), key=lambda shard: (self._wanted_at.get(shard, 0), shard)):
            if over <= 0:
                break
            leaving.append(shard)
            over -= self.held[shard]
        return leaving if over <= 0 else None


def in_order_of_need(wants: Sequence[Sequence[str]]) -> list[str]:
    """All that the readers want, each once: every reader's first, then every reader's second, and so on."""
    nearest: dict[str, int] = {}
    for shards in wants:
        for distance, shard in enumerate(shards):
            nearest[shard] = min(distance, nearest.get(shard, distance))
    return sorted(nearest, key=lambda shard: (nearest[shard], shard))


def too_much(wants: Sequence[str], sizes: Mapping[str, int], bound: int) -> list[str]:
    """Those of one reader's wants that do not fit below `bound` together with the ones before."""
    used, beyond = 0, []
    for shard in wants:
        used += sizes[shard]
        if used > bound:
            beyond.append(shard)
    return beyond
