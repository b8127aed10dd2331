"""Calls into an engine that may panic, or spend hours on one document: both become an exception that says so."""

from __future__ import annotations

import threading
from collections.abc import Callable

SECONDS = 300.0  # for one document; the longest that an engine is given needs some 10
_LONG = 1 << 15  # characters; shorter documents are not worth a thread


class Unencodable(Exception):
    """A document that an engine failed on; `why` says how. `number` is its place in the batch."""

    def __init__(self, why: str, number: int = 0) -> None:
        super().__init__(why)
        self.why, self.number = why, number


def call_engine(engine: str, encode: Callable[[str], list[int]], text: str) -> list[int]:
    """`encode(text)`. Raises `Unencodable` if it fails (a panic too) or has not ended after `SECONDS`; then it goes on
    in a thread that nobody waits for."""
    outcome: list[list[int] | BaseException] = []

    def run() -> None:
        try:
            outcome.append(encode(text))
        except BaseException as error:  # noqa: BLE001 (a panic of a Rust engine is none other; raised below)
            outcome.append(error)

    if len(text) < _LONG:
        run()
    else:
        thread = threading.Thread(target=run, name="shardkit-encode", daemon=True)
        thread.start()
        thread.join(SECONDS)
    if not outcome:
        raise Unencodable(f"{engine} has not encoded its {len(text):,} characters in {SECONDS:.0f} seconds")
    ids = outcome[0]
    if isinstance(ids, KeyboardInterrupt | SystemExit | UnicodeEncodeError):
        raise ids
    if isinstance(ids, BaseException):
        raise Unencodable(f"{engine} failed on its {len(text):,} characters ({type(ids).__name__}: {ids})") from ids
    return ids
