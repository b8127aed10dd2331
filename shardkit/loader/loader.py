"""`ShardLoader`: batches for a training loop. Owns the place in the order, and the tensors.

What a batch holds is `order.py`'s to say, where its tokens lie `stream.py`'s, the way to a GPU `loader_feed.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from shardkit.batches.layouts import LayoutStats
from shardkit.batches.ledger import LedgerWriter
from shardkit.batches.mixture import RowLine, Sources
from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.rows import RowOptions
from shardkit.batches.state import Lane, Position, is_count, make_state, read_state
from shardkit.dataset.documents import Location
from shardkit.errors import StateError, UsageError
from shardkit.loader.feed import Batch, DeviceFeed, HostFeed, check_ignore_index, check_prefetch
from shardkit.loader.rank import rank_of_process


class ShardLoader(IterableDataset[Batch]):
    """Batches of one split for one rank: every window once an epoch, at any world size, resumable at any step.

        loader = ShardLoader("edu_fineweb10B", batch_size=16, seq_len=1024)
        inputs, targets = loader.next_batch()

    `source` is a dataset folder, a folder of bare `.npy` shards, a `Manifest` that was read from a folder, a remote
    (`user/name`, `hf://datasets/...`, `s3://...`, `file://...`), or a list of `(source, weight)` to mix. `shuffle`
    mixes the rows anew each epoch by `(seed, epoch)`. All ranks must be made alike but for `rank`. A remainder of an
    epoch that fills no global batch is carried: the batch that closes an epoch is filled up from the next one, so
    nothing is dropped and all ranks run the same steps.

    `layout` says what a row of `seq_len` tokens is: `contiguous` windows across shard ends; `document`, windows that
    begin at a document's start (what a window's end cuts off a document is left out); `packed`, whole documents packed
    to fill rows (longer ones split, nothing left out, rests padded, the padding's targets -100 or `ignore_index`).
    With `documents`, batches are `(inputs, targets, Documents)`, for attention within documents. With `ignore_index`,
    targets that cross into the next document are that. `eot_id` is for bare shards, of which nothing says it.

    Of a remote, the first batch comes as soon as the shards it needs are here and verified; one process of the node
    fetches for all its ranks, into the folder `cache`, which must be on the node (default: `~/.cache/shardkit`, or
    $SHARDKIT_CACHE). `cache_bytes` bounds that folder: shards that the epoch no longer needs are deleted. The shuffle
    mixes within `span` shards, two spans being here at a time (default: 4, or fewer to fit `cache_bytes`); a local
    folder read with the same `span` gives the same batches. `revision` pins a Hub repo.

    Sizes and headers are checked at once; `verify=True` also hashes every shard of the split against the manifest.
    With `device="cuda"`, `prefetch` batches (2 unless said otherwise) are read ahead in a thread and wait on the GPU.
    `ledger` is a folder to which each rank writes hashes of what it was given (`shardkit.batches.ledger.merge_ledger`).

    In a `torch.utils.data.DataLoader` (`batch_size=None`) worker processes share the batches of an epoch, in order. The
    loader in the main process does not move then: between epochs call `set_epoch`, or use `persistent_workers=True`;
    to save the state use torchdata's `StatefulDataLoader`.

    Raises `UsageError` for options that cannot work, `ManifestError` and `ShardError` for a bad dataset.
    """

    def __init__(
        self,
        source: Sources,
        *,
        batch_size: int,
        seq_len: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device | None = None,
        prefetch: int | None = None,
        verify: bool = False,
        ledger: str | os.PathLike[str] | None = None,
        layout: str = "contiguous",
        documents: bool = False,
        ignore_index: int | None = None,
        eot_id: int | None = None,
        span: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "seq_len": seq_len, "world_size": world_size}
        for name, value in {**sizes, "rank": rank, "seed": seed}.items():
            if not is_count(value) or (name in sizes and value == 0):
                raise UsageError(f"{name} is {value!r}: expected a whole number of at least {int(name in sizes)}")
        if rank >= world_size:
            raise UsageError(f"rank is {rank}, world_size {world_size}: ranks go from 0 to {world_size - 1}")
        self.batch_size, self.seq_len, self.split = batch_size, seq_len, split
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.seed = bool(shuffle), seed
        self.device = torch.device("cpu" if device is None else device)
        self.prefetch = check_prefetch(prefetch, self.device)
        self.wait_seconds = 0.0
        options = RowOptions(
            split=split, seq_len=seq_len, shuffle=self.shuffle, seed=seed, layout=layout, eot_id=eot_id, span=span,
            cache=None if cache is None else Path(cache), cache_bytes=cache_bytes, revision=revision, verify=verify,
        )  # fmt: skip
        self._line = RowLine(source, options)
        self.manifest = self._line.sources[0].manifest
        self._cut = Cut(batch_size=batch_size, world_size=world_size)
        self._stride = self._cut.global_batch
        self._check_fills_a_batch()
        form = BatchForm(packed=layout == "packed", documents=documents, ignore_index=ignore_index)
        if not form.plain:
            form = replace(form, eot_id=self._line.sources[0].required_eot())
        tokenizer = self.manifest.tokenizer
        check_ignore_index(ignore_index, eot_id=form.eot_id, vocab_size=tokenizer.vocab_size if tokenizer else 0)
        self.ledger = None if ledger is None else Path(ledger)
        self._ledger = None if self.ledger is None else LedgerWriter(self.ledger, self._line.identity, self._cut, rank)
        reader = BatchReader(self._line, self._cut, rank=rank, seq_len=seq_len, documents=documents)
        self._feed: HostFeed | DeviceFeed = HostFeed(reader, self._ledger, self.device, form)
        if self.prefetch:
            self._feed = DeviceFeed(self._feed, stride=self._stride, device=self.device, depth=self.prefetch)
        self._position = 0
        self._lane: Lane | None = None  # this process's part of the epoch, in a DataLoader worker
        self._lane_loaded = False
        self._closed = False

    @classmethod
    def from_env(
        cls,
        source: Sources,
        *,
        batch_size: int,
        seq_len: int,
        split: str = "train",
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device | None = None,
        prefetch: int | None = None,
        verify: bool = False,
        ledger: str | os.PathLike[str] | None = None,
        layout: str = "contiguous",
        documents: bool = False,
        ignore_index: int | None = None,
        eot_id: int | None = None,
        span: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        revision: str | None = None,
    ) -> ShardLoader:
        """A loader for this process's rank: of torch.distributed where it is initialized, else of torchrun's variables.

        A process that nobody launched is rank 0 of 1. Raises `UsageError` where only half of RANK and WORLD_SIZE is
        set, or where another launcher started several processes without them.
        """
        rank, world_size = rank_of_process()
        return cls(
            source, batch_size=batch_size, seq_len=seq_len, split=split, rank=rank, world_size=world_size,
            shuffle=shuffle, seed=seed, device=device, prefetch=prefetch, verify=verify, ledger=ledger, layout=layout,
            documents=documents, ignore_index=ignore_index, eot_id=eot_id, span=span, cache=cache,
            cache_bytes=cache_bytes, revision=revision,
        )  # fmt: skip

    @property
    def windows_per_epoch(self) -> int:
        """Windows (rows) of the split, each seen once an epoch; of a mixture those of all its sources together."""
        return self._line.n_rows

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; the remainder of `windows_per_epoch` is carried into the next one."""
        return self._line.n_rows // self._cut.global_batch

    @property
    def remainder_windows(self) -> int:
        """Windows of an epoch beyond its whole global batches: carried, with the next epoch's first, into one more."""
        return self._line.n_rows % self._cut.global_batch

    @property
    def epoch(self) -> int:
        """The epoch, from 0, in which the next batch begins."""
        return self._position // self._line.n_rows

    @property
    def step(self) -> int:
        """Number of the next global batch, from 0: how many this run, resumed ones included, has given."""
        return self._cut.step(self._position)

    def stats(self) -> LayoutStats:
        """What the layout makes of the split: shares of rows' slots in use and padded, of tokens left out."""
        return self._line.stats()

    def next_batch(self) -> Batch:
        """The next `(inputs, targets)`: int64, each `(batch_size, seq_len)`, on `device`; epochs follow without end.

        With `documents` a third element says where they lie (`shardkit.loader.feed.Documents`).

        Both are contiguous, and fresh at every call. On the CPU without a shuffle they overlap in memory (as those of
        build-nanogpt do): clone one before writing into it. Raises `ShardError` if a shard is gone or was replaced.
        """
        began = perf_counter()
        if self._closed:
            raise UsageError("this loader is closed: make a new one")
        batch, share = self._feed.take(self._position)
        if self._ledger is not None:
            self._ledger.record(self._position, share)
        self._position += self._stride
        self.wait_seconds += perf_counter() - began
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, up to and with the batch that closes it; the next `for` goes on from there."""
        return self._rest_of_epoch() if get_worker_info() is None else self._begin_lane()

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch that begins in `epoch`, as a run from the start would come to it."""
        if not is_count(epoch):
            raise UsageError(f"epoch is {epoch!r}: expected a whole number of at least 0")
        self._cut = Cut(batch_size=self.batch_size, world_size=self.world_size)
        self._move(self._cut.window(self._cut.step(epoch * self._line.n_rows)))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: small, JSON-able, the same on every rank. Counts windows, so any cut may go on from it."""
        place = Position(position=self._position, step=self.step, lane=self._lane)
        return make_state(self._line.identity, place, n_windows=self._line.n_rows)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state, in O(1), under this loader's own `batch_size` and `world_size`.

        Any cut may take up any state. Raises `StateError`, and changes nothing, where the state is of another version,
        dataset, split, seq_len, shuffle or seed: going on would silently change the data.
        """
        place = read_state(self._line.identity, state_dict, n_windows=self._line.n_rows)
        worker, lane = get_worker_info(), place.lane
        if lane is not None and (worker is None or (worker.id, worker.num_workers) != (lane.worker, lane.workers)):
            raise StateError(
                f"the state is of DataLoader worker {lane.worker} of {lane.workers}: load it through a "
                f"StatefulDataLoader with num_workers={lane.workers}"
            )
        self._cut = self._cut.resumed(step=place.step, window=place.position)
        self._move(place.position)
        self._lane, self._lane_loaded = lane, lane is not None

    def locate(self, *, step: int, rank: int | None = None, row: int = 0) -> Location:
        """Where the first token of `row` of batch `step` on `rank` (this one unless given) lies and came from.

        Reads the shard up to there, to count its documents; waits for it if it is not here. Raises `UsageError` for a
        step, rank or row that is not, or a step from before a resume under another cut, of which this loader cannot
        know the batches.
        """
        rank = self.rank if rank is None else rank
        if not is_count(step) or step < self._cut.origin_step:
            raise UsageError(
                f"step is {step!r}: expected at least {self._cut.origin_step}, where this run began, or was resumed "
                "with another cut; ask a loader with the batch_size and world_size of that time"
            )
        if not (is_count(rank) and rank < self.world_size and is_count(row) and row < self.batch_size):
            raise UsageError(
                f"rank is {rank!r}, row {row!r}: expected 0 to {self.world_size - 1} and 0 to {self.batch_size - 1}"
            )
        position = self._cut.positions(self._cut.window(step), steps=1, rank=rank)[:, row]
        numbers, rows = self._line.places(position)
        source = self._line.sources[int(numbers[0])]
        return source.locate(source.layout.pieces(int(rows[0]))[0][0])

    def close(self) -> None:
        """Stop the thread, unmap every shard, close the ledger. A closed loader gives no more batches."""
        self._closed = True
        self._feed.close()
        self._line.close()
        if self._ledger is not None:
            self._ledger.close()

    def __enter__(self) -> ShardLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        self._check_workable()
        return self.__dict__

    def _check_fills_a_batch(self) -> None:
        if self._line.n_rows < self._stride:
            tokens = sum(source.stream.tokens for source in self._line.sources)
            raise UsageError(
                f"split {self.split!r} of {self._line.sources[0].name} has {tokens:,} tokens: {self._line.n_rows:,} "
                f"windows of {self.seq_len:,}; a global batch takes {self.batch_size} x {self.world_size} = "
                f"{self._stride:,}: lower batch_size, seq_len or world_size, or use more data"
            )

    def _move(self, position: int) -> None:
        self._position, self._lane, self._lane_loaded = position, None, False
        if self._ledger is not None:
            self._ledger.close()

    def _epoch_end(self) -> int:
        """The end of the batch that holds the current epoch's last window."""
        left = self._line.n_rows - self._position % self._line.n_rows
        return self._position - -left // self._stride * self._stride

    def _rest_of_epoch(self) -> Iterator[Batch]:
        end = self._epoch_end()
        while self._position < end:
            yield self.next_batch()

    def _begin_lane(self) -> Iterator[Batch]:
        """Begin this DataLoader worker's part of an epoch: every `workers`-th batch, as DataLoader asks in turn."""
        self._check_workable()
        worker = get_worker_info()
        if worker is not None and not self._lane_loaded:
            if self._lane is not None:  # a worker that lives on: its last epoch was given out
                self._position = self._epoch_end()
            self._lane = Lane(worker=worker.id, workers=worker.num_workers)
        self._lane_loaded = False
        return self._rest_of_lane()

    def _rest_of_lane(self) -> Iterator[Batch]:
        end = self._epoch_end()
        while (lane := self._lane) is not None:
            position = self._position + (lane.worker + lane.given * lane.workers) * self._stride
            if position >= end:
                return
            self._lane = Lane(worker=lane.worker, workers=lane.workers, given=lane.given + 1)
            yield self._feed.take(position)[0]

    def _check_workable(self) -> None:
        if self.device.type != "cpu" or self._ledger is not None:
            raise UsageError(
                "a DataLoader worker or a copy in another process cannot feed a GPU or write the ledger: use the "
                "loader itself, or num_workers=0"
            )
