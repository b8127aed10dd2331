"""The read-ahead feed, on the CPU (no streams there): the same batches, errors handed on, no thread left behind."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layout_data import EOT, document_stream, write_stream
from loader_data import write_shards

from shardkit.batches.mixture import RowLine
from shardkit.batches.order import Cut
from shardkit.batches.reader import BatchForm, BatchReader
from shardkit.batches.rows import RowOptions
from shardkit.errors import ShardError, UsageError
from shardkit.loader.feed import DeviceFeed, HostFeed, check_ignore_index, check_prefetch

CPU = torch.device("cpu")


def feeds(folder: Path, *, depth: int, shuffle: bool = True, device: torch.device = CPU) -> tuple[HostFeed, DeviceFeed]:
    """A feed of the 49 windows in `folder`, and one that reads ahead from it."""
    line, cut = (
        RowLine(folder, RowOptions(split="train", seq_len=4, shuffle=shuffle, seed=0)),
        Cut(batch_size=3, world_size=2),
    )
    host = HostFeed(BatchReader(line, cut, rank=1, seq_len=4), None, device)
    return host, DeviceFeed(host, stride=cut.global_batch, device=device, depth=depth)


def threads() -> list[str]:
    """The feed threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardkit")]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_read_ahead_gives_the_same_batches_wherever_it_is_sent(depth: int, dtype: str, tmp_path: Path) -> None:
    top = int(np.iinfo(dtype).max)
    np.save(tmp_path / "x_train_000000.npy", np.arange(top - 99, top + 1).astype(dtype))  # ids above the signed range
    np.save(tmp_path / "x_train_000001.npy", np.arange(100).astype(dtype))
    _, ahead = feeds(tmp_path, depth=depth)
    here, _ = feeds(tmp_path, depth=depth)
    kept = []
    for position in [*range(0, 300, 6), 6, 12, 600, 606, 612, 0]:
        (inputs, targets), _ = ahead.take(position)
        (expected_inputs, expected_targets), _ = here.take(position)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        kept.append((inputs, expected_inputs, targets, expected_targets))
    for inputs, expected_inputs, targets, expected_targets in kept:  # later reads have not touched earlier batches
        assert torch.equal(inputs, expected_inputs)
        assert torch.equal(targets, expected_targets)
    assert threads()
    ahead.close()
    assert not threads()


def test_what_reading_raises_reaches_the_consumer_and_can_be_tried_again(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    _, ahead = feeds(tmp_path, depth=2, shuffle=False)
    first = ahead.take(0)[0][0]
    (tmp_path / "x_train_000001.npy").rename(tmp_path / "away.npy")
    with pytest.raises(ShardError, match="cannot open shard"):
        list(map(ahead.take, range(6, 60, 6)))
    (tmp_path / "away.npy").rename(tmp_path / "x_train_000001.npy")
    ahead.take(30)
    assert torch.equal(ahead.take(0)[0][0], first)
    ahead.close()


def test_a_feed_that_is_forgotten_leaves_no_thread(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    _, ahead = feeds(tmp_path, depth=2)
    ahead.take(0)
    alive = [thread for thread in threading.enumerate() if thread.name.startswith("shardkit")]
    del ahead
    gc.collect()
    for thread in alive:
        thread.join(timeout=10)
    assert not threads()


def test_a_forked_child_is_told_rather_than_left_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [100, 100])
    _, ahead = feeds(tmp_path, depth=2)
    ahead.take(0)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UsageError, match="forked with its thread running"):
        ahead.take(6)
    monkeypatch.undo()
    ahead.close()


def test_reading_ahead_is_for_a_gpu_that_is_there() -> None:
    assert check_prefetch(None, CPU) == check_prefetch(0, CPU) == 0
    for wrong in (1, -1, 1.5, True):
        with pytest.raises(UsageError, match="prefetch is"):
            check_prefetch(wrong, CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="device is 'cuda:0', but torch sees no GPU here"):
            check_prefetch(None, torch.device("cuda:0"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_batches(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 100])
    _, ahead = feeds(tmp_path, depth=2, device=torch.device("cuda"))
    here, _ = feeds(tmp_path, depth=2)
    for position in range(0, 600, 6):
        inputs, targets = ahead.take(position)[0]
        expected_inputs, expected_targets = here.take(position)[0]
        assert torch.equal(inputs.cpu(), expected_inputs)
        assert torch.equal(targets.cpu(), expected_targets)
    ahead.close()


@pytest.mark.parametrize(
    "form", [BatchForm(packed=True), BatchForm(packed=True, documents=True), BatchForm(ignore_index=-7)]
)
def test_read_ahead_gives_the_same_documents(form: BatchForm, tmp_path: Path) -> None:
    write_stream(tmp_path, document_stream([3, 30, 0, 5, 2, 11, 8, 1] * 4), [100, 170])
    layout = "packed" if form.packed else "contiguous"
    options = RowOptions(split="train", seq_len=12, shuffle=True, seed=0, layout=layout, eot_id=EOT)
    cut = Cut(batch_size=3, world_size=1)
    form = replace(form, eot_id=EOT)

    def host() -> HostFeed:
        return HostFeed(
            BatchReader(RowLine(tmp_path, options), cut, rank=0, seq_len=12, documents=form.documents), None, CPU, form
        )

    ahead, here = DeviceFeed(host(), stride=3, device=CPU, depth=2), host()
    kept = []
    for position in (0, 3, 6, 9, 3, 6):
        (batch, _), (expected, _) = ahead.take(position), here.take(position)
        assert len(batch) == len(expected) == (3 if form.documents else 2)
        kept.append((batch, expected))
    for batch, expected in kept:  # none was overwritten by a later one
        for one, two in zip(batch[:2], expected[:2], strict=True):
            assert torch.equal(one, two)
        for one, two in zip(batch[2:], expected[2:], strict=True):
            assert torch.equal(one.cu_seqlens, two.cu_seqlens)
            assert torch.equal(one.position_ids, two.position_ids)
    ahead.close()


@pytest.mark.parametrize("value", [1.5, True, "a", 1 << 63, 0, 99])
def test_an_ignore_index_that_is_no_number_or_hides_a_token_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match=r"ignore_index is .*(as|give) -100"):
        check_ignore_index(value, eot_id=100, vocab_size=101)  # type: ignore[arg-type]
    for right in (None, -100, -1, 100, 101):
        check_ignore_index(right, eot_id=100, vocab_size=101)
