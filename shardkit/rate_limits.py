"""Waiting for a server: one that said when to come back is left alone until then, by the whole process.

A *server* here is what one limit covers: everything behind `hf://`, or a host. `LIMITS` knows which of them wait and
until when; `pause` is the one way to wait, and `PAUSES` tells whoever shows progress what is waited for. Knows no
client and makes no call: `network.py` and `hub_session.py` do.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from shardkit.redaction import public_address

LONGEST_WAIT_SECONDS = 600.0  # that a server may ask for at once: twice the Hub's window
MOST_WAIT_SECONDS = 3600.0  # that it may ask for while one call is tried
SPREAD_SECONDS = 1.0  # over which those who waited for the same limit begin again
_TOLD_SECONDS = 2.0  # shorter pauses are nobody's concern
_TICK_SECONDS = 1.0
HUB_PLACE = "hf://"
_SPENT = re.compile(r"\br\s*=\s*0+\s*;\s*t\s*=\s*([0-9]{1,9})\b")  # of `RateLimit: "api";r=0;t=53`
Listener = Callable[[str, bool], None]


def server_of(where: str) -> str:
    """What one server's limit covers of an address: `hf://`, scheme and host, or "" for a path of this machine.

    >>> server_of("hf://datasets/user/name@main"), server_of("https://host:81/x.jsonl?sig=1"), server_of("./out")
    ('hf://', 'https://host:81', '')
    """
    scheme, found, rest = public_address(where).partition("://")
    if not found:
        return ""
    return HUB_PLACE if scheme == "hf" else f"{scheme}://{rest.partition('/')[0]}"


def asked_seconds(status: int | None, headers: Mapping[str, str]) -> float:
    """The seconds for which an answer asks to be left alone, in `Retry-After` (seconds or a date) or, with status 429,
    in `RateLimit`; 0.0 if it asks for none."""
    named = {name.lower(): value.strip() for name, value in headers.items()}
    asked = _retry_after(named.get("retry-after", ""))
    if status == 429:  # else the header only tells how much of the limit is left
        spent = [int(seconds) for seconds in _SPENT.findall(named.get("ratelimit", ""))]
        asked = max([asked, *(seconds + 1.0 for seconds in spent if seconds)])  # whole seconds, so up to one is missing
    return asked


def _retry_after(value: str) -> float:
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds())


class Pauses:
    """The pauses that go on in this process, for whoever shows them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._going: dict[object, tuple[float, str]] = {}  # the end of each, and what it is for
        self._told: dict[str, float] = {}  # the end of what was told last of a reason

    @contextmanager
    def told_to(self, listener: Listener) -> Iterator[None]:
        """Call `listener(text, is_new)` while the block runs: about once a second while something waits, from any
        thread, with the longest pause in words, and `""` at the end. `is_new` is true once a pause, however many
        threads are in it. With no listener, new pauses are warnings of the logger `shardkit`."""
        with self._lock:
            self._listeners.append(listener)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(listener)

    def go_on(self, key: object, until: float, reason: str) -> None:
        """The pause `key` goes on until `until` (`time.monotonic()`)."""
        now = time.monotonic()
        with self._lock:
            said_until = self._told.get(reason, now)
            is_new = key not in self._going and until - max(said_until, now) > (until - now) / 2
            if is_new:
                self._told[reason] = until
            self._going[key] = until, reason
        self._tell(is_new)

    def end(self, key: object) -> None:
        """The pause `key` is over."""
        with self._lock:
            self._going.pop(key, None)
        self._tell(False)

    def _tell(self, is_new: bool) -> None:
        with self._lock:
            until, reason = max(self._going.values(), default=(0.0, ""))
            listeners = list(self._listeners)
        text = f"{reason}: waiting {max(1.0, until - time.monotonic()):.0f} s" if reason else ""
        for listener in listeners:
            listener(text, is_new)
        if is_new and not listeners:
            logging.getLogger("shardkit").warning(text)


PAUSES = Pauses()


def pause(seconds: float, reason: str, stop: threading.Event) -> bool:
    """Wait `seconds`, or until `stop` is set; returns whether it is. `reason` says what for, to whoever listens."""
    until, key = time.monotonic() + seconds, object()
    told = seconds > _TOLD_SECONDS
    try:
        while (left := until - time.monotonic()) > 0 and not stop.is_set():
            if told:
                PAUSES.go_on(key, until, reason)
            stop.wait(min(left, _TICK_SECONDS))
    finally:
        if told:
            PAUSES.end(key)
    return stop.is_set()


class RateLimits:
    """Until when each place is to be left alone, as its server said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, str]] = {}

    def hold(self, where: str, seconds: float, reason: str) -> None:
        """Leave the place of `where` alone for `seconds` from now, and no shorter than somebody asked for before."""
        place = server_of(where)
        with self._lock:
            self._held[place] = max(self._held.get(place, (0.0, "")), (time.monotonic() + seconds, reason))

    def seconds_left(self, where: str) -> float:
        """For how long the place of `where` is to be left alone from now; 0.0 for not at all."""
        return max(0.0, self._held.get(server_of(where), (0.0, ""))[0] - time.monotonic())

    def wait(self, where: str, stop: threading.Event) -> bool:
        """Wait until the place of `where` may be asked, and then a random part of a second, since everybody waits for
        the same moment; True, at once, when `stop` is set meanwhile. Returns False at once if there is no limit."""
        if not self.seconds_left(where):
            return False
        share = random.random() * SPREAD_SECONDS
        while left := self.seconds_left(where):  # again where another's answer has prolonged it
            if pause(left + share, self._held[server_of(where)][1], stop):
                return True
        return stop.is_set()


LIMITS = RateLimits()


def limit_reason(where: str, answer: int | str, *, token: bool) -> str:
    """In words for people: which limit a pause waits for, or what went wrong (`answer` is a status, or an exception's
    name). `token` is false where a token would raise the limit."""
    place = server_of(where)
    name = "the Hub" if place == HUB_PLACE else place or public_address(where)
    if answer == 429:
        return f"{name}'s limit of requests{'' if token else ' without a token'} (429)"
    return f"{name} answered {answer}" if isinstance(answer, int) else f"{name} does not answer ({answer})"


def backoff_seconds(tries: int, first: float, longest: float) -> float:
    """How long to wait after that many tries: `first`, doubled with each, at most `longest`; and up to half of it more,
    at random, so that many who failed together do not come back together."""
    return float(min(first * 2 ** (tries - 1), longest) * (1 + random.random() / 2))
