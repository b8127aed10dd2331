"""A thing of which two sides say something different."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What two sides say differently: of `what` the one says `a`, the other `b`."""

    what: str
    a: str
    b: str

    def __str__(self) -> str:
        return f"{self.what}: {self.a} | {self.b}"
