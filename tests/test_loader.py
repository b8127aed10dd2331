"""`ShardLoader`: what it gives, in which order, from where it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardkit.loader import ShardLoader


def write_shards(folder: Path, lengths: list[int], *, vals: int = 0, dtype: str = "<u2") -> NDArray[np.int64]:
    """Bare shards of the given lengths, each token its own place in the train stream; returns that stream."""
    folder.mkdir(parents=True, exist_ok=True)
    token = 0
    for index, length in enumerate(lengths):
        split = "val" if index < vals else "train"
        np.save(folder / f"x_{split}_{index:06d}.npy", np.arange(token, token + length).astype(dtype))
        token += length
    return np.arange(sum(lengths[:vals]), token)


def rows_of(batch: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[int, ...]]:
    """A batch as rows of `seq_len + 1` tokens, after checking that targets are inputs shifted by one."""
    inputs, targets = batch
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert inputs.shape == targets.shape
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return [tuple(row.tolist()) for row in torch.cat([inputs, targets[:, -1:]], dim=1)]


def global_rows(loaders: list[ShardLoader], steps: int) -> list[tuple[int, ...]]:
    """What all ranks give in `steps` steps, in the order of the global batches."""
    return [row for _ in range(steps) for loader in loaders for row in rows_of(loader.next_batch())]


@st.composite
def cuts(draw: st.DrawFn, windows: int) -> tuple[int, int]:
    """A batch size and a world size whose global batch is at most `windows`."""
    world_size = draw(st.integers(1, min(5, windows)))
    return draw(st.integers(1, max(1, min(6, windows // world_size)))), world_size


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[int], int]:
    """Shard lengths and a seq_len that leave at least one window."""
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    seq_len = draw(st.integers(1, 9))
    if sum(lengths) <= seq_len:
        lengths.append(seq_len + 1)
    return lengths, seq_len


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**40), shuffle=st.booleans())
def test_the_union_over_ranks_and_steps_is_every_window_once_an_epoch(
    data: st.DataObject, seed: int, shuffle: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lengths, seq_len = data.draw(datasets())
    folder = tmp_path_factory.mktemp("shards")
    stream = write_shards(folder, lengths)
    windows = [tuple(stream[i : i + seq_len + 1].tolist()) for i in range(0, len(stream) - seq_len, seq_len)]
    batch_size, world_size = data.draw(cuts(len(windows)))
    loaders = [
        ShardLoader(
            folder, batch_size=batch_size, seq_len=seq_len, rank=rank, world_size=world_size, shuffle=shuffle, seed=seed
        )
        for rank in range(world_size)
    ]
    assert loaders[0].windows_per_epoch == len(windows)
    rows = global_rows(loaders, -(-2 * len(windows) // (batch_size * world_size)))
    first, second = rows[: len(windows)], rows[len(windows) : 2 * len(windows)]
    assert sorted(first) == sorted(second) == windows
    if not shuffle:
        assert first == second == windows


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 9), shuffle=st.booleans())
def test_a_run_resumed_anywhere_under_any_cut_equals_the_uninterrupted_one(
    data: st.DataObject, seed: int, shuffle: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lengths, seq_len = data.draw(datasets())
    folder = tmp_path_factory.mktemp("shards")
    tokens = len(write_shards(folder, lengths))
    windows = (tokens - 1) // seq_len

    def ranks(cut: tuple[int, int]) -> list[ShardLoader]:
        return [
            ShardLoader(
                folder, batch_size=cut[0], seq_len=seq_len, rank=rank, world_size=cut[1], shuffle=shuffle, seed=seed
            )
            for rank in range(cut[1])
        ]

    rows: list[tuple[int, ...]] = []
    state = None
    for _ in range(data.draw(st.integers(2, 4))):
        loaders = ranks(data.draw(cuts(windows)))
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        rows += global_rows(loaders, data.draw(st.integers(0, 6)))
        states = [loader.state_dict() for loader in loaders]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert rows == global_rows(ranks((1, 1)), len(rows))
