"""What of a loader depends on its rank: where it is, the feed that reads its rows, and its ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shardkit.batches.ledger import LedgerWriter
from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.run_position import RunPosition
from shardkit.loader.feed import Feed


@dataclass(frozen=True, kw_only=True, slots=True)
class ShareOptions:
    """What is the same on every rank: rows of a batch, what is in them, and where they go."""

    batch_size: int
    form: BatchForm
    device: torch.device
    prefetch: int
    ledger: Path | None


class RankShare:
    """The batches of `rank` of `world_size` out of `sequence`, at the run's `position`."""

    def __init__(self, sequence: RowSequence, options: ShareOptions, rank: int, world_size: int) -> None:
        cut = Cut(batch_size=options.batch_size, world_size=world_size)
        self._sequence, self._options, self._rank = sequence, options, (rank, world_size)
        self.stride = cut.global_batch
        self.position = RunPosition(cut, sequence.identity, sequence.n_rows)
        self.ledger: LedgerWriter | None = None
        if options.ledger is not None:
            self.ledger = LedgerWriter(options.ledger, sequence.identity, cut, rank)
        reader = BatchReader(sequence, cut, rank=rank, form=options.form, ledger=self.ledger)
        self.feed = Feed(reader, device=options.device, prefetch=options.prefetch)

    def of_rank(self, rank: int, world_size: int) -> RankShare:
        """The share of that rank, at the same place of the run; this one is closed, if it is another."""
        if (rank, world_size) == self._rank:
            return self
        self.close()
        share = RankShare(self._sequence, self._options, rank, world_size)
        share.position.load_state_dict(self.position.state_dict())
        return share

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of `epoch`, if the run is not in it."""
        before = self.position.next
        self.position.set_epoch(epoch)
        if self.position.next != before:
            self._end_ledger_file()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go where a saved state was."""
        self.position.load_state_dict(state_dict)
        self._end_ledger_file()

    def close(self) -> None:
        """Stop the thread, close the ledger."""
        self.feed.close()
        self._end_ledger_file()

    def _end_ledger_file(self) -> None:
        if self.ledger is not None:
            self.ledger.close()  # what comes next, after a jump, goes into another file
