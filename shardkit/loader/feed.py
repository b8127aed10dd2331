"""From rows of tokens to tensors: `HostFeed` here and now, `DeviceFeed` read ahead in a thread, for a GPU.

Both give the batch at any position and keep no place. Over the bus go the shards' own 16 (or 32) bits a token, from
pinned memory; the GPU widens them. The thread fills a slot, starts its copy on a stream of its own and goes on; the
consumer's stream, never the host, waits for the copy's event. `DeviceFeed` runs on the CPU too, without streams, for
tests: there it only costs time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shardkit.batches.ledger import LedgerWriter
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.state import is_count
from shardkit.dataset.token_stream import Tokens
from shardkit.errors import UsageError

Batch = tuple[Any, ...]  # inputs and targets, and `Documents` where they are asked for
_GPU_PREFETCH = 2
_INT64 = np.dtype(np.int64)
_SLOTS = 2  # one is read into while the other is on the bus
_new_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream  # torch leaves it untyped


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


def check_ignore_index(ignore_index: int | None, *, eot_id: int, vocab_size: int) -> None:
    """Raise `UsageError` for what is no int64, or the id of a token that is a target of its own."""
    if ignore_index is None:
        return
    if not isinstance(ignore_index, int) or isinstance(ignore_index, bool) or abs(ignore_index) >= 1 << 63:
        raise UsageError(f"ignore_index is {ignore_index!r}: expected a whole number, as -100")
    if 0 <= ignore_index < vocab_size and ignore_index != eot_id:
        raise UsageError(
            f"ignore_index is {ignore_index}, which is a token's id: its targets would be passed over too, give -100"
        )


class Documents(NamedTuple):
    """Where the documents of a batch lie, as variable-length attention wants it: every batch's shapes are the same.

    `cu_seqlens`, int32 `(M + 1,)`: where each segment starts in the rows laid end to end, then `batch_size * seq_len`
    up to the end; a row, a document and padding begin a segment. `max_seqlen` is `seq_len`. `position_ids`, int64
    `(batch_size, seq_len)`, count from 0 in each segment.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor


class HostFeed:
    """Gives batches as they are asked for, in the caller's thread."""

    def __init__(
        self, reader: BatchReader, ledger: LedgerWriter | None, device: torch.device, form: BatchForm | None = None
    ) -> None:
        self._reader = reader
        self.form = form or BatchForm()
        self._ledger = ledger
        self._device = None if device.type == "cpu" else device
        self._shape = reader.cut.batch_size, reader.seq_len
        self.rows = np.empty((reader.cut.batch_size, reader.seq_len + 1), reader.line.dtype)

    def fill(self, position: int, rows: Tokens) -> int:
        """Read the batch at `position` into `rows`, `(batch_size, seq_len + 1)`; returns its share for the ledger."""
        self._reader.rows(position, rows)
        return 0 if self._ledger is None else self._ledger.share(position, rows)

    def take(self, position: int) -> tuple[Batch, int]:
        """The batch at `position`, and its share for the ledger."""
        run = self._reader.run(position) if self._ledger is None and self.form.plain else None
        if run is not None:  # one copy for both, and nothing else that costs: a small batch takes microseconds
            flat = run.astype(_INT64)
            inputs = np.ndarray(self._shape, _INT64, flat)
            targets = np.ndarray(self._shape, _INT64, flat, _INT64.itemsize)
            return self._send([torch.from_numpy(inputs), torch.from_numpy(targets)]), 0
        if not self.form.plain:
            tensors, share = self.arrange(position)
        else:
            share = self.fill(position, self.rows)
            inputs, targets = self.rows[:, :-1].astype(_INT64), self.rows[:, 1:].astype(_INT64)
            tensors = [torch.from_numpy(inputs), torch.from_numpy(targets)]
        return self._send(tensors), share

    def arrange(self, position: int) -> tuple[list[Tensor], int]:
        """The tensors of the batch at `position` in a form that is not plain, and its share for the ledger."""
        share = self.fill(position, self.rows)
        return [torch.from_numpy(array) for array in self._reader.arrange(position, self.rows, self.form)], share

    def _send(self, tensors: list[Tensor]) -> Batch:
        if self._device is not None:
            tensors = [tensor.to(self._device) for tensor in tensors]
        return _batch(tensors)

    def close(self) -> None:
        """Nothing to stop."""


@dataclass(slots=True)
class _Slot:
    pinned: Tensor  # the bits of uint16 as int16 (of uint32 as int32): torch has few operators for unsigned types
    rows: Tokens  # the same memory, unsigned
    copied: torch.cuda.Event | None = None


class DeviceFeed:
    """Gives the batches that `host` reads, on `device`, with `depth` of them read ahead in a thread.

    `stride` is from one position to the next. What reading raises is raised by `take`.
    """

    def __init__(self, host: HostFeed, *, stride: int, device: torch.device, depth: int) -> None:
        self._host = host
        self._stride = stride
        self._depth = depth
        self._mask = int(np.iinfo(host.rows.dtype).max)
        on_gpu = device.type == "cuda"
        if str(device) == "cuda":  # the thread has a current device of its own
            device = torch.device("cuda", torch.cuda.current_device())
        self._device = device
        self._stream = _new_stream(device) if on_gpu else None
        signed = torch.int16 if host.rows.itemsize == 2 else torch.int32
        tensors = [torch.empty(host.rows.shape, dtype=signed, pin_memory=on_gpu) for _ in range(_SLOTS)]
        self._slots = [_Slot(pinned=tensor, rows=tensor.numpy().view(host.rows.dtype)) for tensor in tensors]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shardkit-feed")
        self._ahead: deque[tuple[int, Future[tuple[Batch, torch.cuda.Event | None, int]]]] = deque()
        self._submitted = 0
        self._process = os.getpid()

    def take(self, position: int) -> tuple[Batch, int]:
        """The batch at `position`, ready for the current stream, and its share for the ledger. A jump starts anew."""
        if self._process != os.getpid():
            raise UsageError("this loader was forked with its thread running: make a new one in the child process")
        if not self._ahead or self._ahead[0][0] != position:
            self._drop()
        following = self._ahead[-1][0] + self._stride if self._ahead else position
        while len(self._ahead) < self._depth + 1:
            slot = self._slots[self._submitted % _SLOTS]
            self._ahead.append((following, self._thread.submit(self._load, following, slot)))
            self._submitted += 1
            following += self._stride
        _, future = self._ahead.popleft()
        if future.exception() is not None:  # what was read ahead of it may have failed alike: read it again
            self._drop()
        batch, copied, share = future.result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in _tensors(batch):  # made on the feed's stream: free again only after the consumer's work
                tensor.record_stream(stream)
        return batch, share

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._drop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _drop(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()

    def _load(self, position: int, slot: _Slot) -> tuple[Batch, torch.cuda.Event | None, int]:
        if not self._host.form.plain:
            return self._load_arranged(position)
        if slot.copied is not None:
            slot.copied.synchronize()  # the slot's last copy has left it
        share = self._host.fill(position, slot.rows)
        if self._stream is None:
            return self._widen(slot.pinned), None, share
        with torch.cuda.stream(self._stream):
            batch = self._widen(slot.pinned.to(self._device, non_blocking=True))
            slot.copied = self._stream.record_event()
        return batch, slot.copied, share

    def _load_arranged(self, position: int) -> tuple[Batch, torch.cuda.Event | None, int]:
        """A batch that was made on the host. Torch keeps its pinned memory until the copy is over."""
        tensors, share = self._host.arrange(position)
        if self._stream is None:
            return _batch(tensors), None, share
        with torch.cuda.stream(self._stream):
            sent = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            return _batch(sent), self._stream.record_event(), share

    def _widen(self, rows: Tensor) -> Batch:
        wide = rows.to(torch.int64).bitwise_and_(self._mask)
        return wide[:, :-1].contiguous(), wide[:, 1:].contiguous()


def _batch(tensors: list[Tensor]) -> Batch:
    """`(inputs, targets)`, with `Documents` where there are tensors for them."""
    inputs, targets, *documents = tensors
    if not documents:
        return inputs, targets
    cu_seqlens, positions = documents
    return inputs, targets, Documents(cu_seqlens, inputs.shape[1], positions)


def _tensors(batch: Batch) -> list[Tensor]:
    inputs, targets, *more = batch
    return [inputs, targets, *(tensor for d in more for tensor in (d.cu_seqlens, d.position_ids))]
