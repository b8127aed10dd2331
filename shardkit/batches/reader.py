"""One rank's rows of any global batch, by position alone, and the inputs and targets that are made of them. No torch.

A reader remembers no position: any may be asked for at any time. Which one comes next is the loader's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.layouts import Contiguous, eot_of
from shardkit.batches.ledger import LedgerWriter
from shardkit.batches.order import Cut
from shardkit.batches.row_sequence import RowSequence
from shardkit.dataset.token_stream import Tokens
from shardkit.errors import ShardError, UsageError

_PLANNED_ROWS = 1024
PAD_TARGET = -100  # torch's cross_entropy leaves it out


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchForm:
    """What inputs and targets are made of rows. Rows that are `packed` may be padded, and hold pieces of documents."""

    packed: bool = False
    documents: bool = False
    ignore_index: int | None = None

    @property
    def plain(self) -> bool:
        """Whether inputs and targets are the rows as they are."""
        return not (self.packed or self.documents or self.ignore_index is not None)


class BatchReader:
    """Reads the `batch_size` rows of `rank` in the global batch at a position. For one thread at a time.

    Rows that are read are hashed into the `ledger`, if there is one. Raises `UsageError` for an epoch that does not
    fill a global batch, and where `form` needs an EOT id that nothing tells or has an `ignore_index` that cannot be.
    """

    def __init__(
        self,
        sequence: RowSequence,
        cut: Cut,
        *,
        rank: int = 0,
        form: BatchForm | None = None,
        ledger: LedgerWriter | None = None,
    ) -> None:
        _check_fills_a_batch(sequence, cut)
        self.form = form or BatchForm()
        self.shape = cut.batch_size, sequence.seq_len
        self.stride = cut.global_batch  # from one of the rank's batches to the next, in positions
        self.dtype = sequence.dtype
        self._sequence, self._cut, self._rank, self._ledger = sequence, cut, rank, ledger
        first = sequence.sources[0]
        self._eot_id = 0 if self.form.plain else eot_of(first.stream)
        tokenizers = [source.manifest.tokenizer for source in sequence.sources]  # those known are the same
        self._vocab_size = max(tokenizer.vocab_size if tokenizer else 0 for tokenizer in tokenizers)
        self._check_ids = 0 < self._vocab_size <= np.iinfo(self.dtype).max
        _check_ignore_index(self.form.ignore_index, self._eot_id, self._vocab_size)
        self._max_segments = self._count_segments() if self.form.documents else 0
        in_order = sequence.mixture is None and isinstance(first.layout, Contiguous) and not first.order.shuffle
        self._in_order = first if in_order and self.form.plain and ledger is None else None
        self._plan: list[
            list[tuple[int, int, int]]
        ] = []  # of the batches from _plan_start on: the formula pays in bulk
        self._plan_start = 0

    def run_at(self, position: int) -> Tokens | None:
        """The batch as one run of `batch_size * seq_len + 1` tokens, at once, where it is one.

        That is of a single contiguous source without a shuffle, inside one epoch and one shard, with no ledger to
        write; else None. Copy it out before the next read.
        """
        source = self._in_order
        if source is None:
            return None
        size, seq_len = self.shape
        window = (position + self._rank * size) % source.order.n_windows
        source.enter(int(source.visits(np.array([position + self._rank * size]))[0]))
        # None past the epoch's end too: the tokens after the last window are too few for another
        run = source.stream.run(window * seq_len, size * seq_len + 1)
        if run is not None and self._holds_unknown(run):
            for row in range(size):
                source.check_ids(window + row, run[row * seq_len :][: seq_len + 1], self._vocab_size)
        return run

    def read_rows(self, position: int, out: Tokens) -> None:
        """Copy the batch at `position` into `out`, `(batch_size, seq_len + 1)` of the shards' dtype.

        Raises `ShardError` for an id beyond the vocabulary, where that is known: a model would end with an error, on a
        GPU one that stops the process, which names no shard.
        """
        sources = self._sequence.sources
        for row, (number, index, visit) in zip(out, self._rows_of_batch(position), strict=True):
            sources[number].read(index, visit, row)
        if self._holds_unknown(out):
            for row, (number, index, _) in zip(out, self._rows_of_batch(position), strict=True):
                sources[number].check_ids(index, row, self._vocab_size)
        if self._ledger is not None:
            self._ledger.hash_rows(position, out)

    def arrays_of(self, position: int, rows: Tokens) -> list[NDArray[np.integer]]:
        """Inputs and targets of the batch at `position`, whose `rows` were read: int64 `(batch_size, seq_len)`.

        With `form.documents` also `cu_seqlens`, int32 `(max_segments * batch_size + 1,)`, and positions in documents,
        int64 `(batch_size, seq_len)`. Each is fresh memory of its own.
        """
        inputs, targets = rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)
        if self.form.plain:
            return [inputs, targets]
        seams, used = self._pieces_of_batch(position) if self.form.packed else ([], [])
        targets.reshape(-1)[[seam - 1 for seam in seams]] = self._eot_id
        ignored = self.form.ignore_index
        if ignored is not None:  # a document's first token is the target of the one before
            np.putmask(targets, targets == self._eot_id, ignored)
        for row, end in enumerate(used):
            targets[row, end:] = PAD_TARGET if ignored is None else ignored
        if not self.form.documents:
            return [inputs, targets]
        starts = np.equal(rows[:, :-1], self._eot_id)
        for row, end in enumerate(used):  # padding is EOT too, and is one segment
            starts[row, end:] = False
            starts[row, end : end + 1] = True
        starts.reshape(-1)[seams] = True
        starts[:, 0] = True
        return [inputs, targets, *self._segments(np.flatnonzero(starts), position)]

    def _holds_unknown(self, tokens: Tokens) -> bool:
        """Whether one of `tokens` is beyond the vocabulary."""
        return self._check_ids and bool(tokens.max() >= self._vocab_size)

    def _rows_of_batch(self, position: int) -> list[tuple[int, int, int]]:
        """The rank's rows of the global batch at `position`: the source's number, the row there, and its visit."""
        index, rest = divmod(position - self._plan_start, self.stride)
        if rest or not 0 <= index < len(self._plan):
            steps = max(1, _PLANNED_ROWS // self.shape[0])
            places = self._sequence.rows_at(self._cut.positions(position, steps=steps, rank=self._rank))
            batches = zip(*(place.tolist() for place in places), strict=True)
            self._plan = [list(zip(*batch, strict=True)) for batch in batches]
            self._plan_start, index = position, 0
        return self._plan[index]

    def _pieces_of_batch(self, position: int) -> tuple[list[int], list[int]]:
        """Where the later pieces of packed rows begin, in the rows laid end to end; the tokens that each row holds."""
        seams, used = [], []
        for row, (number, index, _) in enumerate(self._rows_of_batch(position)):
            layout = self._sequence.sources[number].layout
            ends = list(accumulate(count for _, count in layout.pieces(index)))
            seams += [row * self.shape[1] + end for end in ends[:-1]]
            used.append(ends[-1])
        return seams, used

    def _count_segments(self) -> int:
        """The most segments that a row may have: `cu_seqlens` has room for so many, to be of one shape always."""
        seq_len = self.shape[1]
        return min(seq_len, max(source.max_segments(seq_len) for source in self._sequence.sources))

    def _segments(self, starts: NDArray[np.intp], position: int) -> list[NDArray[np.integer]]:
        """`cu_seqlens` and positions of segments that begin at `starts`, in the rows laid end to end."""
        size, seq_len = self.shape
        cu_seqlens = np.full(size * self._max_segments + 1, size * seq_len, np.int32)
        if len(starts) >= len(cu_seqlens):
            raise ShardError(f"the batch at position {position} has {len(starts)} segments: the shards were replaced")
        cu_seqlens[: len(starts)] = starts
        positions = np.arange(size * seq_len) - np.repeat(starts, np.diff(starts, append=size * seq_len))
        return [cu_seqlens, positions.reshape(size, seq_len)]


def _check_fills_a_batch(sequence: RowSequence, cut: Cut) -> None:
    if sequence.n_rows < cut.global_batch:
        tokens = sum(source.stream.tokens for source in sequence.sources)
        raise UsageError(
            f"split {sequence.identity['split']!r} of {sequence.sources[0].name} has {tokens:,} tokens: "
            f"{sequence.n_rows:,} windows of {sequence.seq_len:,}; a global batch takes {cut.batch_size} x "
            f"{cut.world_size} = {cut.global_batch:,}: lower batch_size, seq_len or world_size, or use more data"
        )


def _check_ignore_index(ignore_index: int | None, eot_id: int, vocab_size: int) -> None:
    """Raise `UsageError` for what is no int64, or the id of a token that is a target of its own."""
    if ignore_index is None:
        return
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool) or abs(ignore_index) >= 1 << 63:
        raise UsageError(f"ignore_index is {ignore_index!r}: expected a whole number, as -100")
    if 0 <= ignore_index < vocab_size and ignore_index != eot_id:
        raise UsageError(
            f"ignore_index is {ignore_index}, which is a token's id: its targets would be ignored too, give -100"
        )
