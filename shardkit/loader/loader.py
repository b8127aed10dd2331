"""`ShardLoader`: batches for a training loop, put together from the parts in `batches/` and beside this module.

Which windows a batch holds is decided in `batches/order.py`, where a run is in `batches/run_position.py`; `feed.py`
makes tensors on the device, `rank.py` says which rank this is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset

from shardkit.arguments import as_int, user_path
from shardkit.batches.checks import check_count
from shardkit.batches.layouts import LayoutStats
from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm
from shardkit.batches.row_sequence import RowSequence, Sources
from shardkit.batches.rows import RowOptions
from shardkit.dataset.documents import Location
from shardkit.errors import UsageError
from shardkit.loader.agreement import open_alike
from shardkit.loader.batch import BatchType, check_format, dict_of
from shardkit.loader.feed import check_prefetch, device_of
from shardkit.loader.frameworks import refuse_second_sharing, refuse_workers, warn_of_batching
from shardkit.loader.rank import rank_of_group, rank_of_process
from shardkit.loader.share import RankShare, ShareOptions
from shardkit.loader.shown import ShownInWords
from shardkit.loader.signature import with_options_of


class ShardLoader(ShownInWords, IterableDataset[BatchType]):
    """Batches of one split for one rank: every window once an epoch, at any world size, resumable at any step.

    >>> from shardkit import ShardLoader
    >>> loader = ShardLoader("out", batch_size=4, seq_len=256)
    >>> inputs, targets = loader.next_batch()
    >>> inputs.shape, targets.dtype
    (torch.Size([4, 256]), torch.int64)
    >>> bool((inputs[:, 1:] == targets[:, :-1]).all())
    True
    >>> state = loader.state_dict()  # any later loader goes on from here: loader.load_state_dict(state)
    >>> state["epoch"], state["window"], state["step"]
    (0, 4, 1)

    `source` is a dataset folder, a folder of bare `.npy` shards, a `Manifest` that was read from a folder, a remote
    (`user/name[/folder]`, `hf://datasets/...`, `hf://buckets/...`, `s3://...`, `file://...`), or a list of `(source,
    weight)` to mix. `shuffle` mixes the rows anew each epoch by `(seed, epoch)`. All ranks must be made alike but for
    `rank`. Nothing is dropped: the windows after an epoch's last whole global batch come first in the next one.

    `layout` says what a row of `seq_len` tokens is: `contiguous` windows across shard ends; `document`, windows that
    begin at a document's start (what a window's end cuts off a document is left out); `packed`, whole documents packed
    to fill rows (longer ones split, rests padded, the padding's targets -100 or `ignore_index`).
    With `documents`, batches are `(inputs, targets, documents)`, for attention within documents; to a type checker such
    a loader is a `ShardLoader[DocumentBatch]`. With `ignore_index`, each target that is the first token of the next
    document (EOT) is replaced by it. Bare shards do not say which id EOT is: give `eot_id`.

    From a remote, the first batch comes as soon as its shards are here and verified. One process of the node fetches
    for all its ranks, into the folder `cache` on the node (default: `~/.cache/shardkit`, or $SHARDKIT_CACHE). A rank
    whose next shard is late waits in `next_batch`, and `wait_seconds` counts it; if the shard cannot be fetched, the
    reason is raised. `cache_bytes` bounds the folder: shards that the epoch no longer needs are deleted. The shuffle
    mixes within `span` shards, two spans being here at a time (default: 4, or fewer to fit `cache_bytes`); a local
    folder read with the same `span` gives the same batches. `revision` pins a Hub repo.

    `verify=True` hashes every shard of the split at once; without it sizes are checked at once, each header when its
    shard is first read. With `device="cuda"`, `prefetch` batches (default: 2) are read ahead and wait on the GPU.
    `ledger` is a folder to which each rank writes hashes of what it was given (see `shardkit.merge_ledger`).

    Give a framework the loader as it is (docs/frameworks.md): it is this rank's share already, and DataLoader workers
    are refused. With `format="dict"` a batch is what a `transformers` model takes (`loader/batch.py`).

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
        format: str = "tuple",
    ) -> None:
        super().__init__()
        batch_size, seq_len, rank, world_size, seed = map(as_int, (batch_size, seq_len, rank, world_size, seed))
        Cut(batch_size=batch_size, world_size=world_size)  # raises for what cannot be
        check_count("rank", rank, least=0)
        if rank >= world_size:
            raise UsageError(f"rank is {rank}, world_size {world_size}: ranks go from 0 to {world_size - 1}")
        self.batch_size, self.seq_len, self.split = batch_size, seq_len, split
        self.rank, self.world_size, self.shuffle, self.seed = rank, world_size, bool(shuffle), seed
        self.device = device_of(device)
        self.prefetch = check_prefetch(as_int(prefetch), self.device)
        self.ledger = None if ledger is None else user_path(ledger)
        self.wait_seconds, self.format = 0.0, check_format(format)
        options = RowOptions(
            split=split,
            seq_len=seq_len,
            shuffle=self.shuffle,
            seed=seed,
            layout=layout,
            eot_id=as_int(eot_id),
            span=as_int(span),
            cache=None if cache is None else user_path(cache),
            cache_bytes=as_int(cache_bytes),
            revision=revision,
            verify=verify,
        )
        form = BatchForm(packed=layout == "packed", documents=documents, ignore_index=as_int(ignore_index))
        self._options = ShareOptions(
            batch_size=batch_size, form=form, device=self.device, prefetch=self.prefetch, ledger=self.ledger
        )
        self._sequence, self._closed, self._rank_may_change = RowSequence(source, options), False, False
        try:
            self._known_share = RankShare(self._sequence, self._options, rank, world_size)
        except BaseException:
            self._sequence.close()
            raise
        self.manifest = self._sequence.sources[0].manifest

    @classmethod
    @with_options_of(__init__, but=("rank", "world_size"))
    def from_env(cls, source: Sources, **options: Any) -> ShardLoader[BatchType]:
        """A loader for this process's rank, with the options of `ShardLoader` but `rank` and `world_size`.

        The rank is that of torch.distributed where it is initialized, else of torchrun's variables; a process that
        nobody launched is rank 0 of 1. Where it is initialized later (by Lightning's `fit`, say), the loader becomes
        that rank's at its next use. Raises `UsageError` where only half of RANK and WORLD_SIZE is set, or where another
        launcher started several processes without them.

        Where torch.distributed is initialized, this is a collective: the ranks compare what they are about to read, and
        one that does not call it leaves the others waiting until the process group's time-out. All raise the same
        `StateError` where a rank has another dataset, revision or option, or cannot open its data.
        """
        rank, world_size = rank_of_process()
        device = device_of(options.get("device"))
        loader = open_alike(lambda: cls(source, rank=rank, world_size=world_size, **options), cls._describe, device)
        loader._rank_may_change = rank_of_group() is None
        return loader

    @property
    def windows_per_epoch(self) -> int:
        """Windows (rows) of the split, each seen once an epoch; of a mixture those of all its sources together."""
        return self._sequence.n_rows

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the remainder of `windows_per_epoch` is carried into the next one."""
        return self._share.position.steps_per_epoch

    @property
    def remainder_windows(self) -> int:
        """Windows left over after an epoch's last global batch: the next epoch begins with them."""
        return self._sequence.n_rows % self._share.stride

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next batch is in: `steps_per_epoch` batches each."""
        return self._share.position.epoch

    @property
    def step(self) -> int:
        """Number of the next global batch, from 0: how many this run, resumed ones included, has given."""
        return self._share.position.step

    def stats(self) -> LayoutStats:
        """What the layout makes of the split: shares of rows' slots in use and padded, of tokens left out."""
        return self._sequence.stats()

    def next_batch(self) -> BatchType:
        """The next `(inputs, targets)`: int64, each `(batch_size, seq_len)`, on `device`; epochs follow without end.

        With `documents` a third element says where they lie (`shardkit.loader.batch.Documents`). All tensors are
        contiguous, fresh at every call, and each in memory of its own. Waits for a shard that has not arrived yet.
        Raises `ShardError` if a shard is gone or was replaced, `HubError` if it cannot be fetched.
        """
        began = perf_counter()
        if self._closed:
            raise UsageError("this loader is closed: make a new one")
        share = self._share
        position = share.position.next
        batch = share.feed.batch_at(position)
        if share.ledger is not None:
            share.ledger.record(position)
        share.position.next = position + share.stride
        self.wait_seconds += perf_counter() - began
        return cast(BatchType, batch if self.format == "tuple" else dict_of(batch))

    def __iter__(self) -> Iterator[BatchType]:
        """The rest of the current epoch; the next `for` goes on from there, wherever this one was left."""
        refuse_workers()
        warn_of_batching(sys._getframe(1))
        end = self._share.position.epoch_end()
        while self._share.position.next < end:
            yield self.next_batch()

    def __len__(self) -> int:
        """`steps_per_epoch`, for frameworks that ask: how many batches a `for` over a whole epoch gives."""
        return self.steps_per_epoch

    @property
    def sampler(self) -> ShardLoader[BatchType]:
        """The loader itself: Lightning calls `sampler.set_epoch` when an epoch begins."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of `epoch`, as a run from the start would come to it.

        If the run is in that epoch already, however far, nothing changes: so call it before every epoch's loop, also
        after a resume. Raises `UsageError` if accelerate calls it, which would divide this rank's batches again.
        """
        refuse_second_sharing(sys._getframe(1).f_globals.get("__name__", ""))
        self._share.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: small, JSON-able, the same on every rank. Counts windows, so any cut may go on from it."""
        return self._share.position.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state, in O(1), under this loader's own `batch_size` and `world_size`.

        Any cut may go on from any state. Raises `StateError`, and changes nothing, where the state is of another
        version, dataset, split, seq_len, shuffle or seed: going on would silently change the data.
        """
        self._share.load_state_dict(state_dict)

    def locate(self, *, step: int, rank: int | None = None, row: int = 0) -> Location:
        """Where the first token of `row` of batch `step` on `rank` (this one unless given) lies and came from.

        Reads the shard up to there, to count its documents; waits for it if it is not here. Raises `UsageError` for a
        step, rank or row that does not exist, or a step from before a resume under another cut.
        """
        rank = self.rank if rank is None else rank
        return self._sequence.locate(self._share.position.position_at(step=step, rank=rank, row=row))

    def close(self) -> None:
        """Stop the thread, unmap every shard, close the ledger. A closed loader gives no more batches."""
        self._closed = True
        self._known_share.close()
        self._sequence.close()

    def __enter__(self) -> ShardLoader[BatchType]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        if self.device.type != "cpu" or self.ledger is not None:
            raise UsageError("a copy in another process cannot feed a GPU or write the ledger: make a loader there")
        return self.__dict__

    @property
    def _share(self) -> RankShare:
        """This rank's share of the rows, where the run is: another one once torch.distributed says another rank."""
        if self._rank_may_change and (found := rank_of_group()) is not None:
            self._rank_may_change = False
            self.rank, self.world_size = found
            self._known_share = self._known_share.of_rank(*found)
        return self._known_share

    def _describe(self) -> dict[str, Any]:
        """What all ranks must have in common, by name."""
        return {**self._sequence.describe(), "batch_size": self.batch_size, "form": str(self._options.form)}
