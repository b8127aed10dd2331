"""`ShardLoader`: batches for a training loop. Owns the place in the order, the state, the ranks; and torch tensors.

What a batch holds is `order.py`'s to say, where its tokens lie `stream.py`'s, the way to a GPU `loader_feed.py`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from shardkit.batches import BatchReader
from shardkit.errors import StateError, UsageError
from shardkit.manifest import Manifest
from shardkit.order import ORDER_VERSION, Cut, Order, count_windows
from shardkit.stream import open_split

STATE_VERSION = 1

Batch = tuple[Tensor, Tensor]


class ShardLoader(IterableDataset[Batch]):
    """Batches of one split for one rank: every window once an epoch, at any world size, resumable at any step.

        loader = ShardLoader("edu_fineweb10B", batch_size=16, seq_len=1024)
        inputs, targets = loader.next_batch()

    `source` is a dataset folder, a folder of bare `.npy` shards, or a `Manifest` that was read from a folder. Windows
    of `seq_len` tokens run across shard ends; `shuffle` mixes all of them anew each epoch by `(seed, epoch)`. All ranks
    must be made alike but for `rank`. A last part of an epoch that fills no global batch is carried: the batch that
    closes an epoch is filled up from the next one, so nothing is dropped and all ranks run the same steps.

    Sizes and headers are checked at once; `verify=True` also hashes every shard of the split against the manifest.
    Raises `UsageError` for options that cannot work, `ManifestError` and `ShardError` for a bad dataset.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Manifest,
        *,
        batch_size: int,
        seq_len: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        device: str | torch.device | None = None,
        verify: bool = False,
    ) -> None:
        super().__init__()
        _check_int("batch_size", batch_size, 1)
        _check_int("seq_len", seq_len, 1)
        _check_int("world_size", world_size, 1)
        _check_int("rank", rank, 0)
        _check_int("seed", seed, 0)
        if rank >= world_size:
            raise UsageError(f"rank {rank} of world_size {world_size}: ranks go from 0 to {world_size - 1}")
        self.batch_size, self.seq_len, self.split = batch_size, seq_len, split
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.seed = shuffle, seed
        self.device = torch.device("cpu" if device is None else device)
        self.wait_seconds = 0.0
        self.manifest, stream = open_split(source, split, verify=verify)
        self._cut = Cut(batch_size=batch_size, world_size=world_size)
        self._order = Order(n_windows=count_windows(stream.tokens, seq_len), seed=seed, shuffle=shuffle)
        if self._order.n_windows < self._cut.global_batch:
            raise UsageError(
                f"split {split!r} of {stream.directory} holds {stream.tokens:,} tokens, {self._order.n_windows:,} windows "
                f"of {seq_len:,}; one global batch takes {batch_size} x {world_size} = {self._cut.global_batch:,}: lower "
                "batch_size, seq_len or world_size, or use more data"
            )
        self._reader = BatchReader(stream, self._order, self._cut, rank=rank, seq_len=seq_len)
        self._rows = np.empty((batch_size, seq_len + 1), np.dtype(self.manifest.dtype))
        self._fingerprint = self.manifest.fingerprint
        self._window = 0
        self._closed = False

    @property
    def windows_per_epoch(self) -> int:
        """Windows of the split, each seen once an epoch."""
        return self._order.n_windows

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch; the remainder of `windows_per_epoch` is carried into the next one."""
        return self._order.n_windows // self._cut.global_batch

    @property
    def epoch(self) -> int:
        """The epoch, from 0, in which the next batch begins."""
        return self._window // self._order.n_windows

    @property
    def step(self) -> int:
        """Number of the next global batch, from 0: how many this run, resumed ones included, has given."""
        return self._cut.step(self._window)

    def next_batch(self) -> Batch:
        """The next `(inputs, targets)`: int64, each `(batch_size, seq_len)`, on `device`; epochs follow without end.

        Both are contiguous, and fresh at every call. On the CPU without a shuffle they overlap in memory (as those of
        build-nanogpt do): clone one before writing into it. Raises `ShardError` if a shard is gone or was replaced.
        """
        began = perf_counter()
        batch = self._read(self._window)
        self._window += self._cut.global_batch
        self.wait_seconds += perf_counter() - began
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch, up to and with the batch that closes it; the next `for` goes on from there."""
        end = self._pass_end()
        while self._window < end:
            yield self.next_batch()

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch that begins in `epoch`, as a run from the start would come to it."""
        _check_int("epoch", epoch, 0)
        self._cut = self._reader.cut = Cut(batch_size=self.batch_size, world_size=self.world_size)
        self._window = self._cut.window(self._cut.step(epoch * self._order.n_windows))

    def state_dict(self) -> dict[str, Any]:
        """Where the run is: small, JSON-able, the same on every rank. Counts windows, so any cut may go on from it."""
        epoch, window = divmod(self._window, self._order.n_windows)
        return {**self._identity(), "epoch": epoch, "window": window, "step": self.step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state, in O(1), under this loader's own `batch_size` and `world_size`.

        Any cut may take up any state. Raises `StateError`, and changes nothing, where the state is of another version,
        dataset, split, seq_len, shuffle or seed: going on would silently change the data.
        """
        identity = self._identity()
        if not isinstance(state_dict, Mapping) or not {*identity, "epoch", "window", "step"} <= set(state_dict):
            raise StateError(f"not a state of a ShardLoader: {state_dict!r:.200}: give what state_dict() returned")
        for key, value in identity.items():
            if state_dict[key] != value:
                raise StateError(
                    f"the state was saved with {key} {state_dict[key]!r}, this loader has {value!r}: make it as it was "
                    "then, or begin anew without the state"
                )
        epoch, window, step = (state_dict[key] for key in ("epoch", "window", "step"))
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in (epoch, window, step)):
            raise StateError(f"the state has epoch {epoch!r}, window {window!r}, step {step!r}: it is damaged")
        if window >= self._order.n_windows:
            raise StateError(f"the state is at window {window:,} of {self._order.n_windows:,}: it is damaged")
        self._window = epoch * self._order.n_windows + window
        self._cut = self._reader.cut = self._cut.resumed(step=step, window=self._window)

    def close(self) -> None:
        """Unmap every shard. A closed loader gives no more batches."""
        self._closed = True
        self._reader.stream.close()

    def __enter__(self) -> ShardLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a state to mean the same data."""
        return {
            "version": STATE_VERSION,
            "order": ORDER_VERSION,
            "layout": "contiguous",
            "fingerprint": self._fingerprint,
            "split": self.split,
            "seq_len": self.seq_len,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }

    def _pass_end(self) -> int:
        """The end of the batch that holds the current epoch's last window."""
        left = self._order.n_windows - self._window % self._order.n_windows
        return self._window - -left // self._cut.global_batch * self._cut.global_batch

    def _read(self, position: int) -> Batch:
        if self._closed:
            raise UsageError("this loader is closed: make a new one")
        run = self._reader.run(position)
        if run is not None:
            flat = run.astype(np.int64)
            shape = self.batch_size, self.seq_len
            inputs, targets = flat[:-1].reshape(shape), flat[1:].reshape(shape)
        else:
            self._reader.rows(position, self._rows)
            inputs, targets = self._rows[:, :-1].astype(np.int64), self._rows[:, 1:].astype(np.int64)
        batch = torch.from_numpy(inputs), torch.from_numpy(targets)
        return batch if self.device.type == "cpu" else (batch[0].to(self.device), batch[1].to(self.device))


def _check_int(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}: expected a whole number of at least {least}")
