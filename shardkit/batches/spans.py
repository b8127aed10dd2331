"""Spans: runs of shards that a bounded disk can hold at once; the shuffle mixes rows within a span. Pure arithmetic.

While the rows of one span are read, the next span's shards arrive. A row belongs to the span in which it begins, and
may end in the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shardkit.batches.order import count_windows
from shardkit.errors import UsageError
from shardkit.files import format_bytes

AUTO_SPAN = 4  # shards: of FineWeb-Edu 400M tokens to mix, 800 MB before the first batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The rows from `first_row` on that begin in `shards`; `reads` are all shards (numbers) that hold their tokens."""

    first_row: int
    shards: range
    reads: range


def cut_spans(tokens: Sequence[int], *, span: int, seq_len: int) -> tuple[Span, ...]:
    """Spans of `span` shards each, of shards that hold `tokens`; a span in which no row begins is left out."""
    starts = [0, *accumulate(tokens)]
    n_rows = count_windows(starts[-1], seq_len)
    spans = []
    for first in range(0, len(tokens), span):
        stop = min(first + span, len(tokens))
        begin, end = (min(-(-starts[at] // seq_len), n_rows) for at in (first, stop))
        if begin < end:
            reads = range(first, max(stop, bisect_right(starts, end * seq_len)))
            spans.append(Span(first_row=begin, shards=range(first, stop), reads=reads))
    return tuple(spans)


def needed_shards(spans: Sequence[Span], number: int) -> list[int]:
    """The shards to have, in order of need, while span `number` is read: its own, then the following span's."""
    following = spans[(number + 1) % len(spans)]
    return list(dict.fromkeys([*spans[number].reads, *following.shards]))


def choose_span(
    tokens: Sequence[int], sizes: Sequence[int], *, seq_len: int, room: int | None, given: int | None, where: str
) -> int:
    """How many shards a span has: `given`, or the most, up to 4, of which two spans always fit `room` bytes.

    `tokens` and `sizes` (bytes) are the shards', None for `room` is no bound, `where` is for messages. Raises
    `UsageError` where no span fits.
    """
    least, given = 0, given and min(given, len(tokens))
    for span in range(min(AUTO_SPAN, len(tokens)), 0, -1) if given is None else [given]:
        spans = cut_spans(tokens, span=span, seq_len=seq_len)
        least = max(sum(sizes[shard] for shard in needed_shards(spans, at)) for at in range(len(spans))) if spans else 0
        if room is None or least <= room:
            return span
    raise UsageError(
        f"{where}: a span of {given or 1} shards and the next one take {format_bytes(least)}, cache_bytes leaves "
        f"{format_bytes(max(0, room or 0))} for shards: give more, or a smaller span"
    )
