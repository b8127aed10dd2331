"""Where a run is in the endless sequence of positions: its next global batch, saved and loaded.

An epoch of a run is as many whole global batches as its rows fill, always the same number: what is left over comes
first in the next one. So a loop of any framework, which counts batches, stays in step with the data, and no row is lost
or comes twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardkit.batches.checks import is_count
from shardkit.batches.order import Cut
from shardkit.batches.state import LoaderState, make_state, read_state
from shardkit.errors import UsageError


class RunPosition:
    """The position at which a run's next global batch begins, in epochs of `n_rows` rows; it starts at 0.

    `identity` is what a saved state must have in common with this run.
    """

    def __init__(self, cut: Cut, identity: Mapping[str, Any], n_rows: int) -> None:
        self.next = 0
        self.cut = cut
        self._identity = identity
        self._n_rows = n_rows
        self._counted_from = 0, 0, n_rows  # a position, the epoch that it is in, and the rows that were left of that

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next batch is in."""
        return self._epoch_and_left()[0]

    @property
    def step(self) -> int:
        """Number of the next global batch, from 0."""
        return self.cut.step_at(self.next)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return self._n_rows // self.cut.global_batch

    def epoch_end(self) -> int:
        """The end of the current epoch's last batch."""
        return self.next + self._epoch_and_left()[1] * self.cut.global_batch

    def _epoch_and_left(self) -> tuple[int, int]:
        """The epoch that the next batch is in, and how many of its batches are left.

        One that was left in its middle goes on with a batch at least, also where a larger cut has too few rows for it.
        """
        size = self.cut.global_batch
        position, epoch, rows_left = self._counted_from
        first, done = max(1, rows_left // size), (self.next - position) // size
        if done < first:
            return epoch, first - done
        more, done = divmod(done - first, self.steps_per_epoch)
        return epoch + 1 + more, self.steps_per_epoch - done

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of `epoch`, as a run from the start would come to it; stay if it is there already."""
        if not is_count(epoch):
            raise UsageError(f"epoch is {epoch!r}: expected a whole number of at least 0")
        if epoch != self.epoch:
            self.cut = Cut(batch_size=self.cut.batch_size, world_size=self.cut.world_size)
            self.next = self.cut.position_of(epoch * self.steps_per_epoch)
            self._counted_from = self.next, epoch, self._n_rows

    def position_at(self, *, step: int, rank: int, row: int) -> int:
        """The position of `row` of batch `step` on `rank`.

        Raises `UsageError` for a step, rank or row that does not exist, or a step from before a resume under another
        cut.
        """
        cut = self.cut
        if not is_count(step) or step < cut.origin_step:
            raise UsageError(
                f"step is {step!r}: expected at least {cut.origin_step}, where this run began, or was resumed with "
                "another cut; ask a loader with the batch_size and world_size of that time"
            )
        if not (is_count(rank) and rank < cut.world_size and is_count(row) and row < cut.batch_size):
            raise UsageError(
                f"rank is {rank!r}, row {row!r}: expected 0 to {cut.world_size - 1} and 0 to {cut.batch_size - 1}"
            )
        return cut.position_of(step) + rank * cut.batch_size + row

    def state_dict(self) -> dict[str, Any]:
        """This position as JSON-able values."""
        epoch, left = self._epoch_and_left()
        state = LoaderState(position=self.next, step=self.step, epoch=epoch, rows_left=left * self.cut.global_batch)
        return make_state(self._identity, state, n_windows=self._n_rows)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a saved state was. Raises `StateError`, and changes nothing, where it is of another identity."""
        state = read_state(self._identity, state_dict, n_windows=self._n_rows)
        self.cut = self.cut.resumed(step=state.step, position=state.position)
        self.next = state.position
        self._counted_from = state.position, state.epoch, state.rows_left
