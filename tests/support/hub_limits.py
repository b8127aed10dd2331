"""Limits of requests as the Hub has them: so many for an account, or for all without one, in a window of time.

The Hub counts calls of its API (`api`) and requests for files (`resolvers`) apart, in fixed windows, and answers what
is beyond with 429 and the headers `RateLimit` and `RateLimit-Policy`. What goes by the other origin is not counted.

    with HubServer() as hub:
        hub.limits = HubLimits(api=1000, resolvers=5000, seconds=300.0)
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from dataclasses import dataclass

from hub_wire import HttpError


@dataclass
class _Window:
    number: int
    served: int = 0
    ends: float | None = None  # None: its clock does not run yet


class HubLimits:
    """`api` and `resolvers` are requests in a window of `seconds`; None: no limit of that kind.

    A window begins with its first request, or, with `once_spent`, with the last one that it has room for: then the
    limit is met however slow the machine is. `refused` counts what was answered with 429, by (account, kind, number of
    the window).
    """

    def __init__(
        self, *, api: int | None = None, resolvers: int | None = None, seconds: float = 1.0, once_spent: bool = False
    ) -> None:
        self.most = {"api": api, "resolvers": resolvers}
        self.seconds, self.once_spent = seconds, once_spent
        self.refused: Counter[tuple[str, str, int]] = Counter()
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lock = threading.Lock()

    def check(self, path: str, token: str) -> None:
        """Count a request. Raises `HttpError`, status 429, if it is beyond its window's limit."""
        kind = "resolvers" if "/resolve/" in path else "api" if path.startswith("/api/") else ""
        if (most := self.most.get(kind)) is None:
            return
        account, now = token or "anonymous", time.monotonic()
        with self._lock:
            window = self._windows.setdefault((account, kind), _Window(0))
            if window.ends is not None and now >= window.ends:
                window = self._windows[account, kind] = _Window(window.number + 1)
            if window.served < most:
                window.served += 1
                if window.ends is None and (window.served == most or not self.once_spent):
                    window.ends = now + self.seconds
                return
            self.refused[account, kind, window.number] += 1
            left = math.ceil((window.ends or now) - now)  # the header holds whole seconds
        raise HttpError(
            429,
            "We had to rate limit you.",
            {
                "RateLimit": f'"{kind}";r=0;t={left}',
                "RateLimit-Policy": f'"fixed window";"{kind}";q={most};w={math.ceil(self.seconds)}',
            },
        )
