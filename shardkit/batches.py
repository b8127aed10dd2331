"""One rank's rows of any global batch, by position alone: a token stream read in an order, under a cut. No torch.

Reading keeps no place: any position may be asked for at any time. What comes next is the loader's to say.
"""

from __future__ import annotations

from shardkit.order import Cut, Order
from shardkit.stream import Tokens, TokenStream

_PLANNED_WINDOWS = 1024


class BatchReader:
    """Reads the `batch_size` windows that `rank` takes of the global batch at a position. For one thread at a time."""

    def __init__(self, stream: TokenStream, order: Order, cut: Cut, *, rank: int, seq_len: int) -> None:
        self.stream = stream
        self.order = order
        self.cut = cut
        self.rank = rank
        self.seq_len = seq_len
        self._plan: list[list[int]] = []  # windows of the batches from _plan_start on: the formula pays in bulk
        self._plan_start = 0

    def windows(self, position: int) -> list[int]:
        """The rank's `batch_size` windows of the global batch at `position`."""
        index, rest = divmod(position - self._plan_start, self.cut.global_batch)
        if rest or not 0 <= index < len(self._plan):
            steps = max(1, _PLANNED_WINDOWS // self.cut.batch_size)
            positions = self.cut.positions(position, steps=steps, rank=self.rank)
            self._plan = self.order.windows(positions).tolist()
            self._plan_start, index = position, 0
        return self._plan[index]

    def run(self, position: int) -> Tokens | None:
        """The batch as one run of `batch_size * seq_len + 1` tokens, straight out of the map, where it is one.

        That is without a shuffle, inside one epoch and one shard; else None. Copy it out before the next read.
        """
        if self.order.shuffle:
            return None
        size = self.cut.batch_size
        window = (position + self.rank * size) % self.order.n_windows
        # past the epoch's end too it is none: what follows the last window is too short for another
        return self.stream.run(window * self.seq_len, size * self.seq_len + 1)

    def rows(self, position: int, out: Tokens) -> None:
        """Copy the batch into `out`, `(batch_size, seq_len + 1)` of the shards' dtype: a window and one more a row."""
        for row, window in zip(out, self.windows(position), strict=True):
            self.stream.read(window * self.seq_len, row)
