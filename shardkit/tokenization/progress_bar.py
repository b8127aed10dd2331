"""The bar of a tokenizing run: tokens, the end that is expected, memory, and what bounds it."""

from __future__ import annotations

import time

import psutil

from shardkit.bars import Bar, State
from shardkit.files import counted, format_bytes
from shardkit.tokenization.run_progress import TokenizeProgress

_SECONDS_BETWEEN_MEASURES = 1.0  # of memory: 500 workers, ten times a second, would take a sixth of a core
_NETWORK_BOUND = 0.1  # of the workers' time went by in waiting


class ProgressBar(Bar):
    """Shows each `TokenizeProgress` that it is called with, and remembers the last one.

    The bar counts tokens; its end and the ETA are estimated from the share of the source's bytes that is done.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__("tokenize", "tok", quiet=quiet)
        self.last: TokenizeProgress | None = None
        self.started = time.monotonic()
        self._memory, self._measures_at = "", 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the bar was made."""
        return time.monotonic() - self.started

    def __call__(self, progress: TokenizeProgress) -> None:
        """Show `progress`."""
        self.last = progress
        self.draw()

    def state(self) -> State | None:
        """The tokens of the run so far."""
        progress = self.last
        if progress is None:
            return None
        total, rss = _expected_tokens(progress), self._rss(progress.process_ids)
        network = f", {words}" if (words := bound_words(progress)) else ""
        rate = progress.session_tokens / max(progress.session_seconds, 1e-9)
        shards = counted(progress.shards, "shard")
        left = "?" if total is None else f"{max(0, total - progress.tokens) / max(rate, 1):.0f} s"
        line = f"{progress.tokens:,} tokens, {rate / 1e6:.1f} Mtok/s, {shards}, ETA {left}, RSS {rss}"
        return State(progress.tokens, total, f"{shards}, RSS {rss}{network}", line + network)

    def _rss(self, process_ids: tuple[int, ...]) -> str:
        now = time.monotonic()
        if now >= self._measures_at:
            self._memory, self._measures_at = format_bytes(tree_rss(process_ids)), now + _SECONDS_BETWEEN_MEASURES
        return self._memory


def _expected_tokens(progress: TokenizeProgress) -> int | None:
    share = progress.source_bytes_done / progress.source_bytes if progress.source_bytes else 0.0
    return None if share <= 0 else int(progress.tokens / min(1.0, share))


def bound_words(progress: TokenizeProgress) -> str:
    """What bounds a run that reads over the network: "network-bound: 38 MB/s; 2 workers could take 190", or
    "processor-bound: 90 MB/s come over the network". Empty where nothing came over it."""
    if not progress.network_bytes:
        return ""
    rate = progress.network_bytes / max(progress.network_seconds, 1e-9) / 1e6
    waited = progress.waited_share
    if waited is None:
        return f"{rate:.0f} MB/s come over the network"
    if waited < _NETWORK_BOUND:
        return f"processor-bound: {rate:.0f} MB/s come over the network"
    workers = len(progress.process_ids)
    return f"network-bound: {rate:.0f} MB/s; {workers} workers could take {rate / max(1 - waited, 0.01):.0f}"


def tree_rss(process_ids: tuple[int, ...]) -> int:
    """Resident bytes of this process and of `process_ids`."""
    total = 0
    for pid in (psutil.Process().pid, *process_ids):
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total
