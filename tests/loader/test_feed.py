"""Tensors of a batch: the same at once and read ahead (on the CPU, without streams), each in memory of its own."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_data import EOT, document_stream, write_stream
from loader_data import write_shards

from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.row_sequence import RowSequence
from shardkit.batches.rows import RowOptions
from shardkit.errors import ShardError, UsageError
from shardkit.loader.batch import Batch, DocumentBatch, tensors_of
from shardkit.loader.feed import Feed, check_prefetch

CPU = torch.device("cpu")


def open_feed(
    folder: Path, *, prefetch: int = 0, shuffle: bool = True, batch_size: int = 3, device: torch.device = CPU
) -> Feed:
    """A feed of rank 1 of 2, of windows of 4 tokens."""
    sequence = RowSequence(folder, RowOptions(split="train", seq_len=4, shuffle=shuffle, seed=0))
    reader = BatchReader(sequence, Cut(batch_size=batch_size, world_size=2), rank=1)
    return Feed(reader, device=device, prefetch=prefetch)


def threads() -> list[threading.Thread]:
    """The feed threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("shardkit")]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_read_ahead_gives_the_same_batches_wherever_it_is_sent(prefetch: int, dtype: str, tmp_path: Path) -> None:
    top = int(np.iinfo(dtype).max)
    np.save(tmp_path / "x_train_000000.npy", np.arange(top - 99, top + 1).astype(dtype))  # ids above the signed range
    np.save(tmp_path / "x_train_000001.npy", np.arange(100).astype(dtype))
    ahead, here = open_feed(tmp_path, prefetch=prefetch), open_feed(tmp_path)
    kept = []
    for position in [*range(0, 300, 6), 6, 12, 600, 606, 612, 0]:
        batch = ahead.batch_at(position)
        assert isinstance(batch, Batch)
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64
        assert batch.inputs.is_contiguous()
        assert batch.targets.is_contiguous()
        kept.append((batch, here.batch_at(position)))
    for batch, expected in kept:  # later reads have not touched earlier batches
        assert torch.equal(batch.inputs, expected.inputs)
        assert torch.equal(batch.targets, expected.targets)
    assert threads()
    ahead.close()
    assert not threads()


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_is_written_into_targets_does_not_change_inputs(
    prefetch: int, shuffle: bool, batch_size: int, tmp_path: Path
) -> None:
    write_shards(tmp_path, [100, 100])
    feed, untouched = (open_feed(tmp_path, prefetch=prefetch, shuffle=shuffle, batch_size=batch_size) for _ in range(2))
    for position in range(0, 60, 2 * batch_size):
        inputs, targets = feed.batch_at(position)
        expected = untouched.batch_at(position)
        targets.fill_(-100)
        assert torch.equal(inputs, expected.inputs)
        inputs.fill_(-1)
        assert (targets == -100).all()
    feed.close()
    untouched.close()


def test_what_reading_raises_reaches_the_consumer_and_can_be_tried_again(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    ahead = open_feed(tmp_path, prefetch=2, shuffle=False)
    first = ahead.batch_at(0).inputs
    (tmp_path / "x_train_000001.npy").rename(tmp_path / "away.npy")
    with pytest.raises(ShardError, match="is missing: fetch or make it again"):
        list(map(ahead.batch_at, range(6, 60, 6)))
    (tmp_path / "away.npy").rename(tmp_path / "x_train_000001.npy")
    ahead.batch_at(30)
    assert torch.equal(ahead.batch_at(0).inputs, first)
    ahead.close()


def test_a_feed_that_is_forgotten_leaves_no_thread(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    ahead = open_feed(tmp_path, prefetch=2)
    ahead.batch_at(0)
    alive = threads()
    assert alive
    del ahead
    gc.collect()
    for thread in alive:
        thread.join(timeout=60)
    assert not threads()


def test_a_forked_child_is_told_rather_than_left_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [100, 100])
    ahead = open_feed(tmp_path, prefetch=2)
    ahead.batch_at(0)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="forked with its thread running"):
        ahead.batch_at(6)
    monkeypatch.undo()
    ahead.close()


def test_reading_ahead_is_for_a_gpu_that_is_there() -> None:
    assert check_prefetch(None, CPU) == check_prefetch(0, CPU) == 0
    for wrong in (1, -1, 1.5, True):
        with pytest.raises(UsageError, match="prefetch is"):
            check_prefetch(wrong, CPU)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device is 'cuda:0', but torch sees no GPU here"):
            check_prefetch(None, torch.device("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_gpu_gets_the_same_batches(batch_size: int, tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    ahead = open_feed(tmp_path, prefetch=2, batch_size=batch_size, device=torch.device("cuda"))
    here = open_feed(tmp_path, batch_size=batch_size)
    for position in range(0, 600, 2 * batch_size):
        inputs, targets = ahead.batch_at(position)
        expected = here.batch_at(position)
        assert torch.equal(targets.cpu(), expected.targets)
        targets.fill_(-100)
        assert torch.equal(inputs.cpu(), expected.inputs)
    ahead.close()


@pytest.mark.parametrize(
    "form", [BatchForm(packed=True), BatchForm(packed=True, documents=True), BatchForm(ignore_index=-7)]
)
def test_read_ahead_gives_the_same_documents(form: BatchForm, tmp_path: Path) -> None:
    write_stream(tmp_path, document_stream([3, 30, 0, 5, 2, 11, 8, 1] * 4), [100, 170])
    layout = "packed" if form.packed else "contiguous"
    options = RowOptions(split="train", seq_len=12, shuffle=True, seed=0, layout=layout, eot_id=EOT)

    def feed(prefetch: int) -> Feed:
        reader = BatchReader(RowSequence(tmp_path, options), Cut(batch_size=3, world_size=1), form=form)
        return Feed(reader, device=CPU, prefetch=prefetch)

    ahead, here = feed(2), feed(0)
    kept = []
    for position in (0, 3, 6, 9, 3, 6):
        batch, expected = ahead.batch_at(position), here.batch_at(position)
        assert isinstance(batch, DocumentBatch if form.documents else Batch)
        kept.append((batch, expected))
    for batch, expected in kept:  # none was overwritten by a later one
        for one, two in zip(tensors_of(batch), tensors_of(expected), strict=True):
            assert torch.equal(one, two)
    for batch in (kept[-1][0], kept[-1][1]):  # nor does one tensor lie in the memory of another
        tensors = tensors_of(batch)
        expected_tensors = [tensor.clone() for tensor in tensors]
        for number, tensor in enumerate(tensors):
            tensor.fill_(99)
            for other, expected_tensor in zip(tensors[number + 1 :], expected_tensors[number + 1 :], strict=True):
                assert torch.equal(other, expected_tensor)
    ahead.close()
