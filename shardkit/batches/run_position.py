"""Where a run is in the endless sequence of positions: its next global batch, saved, loaded and shared by workers.

No torch: a DataLoader's workers are numbers here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardkit.batches.checks import is_count
from shardkit.batches.order import Cut
from shardkit.batches.state import LoaderState, WorkerShare, make_state, read_state
from shardkit.errors import StateError, UsageError


class RunPosition:
    """The position at which a run's next global batch begins, in epochs of `n_rows` rows; it starts at 0.

    `identity` is what a saved state must have in common with this run.
    """

    def __init__(self, cut: Cut, identity: Mapping[str, Any], n_rows: int) -> None:
        self.next = 0
        self.cut = cut
        self._identity = identity
        self._n_rows = n_rows
        self._share: WorkerShare | None = None  # this process's part of the epoch, in a DataLoader worker
        self._share_loaded = False

    @property
    def epoch(self) -> int:
        """The epoch, from 0, in which the next batch begins."""
        return self.next // self._n_rows

    @property
    def step(self) -> int:
        """Number of the next global batch, from 0."""
        return self.cut.step_at(self.next)

    def epoch_end(self) -> int:
        """The end of the batch that holds the current epoch's last window."""
        left = self._n_rows - self.next % self._n_rows
        return self.next - -left // self.cut.global_batch * self.cut.global_batch

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch that begins in `epoch`, as a run from the start would come to it."""
        if not is_count(epoch):
            raise UsageError(f"epoch is {epoch!r}: expected a whole number of at least 0")
        self.cut = Cut(batch_size=self.cut.batch_size, world_size=self.cut.world_size)
        self._go_to(self.cut.position_of(self.cut.step_at(epoch * self._n_rows)))

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
        state = LoaderState(position=self.next, step=self.step, share=self._share)
        return make_state(self._identity, state, n_windows=self._n_rows)

    def load_state_dict(self, state_dict: Mapping[str, Any], *, worker: tuple[int, int] | None) -> None:
        """Go where a saved state was; `worker` is this DataLoader worker's number, and how many there are.

        Raises `StateError`, and changes nothing, where the state is of another identity or another worker.
        """
        state = read_state(self._identity, state_dict, n_windows=self._n_rows)
        share = state.share
        if share is not None and worker != (share.worker, share.workers):
            raise StateError(
                f"the state is of DataLoader worker {share.worker} of {share.workers}: load it through a "
                f"StatefulDataLoader with num_workers={share.workers}"
            )
        self.cut = self.cut.resumed(step=state.step, position=state.position)
        self._go_to(state.position)
        self._share, self._share_loaded = share, share is not None

    def share_epoch(self, worker: int, workers: int) -> Iterator[int]:
        """The positions of every `workers`-th batch of the epoch, from batch `worker` on, as DataLoader asks in turn.

        Each position counts as given when it is asked for. A share whose state was loaded goes on where it was.
        """
        if not self._share_loaded:
            if self._share is not None:  # a worker that lives on: its last epoch was given out
                self.next = self.epoch_end()
            self._share = WorkerShare(worker=worker, workers=workers)
        self._share_loaded = False
        return self._rest_of_share()

    def _rest_of_share(self) -> Iterator[int]:
        end = self.epoch_end()
        while (share := self._share) is not None:
            position = self.next + (share.worker + share.given * share.workers) * self.cut.global_batch
            if position >= end:
                return
            self._share = WorkerShare(worker=share.worker, workers=share.workers, given=share.given + 1)
            yield position

    def _go_to(self, position: int) -> None:
        self.next, self._share, self._share_loaded = position, None, False
