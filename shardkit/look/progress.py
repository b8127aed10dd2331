"""Progress of a run on stderr, and its closing figures, for people and scripts."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import psutil
from tqdm import tqdm

from shardkit.dataset.manifest import Manifest
from shardkit.files import format_bytes
from shardkit.look.info import encoder_words
from shardkit.rate_limits import PAUSES
from shardkit.redaction import printable
from shardkit.tokenization.ordered_writer import TokenizeProgress

_SECONDS_BETWEEN_LINES = 10.0
_NETWORK_BOUND = 0.1  # of the workers' time went by in waiting


class _PauseLine:
    """Says behind a bar, or in a line of its own where there is none, what calls over the network wait for."""

    def __init__(self, bar: tqdm[None] | None) -> None:
        self._bar = bar
        self.text = ""  # "" while nothing waits

    def __call__(self, text: str, is_new: bool) -> None:
        """As `rate_limits.Pauses` calls its listeners."""
        ended, self.text = self.text and not text, text
        if self._bar is not None and (text or ended):
            self._bar.set_postfix_str(text)
        elif is_new:
            print(text, file=sys.stderr, flush=True)


class ProgressBar:
    """Shows each `TokenizeProgress` that it is called with, and remembers the last one.

    The bar counts tokens; its end and the ETA are estimated from the share of the source's bytes that is done.
    """

    def __init__(self) -> None:
        self.last: TokenizeProgress | None = None
        self.started = time.monotonic()
        self._shown = self.started
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(unit="tok", unit_scale=True, dynamic_ncols=True, smoothing=0.1, file=sys.stderr)
        self._pause = _PauseLine(self._bar)
        self._listening = ExitStack()

    def __enter__(self) -> ProgressBar:
        self._listening.enter_context(PAUSES.told_to(self._pause))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Seconds since the bar was made."""
        return time.monotonic() - self.started

    def __call__(self, progress: TokenizeProgress) -> None:
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
            words = self._pause.text or f"{progress.shards} shards, RSS {rss}{_network(progress)}"
            self._bar.set_postfix_str(words, refresh=False)
            self._bar.update(progress.tokens - self._bar.n)
            return
        rate = progress.session_tokens / max(progress.session_seconds, 1e-9)
        left = "?" if total is None else f"{max(0, total - progress.tokens) / max(rate, 1):.0f} s"
        line = f"{progress.tokens:,} tokens, {rate / 1e6:.1f} Mtok/s, {progress.shards} shards, ETA {left}, RSS {rss}"
        line += _network(progress)
        print(line, file=sys.stderr, flush=True)

    def _expected_tokens(self, progress: TokenizeProgress) -> int | None:
        share = progress.source_bytes_done / progress.source_bytes if progress.source_bytes else 0.0
        return None if share <= 0 else int(progress.tokens / min(1.0, share))


def _network(progress: TokenizeProgress) -> str:
    words = bound_words(progress)
    return f", {words}" if words else ""


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


class TransferBar:
    """Callable with (file, bytes done, bytes in all) of a push or a pull: a bar on a terminal, else lines."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._shown = time.monotonic()
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(unit="B", unit_scale=True, dynamic_ncols=True, desc=what, file=sys.stderr)
        self._pause = _PauseLine(self._bar)
        self._listening = ExitStack()

    def __enter__(self) -> TransferBar:
        self._listening.enter_context(PAUSES.told_to(self._pause))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        if self._bar is not None:
            self._bar.close()

    def __call__(self, file: str, done: int, total: int) -> None:
        """Show how far the transfer is."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(self._pause.text or printable(file, lines=False), refresh=False)
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


def run_summary(manifest: Manifest, last: TokenizeProgress | None, seconds: float) -> dict[str, Any]:
    """What `shardkit tokenize` prints at its end. `last` is None when the dataset was already complete.

    `tokens_per_second` counts from the first read of this session. `audited_documents` were encoded by the reference
    too, in this session, and gave the same ids: the first difference stops a run. Of a source that came over the
    network, `network_mb_per_second`, the share of the workers' time that went by in waiting, and the bound in words.
    """
    skipped = sum(file.skipped for file in manifest.source.files) if manifest.source else 0
    summary: dict[str, Any] = {
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "shards": len(manifest.shards),
        "skipped_rows": skipped,
        "encoder": encoder_words(manifest),
        "end_of_text": last.end_of_text if last is not None else None,
        "fingerprint": manifest.fingerprint,
        "already_complete": last is None,
        "seconds": round(seconds, 3),
    }
    if last is not None and last.session_tokens:
        summary["tokens_per_second"] = round(last.session_tokens / max(last.session_seconds, 1e-9))
        summary["bytes_per_token"] = round(last.session_text_bytes / last.session_tokens, 3)
        summary["audited_documents"] = last.audited
    if last is not None and last.network_bytes:
        summary["network_bytes"] = last.network_bytes
        summary["network_mb_per_second"] = round(last.network_bytes / max(last.network_seconds, 1e-9) / 1e6, 1)
        summary["waited_share"] = None if last.waited_share is None else round(last.waited_share, 3)
        summary["bound"] = bound_words(last)
    return summary
