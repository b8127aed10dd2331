"""What a person sees while a run goes on: one overall bar on a terminal, plain lines elsewhere. Writes to stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import psutil
from tqdm import tqdm

from shardkit.assembler import Progress
from shardkit.files import format_bytes

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Callable with a `Progress`; keeps the last one. The bar counts tokens; its end and the ETA are estimated from the
    share of the source's bytes that is done."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        self.started = time.monotonic()
        self._shown = self.started
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(unit="tok", unit_scale=True, dynamic_ncols=True, smoothing=0.1, file=sys.stderr)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the bar was made."""
        return time.monotonic() - self.started

    def __call__(self, progress: Progress) -> None:
        """Show `progress`, at most ten times a second on a terminal and once in ten seconds elsewhere."""
        self.last = progress
        now = time.monotonic()
        wait = 0.1 if self._bar is not None else _SECONDS_BETWEEN_LINES
        if now - self._shown < wait:
            return
        self._shown = now
        rss = format_bytes(tree_rss(progress.process_ids))
        total = self._expected_tokens(progress)
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(f"{progress.shards} shards, RSS {rss}", refresh=False)
            self._bar.update(progress.tokens - self._bar.n)
            return
        rate = progress.session_tokens / max(progress.session_seconds, 1e-9)
        left = "?" if total is None else f"{max(0, total - progress.tokens) / max(rate, 1):.0f} s"
        line = f"{progress.tokens:,} tokens, {rate / 1e6:.1f} Mtok/s, {progress.shards} shards, ETA {left}, RSS {rss}"
        print(line, file=sys.stderr, flush=True)

    def _expected_tokens(self, progress: Progress) -> int | None:
        share = progress.source_bytes_done / progress.source_bytes if progress.source_bytes else 0.0
        return None if share <= 0 else int(progress.tokens / min(1.0, share))


class TransferBar:
    """Callable with (file, bytes done, bytes in all) of a push or a pull: a bar on a terminal, else lines."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(unit="B", unit_scale=True, dynamic_ncols=True, desc=what, file=sys.stderr)

    def __enter__(self) -> TransferBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, file: str, done: int, total: int) -> None:
        """Show how far the transfer is."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(file, refresh=False)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._shown > _SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            print(f"{self.what}: {format_bytes(done)} of {format_bytes(total)}", file=sys.stderr, flush=True)


def tree_rss(process_ids: tuple[int, ...]) -> int:
    """Resident bytes of this process and of `process_ids`."""
    total = 0
    for pid in (psutil.Process().pid, *process_ids):
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total
