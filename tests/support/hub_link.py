"""The link between the test server and its clients: `Link` says how far it is and how much it carries.

Bytes are held back until a link of that rate would have brought them; blocks are small enough that a client sees them
come steadily, and large enough that waking for them costs little of a core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

BLOCK = 1 << 18  # bytes sent at once, at most
SMALLEST_BLOCK = 1 << 12
BLOCKS_PER_SECOND = 100  # at rates so low that a block of `BLOCK` bytes would take longer
CATCH_UP_SECONDS = 0.05  # by how much a body may be late, from waking up late, and still catch up


class Bucket:
    """Tokens of a token bucket, one a byte, `rate` a second. It is empty when a body begins: idle time earns none."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._due = 0.0
        self._lock = threading.Lock()

    def take(self, size: int, *, begins: bool) -> float:
        """The moment (`time.monotonic`) at which the next `size` bytes have come through; those before have theirs."""
        with self._lock:
            earliest = time.monotonic() - (0 if begins else CATCH_UP_SECONDS)
            self._due = max(self._due, earliest) + size / self.rate
            return self._due


@dataclass
class Link:
    """A link for the requests whose target matches the regex `path`; others pass at once.

    latency          seconds before each answer
    api_latency      the same for the Hub's own answers (`resolve` and the API); None: `latency`
    connection_rate  bytes a second of each connection; None: no limit
    total_rate       bytes a second of all connections together; None: no limit

    Rates hold for files that are downloaded. A connection is kept in order: one body after the other.
    """

    latency: float = 0.0
    api_latency: float | None = None
    connection_rate: float | None = None
    total_rate: float | None = None
    path: str = ""
    total: Bucket | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self.total = None if self.total_rate is None else Bucket(self.total_rate)

    def seconds_before(self, *, content: bool) -> float:
        """The latency of an answer, of `content` or of the Hub itself."""
        return self.latency if content or self.api_latency is None else self.api_latency

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Bytes `start` to `stop` (left out) of one connection in blocks, each (start, size), each when it is due."""
        buckets = [] if self.connection_rate is None else [Bucket(self.connection_rate)]
        buckets += [] if self.total is None else [self.total]
        slowest = min((bucket.rate for bucket in buckets), default=0.0)
        most = max(SMALLEST_BLOCK, min(BLOCK, int(slowest / BLOCKS_PER_SECOND))) if buckets else BLOCK
        for at in range(start, stop, most):
            size = min(most, stop - at)
            if buckets:
                due = max(bucket.take(size, begins=at == start) for bucket in buckets)
                time.sleep(max(0.0, due - time.monotonic()))
            yield at, size


NO_LINK = Link()
