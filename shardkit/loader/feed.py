"""From rows of tokens to tensors on a device: at once, or read ahead in a thread, for a GPU.

Read ahead, the shards' own 16 (or 32) bits a token go over the bus, from pinned memory, and the GPU widens them. The
thread fills a slot, starts its copy on a stream of its own and goes on; the consumer's stream, never the host, waits
for the copy's event. Reading ahead runs on the CPU too, without streams, for tests: there it only costs time.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shardkit.batches.checks import is_count
from shardkit.batches.reader import BatchReader
from shardkit.dataset.token_stream import Tokens
from shardkit.errors import UsageError
from shardkit.loader.batch import Batch, DocumentBatch, batch_of, tensors_of
from shardkit.remote.threads import TransferThreads
from shardkit.waits import ended

_GPU_PREFETCH = 2
_INT64 = np.dtype(np.int64)
_SLOTS = 2  # one is read into while the other is on the bus
_new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream  # torch leaves it untyped


def device_of(device: str | torch.device | None) -> torch.device:
    """The device that a user named; the CPU for None. Raises `UsageError` for none that torch knows."""
    try:
        return torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device is {device!r:.80}: expected 'cpu', 'cuda', 'cuda:0' or another of torch's") from None


def check_prefetch(prefetch: int | None, device: torch.device) -> int:
    """How many batches to read ahead: as asked, else 2 for a GPU and none elsewhere. `UsageError` if it cannot be."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {str(device)!r}, but torch sees no GPU here: use device='cpu'")
    if prefetch is None:
        return _GPU_PREFETCH if device.type == "cuda" else 0
    if not is_count(prefetch) or (prefetch and device.type != "cuda"):
        raise UsageError(
            f"prefetch is {prefetch!r} on {device.type!r}: expected 0, or on 'cuda' how many to read ahead"
        )
    return prefetch


class _Loaded(NamedTuple):
    batch: Batch | DocumentBatch
    copied: torch.cuda.Event | None = None  # when it is on the GPU


@dataclass(slots=True)
class _Slot:
    pinned: Tensor  # the bits of uint16 as int16 (of uint32 as int32): torch has few operators for unsigned types
    rows: Tokens  # the same memory, unsigned
    copied: torch.cuda.Event | None = None


class Feed:
    """Gives the batch at any position as tensors on `device`; with `prefetch`, the next ones are read in a thread."""

    def __init__(self, reader: BatchReader, *, device: torch.device, prefetch: int = 0) -> None:
        self._reader = reader
        self._on_cpu = device.type == "cpu"
        self._shape = reader.shape
        rows_shape = reader.shape[0], reader.shape[1] + 1
        self._rows = np.empty(rows_shape, reader.dtype)
        self._ahead: _ReadAhead | None = None
        if prefetch:
            on_gpu = device.type == "cuda"
            if str(device) == "cuda":  # the thread has a current device of its own
                device = torch.device("cuda", torch.cuda.current_device())
            self._stream = _new_stream(device) if on_gpu else None
            self._mask = int(np.iinfo(reader.dtype).max)
            signed = torch.int16 if reader.dtype.itemsize == 2 else torch.int32
            tensors = [torch.empty(rows_shape, dtype=signed, pin_memory=on_gpu) for _ in range(_SLOTS)]
            self._slots = cycle([_Slot(pinned=one, rows=one.numpy().view(reader.dtype)) for one in tensors])
            self._ahead = _ReadAhead(stride=reader.stride, depth=prefetch)
        self._device = device

    def batch_at(self, position: int) -> Batch | DocumentBatch:
        """The batch at `position`, ready for the current stream. What reading it raises is raised here."""
        if self._ahead is None:
            return self._read(position)
        load = self._load_plain if self._reader.form.plain else self._load_arrays
        batch, copied = self._ahead.result_of(load, position)
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in tensors_of(batch):  # made on the feed's stream: free again only after the consumer's work
                tensor.record_stream(stream)
        return batch

    def close(self) -> None:
        """Stop the thread, if there is one, and wait for it."""
        if self._ahead is not None:
            self._ahead.close()

    def _read(self, position: int) -> Batch | DocumentBatch:
        run = self._reader.run_at(position)
        if run is not None:  # read at once, and nothing else that costs: a small batch takes microseconds
            inputs, targets = run[:-1].astype(_INT64), run[1:].astype(_INT64)
            tensors = [torch.from_numpy(inputs.reshape(self._shape)), torch.from_numpy(targets.reshape(self._shape))]
        else:
            tensors = self._read_arrays(position)
        if not self._on_cpu:
            tensors = [tensor.to(self._device) for tensor in tensors]
        return batch_of(tensors)

    def _read_arrays(self, position: int) -> list[Tensor]:
        self._reader.read_rows(position, self._rows)
        return [torch.from_numpy(array) for array in self._reader.arrays_of(position, self._rows)]

    def _load_plain(self, position: int) -> _Loaded:
        """In the thread: a batch of rows as they are, through a slot, widened on the device."""
        slot = next(self._slots)
        if slot.copied is not None:
            slot.copied.synchronize()  # the slot's last copy has left it
        self._reader.read_rows(position, slot.rows)
        if self._stream is None:
            return _Loaded(self._widen(slot.pinned))
        with torch.cuda.stream(self._stream):
            batch = self._widen(slot.pinned.to(self._device, non_blocking=True))
            slot.copied = self._stream.record_event()
        return _Loaded(batch, slot.copied)

    def _load_arrays(self, position: int) -> _Loaded:
        """In the thread: a batch that is made on the host. Torch keeps its pinned memory until the copy is over."""
        tensors = self._read_arrays(position)
        if self._stream is None:
            return _Loaded(batch_of(tensors))
        with torch.cuda.stream(self._stream):
            sent = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            return _Loaded(batch_of(sent), self._stream.record_event())

    def _widen(self, rows: Tensor) -> Batch:
        """Inputs and targets of `rows`: each a copy of its own, of one row too, which `contiguous()` would not make."""
        inputs, targets = rows[:, :-1].to(torch.int64), rows[:, 1:].to(torch.int64)
        return Batch(inputs.bitwise_and_(self._mask), targets.bitwise_and_(self._mask))


_threads: weakref.WeakSet[TransferThreads] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """At the program's end wait for what is being read: no copy to a GPU may be cut off. A thread that waits for a
    shard from a remote gives up then (`remote/streaming/cache.py`)."""
    for thread in list(_threads):
        thread.close()


class _ReadAhead:
    """Calls a function for a position and, in a thread of its own, for the `depth` next ones, each `stride` further.

    It keeps no reference to the function, which is a method of its owner: a forgotten feed would live on in a circle,
    and its thread with it.
    """

    def __init__(self, *, stride: int, depth: int) -> None:
        self._stride = stride
        self._depth = depth
        self._thread = TransferThreads(1, "shardkit-feed")
        _threads.add(self._thread)
        weakref.finalize(self, self._thread.close, wait=False)
        self._pending: deque[tuple[int, Future[_Loaded]]] = deque()
        self._process = os.getpid()

    def result_of(self, load: Callable[[int], _Loaded], position: int) -> _Loaded:
        """What `load` gives or raises for `position`. Another position than the next one starts anew from there."""
        if self._process != os.getpid():
            raise UsageError("this loader was forked with its thread running: make a new one in the child process")
        if not self._pending or self._pending[0][0] != position:
            self._drop()
        following = self._pending[-1][0] + self._stride if self._pending else position
        while len(self._pending) < self._depth + 1:
            self._pending.append((following, self._thread.submit(partial(load, following))))
            following += self._stride
        _, future = self._pending.popleft()
        ended([future])
        if future.exception() is not None:  # what was read ahead of it may have failed alike: read it again
            self._drop()
        return future.result()

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._drop()
        self._thread.close()

    def _drop(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
