"""`ShardLoader`: what it gives, in which order, from where it goes on, and what it refuses."""

from __future__ import annotations

import inspect
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_data import write_documents, write_shards
from numpy.typing import NDArray
from torch.distributed import checkpoint
from torch.distributed.checkpoint.stateful import Stateful as CheckpointStateful
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.stateful import Stateful as DataStateful

from shardkit.batches.ledger import merge_ledger
from shardkit.errors import StateError, UsageError
from shardkit.loader.batch import Batch, DocumentBatch
from shardkit.loader.loader import ShardLoader

# Python 3.12 and later warn of a fork beside torch's threads; torch of more workers than cores
forking = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*:DeprecationWarning", "ignore:This DataLoader will create 3 worker processes:UserWarning"
)

Row = tuple[int, ...]


def rows_of(batch: Batch) -> list[Row]:
    """A batch as rows of `seq_len + 1` tokens, after checking that targets are inputs shifted by one."""
    assert isinstance(batch, Batch)
    inputs, targets = batch
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert inputs.shape == targets.shape
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return [tuple(row.tolist()) for row in torch.cat([inputs, targets[:, -1:]], dim=1)]


def global_rows(loaders: list[ShardLoader], steps: int) -> list[Row]:
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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=60, deadline=None)
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

    rows: list[Row] = []
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


def lite_batches(shard: NDArray[np.int64], batch_size: int, seq_len: int, rank: int, world_size: int) -> list[Any]:
    """The batches of one rank in one shard as build-nanogpt's DataLoaderLite gives them, by its published behaviour."""
    place, batches = batch_size * seq_len * rank, []
    while place + batch_size * seq_len + 1 <= len(shard):
        part = shard[place : place + batch_size * seq_len + 1]
        batches.append((part[:-1].reshape(batch_size, seq_len), part[1:].reshape(batch_size, seq_len)))
        place += batch_size * seq_len * world_size
    return batches


@pytest.mark.parametrize("rank", range(3))
def test_without_a_shuffle_the_first_shard_gives_the_batches_of_data_loader_lite(rank: int, tmp_path: Path) -> None:
    stream = write_shards(tmp_path, [100, 1000, 300], vals=1)
    loader = ShardLoader(tmp_path, batch_size=4, seq_len=8, rank=rank, world_size=3, shuffle=False)
    expected = lite_batches(stream[:1000], 4, 8, rank, 3)
    assert len(expected) >= 10
    for inputs, targets in expected:
        got = loader.next_batch()
        assert np.array_equal(got[0], inputs)
        assert np.array_equal(got[1], targets)


def test_every_epoch_has_as_many_batches_and_what_is_left_over_comes_first_in_the_next(tmp_path: Path) -> None:
    write_shards(tmp_path, [101])  # 10 windows of 10
    loader = ShardLoader(tmp_path, batch_size=2, seq_len=10, world_size=2)
    assert (loader.windows_per_epoch, loader.steps_per_epoch, loader.remainder_windows) == (10, 2, 2)
    assert len(loader) == loader.steps_per_epoch
    rows: list[Row] = []
    for epoch in range(5):
        assert loader.epoch == epoch
        for batch in loader:
            rows += rows_of(batch)
        assert loader.step == 2 * (epoch + 1)
    once = ShardLoader(tmp_path, batch_size=1, seq_len=10)
    mine = range(0, 40, 4)  # of rank 0 of 2: the first two of every four positions
    every = [rows_of(once.next_batch())[0] for _ in range(40)]
    assert rows == [row for first in mine for row in every[first : first + 2]]
    for _ in loader:
        break
    assert len(list(loader)) == 1  # the rest of epoch 5


@settings(max_examples=60, deadline=None)
@given(data=st.data(), windows=st.integers(2, 60))
def test_however_a_loop_is_written_it_counts_epochs_of_one_length_and_loses_no_window(
    data: st.DataObject, windows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [4 * windows + 1])
    first, second = (data.draw(st.integers(1, windows)) for _ in range(2))
    loader = ShardLoader(folder, batch_size=first, seq_len=4)
    rows: list[Row] = []

    def loop(how: str) -> None:
        if how == "for, with set_epoch before it":
            loader.set_epoch(loader.epoch)
        for number, batch in enumerate(loader):
            rows.extend(rows_of(batch))
            if how == "for, left early" and number:
                break

    kinds = st.sampled_from(["for", "for, left early", "for, with set_epoch before it", "another cut"])
    for how in data.draw(st.lists(kinds, max_size=6)):
        epoch, step = loader.epoch, loader.step
        if how == "another cut":
            state = loader.state_dict()
            loader = ShardLoader(folder, batch_size=second, seq_len=4)
            loader.load_state_dict(state)
            loader.set_epoch(epoch)  # as a program does that counts epochs itself: it is there already
            assert loader.epoch == epoch
            assert loader.state_dict()["window"] == state["window"]
            continue
        loop(how)
        assert loader.epoch == epoch + 1 or how == "for, left early"
        assert 1 <= loader.step - step <= 2 * windows // loader.batch_size
    alone = ShardLoader(folder, batch_size=1, seq_len=4)
    assert rows == [rows_of(alone.next_batch())[0] for _ in range(len(rows))]


@pytest.mark.parametrize("epoch", range(4))
def test_set_epoch_goes_where_a_run_from_the_start_comes_to(epoch: int, tmp_path: Path) -> None:
    write_shards(tmp_path, [101])
    run, jump = (ShardLoader(tmp_path, batch_size=3, seq_len=10) for _ in range(2))
    for _ in range(epoch):
        list(run)
    jump.set_epoch(epoch)
    assert jump.state_dict() == run.state_dict()
    assert rows_of(jump.next_batch()) == rows_of(run.next_batch())
    state = jump.state_dict()
    jump.set_epoch(epoch)  # it is there already, as after a resume
    assert jump.state_dict() == state
    with pytest.raises(UsageError, match="epoch is -1"):
        jump.set_epoch(-1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_sent_back_and_forth_gives_what_a_fresh_one_gives(shuffle: bool, tmp_path: Path) -> None:
    write_shards(tmp_path, [200, 301])

    def loader(batch_size: int) -> ShardLoader:
        return ShardLoader(tmp_path, batch_size=batch_size, seq_len=10, shuffle=shuffle)

    single, used = loader(1), loader(3)
    states = []
    for _ in range(60):  # every place, also those between this loader's own batches
        states.append(single.state_dict())
        single.next_batch()
    for place in (0, 1, 2, 7, 5, 48, 49, 50, 3, 59, 0):
        fresh = loader(3)
        for one in (fresh, used):
            one.load_state_dict(states[place])
        assert [rows_of(used.next_batch()) for _ in range(3)] == [rows_of(fresh.next_batch()) for _ in range(3)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ignoring_a_target_does_not_change_the_inputs(shuffle: bool, batch_size: int, tmp_path: Path) -> None:
    write_shards(tmp_path, [500])
    loader, untouched = (ShardLoader(tmp_path, batch_size=batch_size, seq_len=10, shuffle=shuffle) for _ in range(2))
    for _ in range(60 // batch_size):  # into the second epoch
        inputs, targets = loader.next_batch()
        targets[targets % 3 == 0] = -100
        assert torch.equal(inputs, untouched.next_batch()[0])


def test_batches_are_fresh_and_stay_as_they_were(tmp_path: Path) -> None:
    write_shards(tmp_path, [500])
    for shuffle in (True, False):
        loader, again = (ShardLoader(tmp_path, batch_size=3, seq_len=10, shuffle=shuffle) for _ in range(2))
        kept = [loader.next_batch() for _ in range(20)]
        assert [rows_of(batch) for batch in kept] == [rows_of(again.next_batch()) for _ in range(20)]
        assert loader.wait_seconds > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0: expected a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"seq_len": "8"}, "seq_len is '8'"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": -1}, "rank is -1: expected a whole number of at least 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2, world_size 2: ranks go from 0 to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None"),
        ({"seq_len": 100}, r"has 100 tokens: 0 windows of 100 .*: lower seq_len"),
        ({"batch_size": 5, "world_size": 3}, r"12 windows of 8; a global batch takes 5 x 3 = 15"),
        ({"prefetch": 2}, "prefetch is 2 on 'cpu'"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_shards(tmp_path, [100])
    with pytest.raises(UsageError, match=message) as caught:
        ShardLoader(tmp_path, **{"batch_size": 2, "seq_len": 8, **change})
    assert "\n" not in str(caught.value)


def test_a_state_of_another_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", [200])
    write_shards(tmp_path / "other", [210])

    def loader(folder: str = "one", *, seed: int = 0, seq_len: int = 8, shuffle: bool = True) -> ShardLoader:
        return ShardLoader(tmp_path / folder, batch_size=2, seq_len=seq_len, seed=seed, shuffle=shuffle)

    kept = loader()
    kept.next_batch()
    before = kept.state_dict()
    for other in (loader("other"), loader(seed=1), loader(seq_len=4), loader(shuffle=False)):
        with pytest.raises(StateError, match="the state was saved with"):
            kept.load_state_dict(other.state_dict())
    with pytest.raises(StateError, match="the state is one DataLoader worker's, as an earlier shardkit had them"):
        kept.load_state_dict({**before, "worker": [0, 2, 1]})
    assert kept.state_dict() == before


def test_a_closed_loader_leaves_nothing_behind_and_gives_nothing(tmp_path: Path) -> None:
    write_shards(tmp_path, [100] * 10)
    files = len(os.listdir("/proc/self/fd"))
    with ShardLoader(tmp_path, batch_size=2, seq_len=8, ledger=tmp_path / "ledger") as loader:
        for _ in range(50):
            batch = loader.next_batch()
        assert len(os.listdir("/proc/self/fd")) > files
    assert len(os.listdir("/proc/self/fd")) == files
    assert ".npy" not in Path("/proc/self/maps").read_text()
    assert len(rows_of(batch)) == 2
    with pytest.raises(UsageError, match="this loader is closed"):
        loader.next_batch()
    loader.close()


def test_locate_names_where_each_row_came_from(tmp_path: Path) -> None:
    rows = [("part-0", [number] * 5) for number in range(20)] + [("part-1", [number] * 7) for number in range(20, 40)]
    manifest = write_documents(tmp_path, rows, tokens_per_shard=50)
    loaders = [ShardLoader(manifest, batch_size=3, seq_len=4, rank=rank, world_size=2, seed=7) for rank in range(2)]
    for step in range(12):  # into the second epoch
        for rank, loader in enumerate(loaders):
            inputs = loader.next_batch()[0]
            for row in range(3):
                place = loaders[0].locate(step=step, rank=rank, row=row)
                assert place == loader.locate(step=step, row=row)
                shard = np.load(tmp_path / place.shard)
                assert shard[place.offset] == inputs[row, 0]
                assert place.document is not None
                text = int(next(token for token in [*inputs[row].tolist(), None] if token != 50256))
                if inputs[row, 0] != 50256:
                    assert text == place.document
                assert (place.source_file, place.source_row) == (
                    ("part-0", place.document) if place.document < 20 else ("part-1", place.document - 20)
                )
    for wrong in ({"step": -1}, {"step": 0, "rank": 2}, {"step": 0, "row": 3}, {"step": 0, "row": -1}):
        with pytest.raises(UsageError, match="expected"):
            loaders[0].locate(**wrong)


def test_locate_after_a_re_cut_knows_the_steps_from_then_on(tmp_path: Path) -> None:
    write_shards(tmp_path, [500])
    wide = ShardLoader(tmp_path, batch_size=4, seq_len=4)
    for _ in range(7):
        wide.next_batch()
    narrow = ShardLoader(tmp_path, batch_size=3, seq_len=4)
    narrow.load_state_dict(wide.state_dict())
    assert narrow.step == 7
    narrow.next_batch()
    inputs = narrow.next_batch()[0]
    assert narrow.locate(step=8, row=1).offset == inputs[1, 0]
    with pytest.raises(UsageError, match="step is 6: expected at least 7"):
        narrow.locate(step=6)
    again = ShardLoader(tmp_path, batch_size=4, seq_len=4)
    again.load_state_dict(wide.state_dict())
    assert again.locate(step=0) == wide.locate(step=0)


def test_the_ledger_of_a_loader_is_equal_at_any_cut_and_off_by_default(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [300, 200])

    def run(name: str, batch_size: int, world_size: int, *, seed: int = 0, shuffle: bool = True) -> None:
        for rank in range(world_size):
            with ShardLoader(
                tmp_path / "shards",
                batch_size=batch_size,
                seq_len=4,
                rank=rank,
                world_size=world_size,
                seed=seed,
                shuffle=shuffle,
                ledger=tmp_path / name,
            ) as loader:
                for _ in range(240 // (batch_size * world_size)):
                    loader.next_batch()

    run("one", 6, 1)
    run("two", 2, 3)
    run("three", 1, 4)
    one = merge_ledger(tmp_path / "one")
    assert one.running == merge_ledger(tmp_path / "two").running
    assert one.first_difference(merge_ledger(tmp_path / "three")) is None
    run("in_order", 6, 1, shuffle=False)
    with pytest.raises(StateError, match="of different data"):
        one.first_difference(merge_ledger(tmp_path / "in_order"))
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "one", "two", "three", "in_order"}


def test_from_env_has_every_option_but_those_that_say_the_rank() -> None:
    whole = inspect.signature(ShardLoader).parameters
    from_env = inspect.signature(ShardLoader.from_env).parameters
    assert list(from_env.values()) == [one for name, one in whole.items() if name not in ("rank", "world_size")]
    options = (
        "source batch_size seq_len split shuffle seed device prefetch verify ledger layout documents ignore_index "
        "eot_id span cache cache_bytes revision format"
    )
    assert list(from_env) == options.split()


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"world_size": 2}, {"sed": 1}])
def test_from_env_refuses_a_rank_and_a_typo(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_shards(tmp_path, [200])
    with pytest.raises(TypeError, match=next(iter(wrong))):
        ShardLoader.from_env(tmp_path, batch_size=2, seq_len=8, **wrong)


def test_a_batch_has_names_and_is_a_tuple_too(tmp_path: Path) -> None:
    write_shards(tmp_path, [200])
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 8, "eot_id": 50256}
    plain, documents = ShardLoader(tmp_path, **options), ShardLoader(tmp_path, documents=True, **options)
    batch, more = plain.next_batch(), documents.next_batch()
    assert (type(batch), len(batch), type(more), len(more)) == (Batch, 2, DocumentBatch, 3)
    inputs, targets = batch
    assert inputs is batch.inputs
    assert targets is batch.targets
    for one in (batch, more):
        again = pickle.loads(pickle.dumps(one))
        assert type(again) is type(one)
        assert torch.equal(again.targets, one.targets)
    assert more[2] is more.documents


def test_from_env_takes_the_rank_that_torchrun_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [200])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = ShardLoader.from_env(tmp_path, batch_size=2, seq_len=8, seed=4)
    assert rows_of(loader.next_batch()) == rows_of(
        ShardLoader(tmp_path, batch_size=2, seq_len=8, seed=4, rank=1, world_size=2).next_batch()
    )
    monkeypatch.delenv("RANK")
    with pytest.raises(UsageError, match="RANK not set"):
        ShardLoader.from_env(tmp_path, batch_size=2, seq_len=8)


def collected(loader: Any) -> list[list[Row]]:
    """Every batch of a DataLoader, as rows."""
    return [rows_of(batch) for batch in loader]


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
def test_a_data_loader_gives_every_epoch_what_the_loader_alone_gives(stateful: bool, tmp_path: Path) -> None:
    write_shards(tmp_path, [300, 150])

    def loader() -> ShardLoader:
        return ShardLoader(tmp_path, batch_size=3, seq_len=4, seed=1)

    alone, inside = loader(), loader()
    alone.next_batch()
    inside.load_state_dict(alone.state_dict())
    data = (StatefulDataLoader if stateful else DataLoader)(inside, batch_size=None)
    assert len(data) == 37
    passes = [collected(data) for _ in range(3)]
    assert passes == [collected(alone) for _ in range(3)]
    assert [len(batches) for batches in passes] == [36, 37, 37]


@forking
@pytest.mark.parametrize("data_loader", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
def test_data_loader_workers_are_refused_with_what_to_do(data_loader: Any, persistent: bool, tmp_path: Path) -> None:
    write_shards(tmp_path, [300])
    loader = ShardLoader(tmp_path, batch_size=2, seq_len=4)
    options = {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": persistent}
    with pytest.raises(UsageError, match=r"Give num_workers=0, or loop over the loader itself"):
        list(data_loader(loader, batch_size=None, **options))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
@pytest.mark.parametrize("stop", [0, 1, 7, 36, 37, 38, 74, 75])
def test_a_stateful_data_loader_goes_on_exactly(stop: int, tmp_path: Path) -> None:
    write_shards(tmp_path, [300, 150])

    def data() -> StatefulDataLoader:
        loader = ShardLoader(tmp_path, batch_size=3, seq_len=4, seed=1)
        return StatefulDataLoader(loader, batch_size=None)

    alone = ShardLoader(tmp_path, batch_size=3, seq_len=4, seed=1)
    whole = [rows_of(alone.next_batch()) for _ in range(111)]  # three epochs of 37 batches
    first = data()
    given: list[list[Row]] = []
    batches = iter(first)
    while len(given) < stop:
        batch = next(batches, None)
        if batch is None:
            batches = iter(first)
        else:
            given.append(rows_of(batch))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = data()
    second.load_state_dict(state)
    rest = [row for _ in range(3) for row in collected(second)]
    assert (given + rest)[:111] == whole


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_the_state_follows_the_protocols_of_torch_and_torchdata(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [300])
    loader, other, third = (ShardLoader(tmp_path / "shards", batch_size=2, seq_len=4) for _ in range(3))
    assert isinstance(loader, CheckpointStateful)
    assert isinstance(loader, DataStateful)
    for _ in range(5):
        loader.next_batch()
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    checkpoint.save({"loader": loader}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    checkpoint.load({"loader": third}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    assert rows_of(loader.next_batch()) == rows_of(other.next_batch()) == rows_of(third.next_batch())


def test_a_copy_in_another_process_cannot_write_the_ledger(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [300])
    loader = ShardLoader(tmp_path / "shards", batch_size=2, seq_len=4, ledger=tmp_path / "ledger")
    with pytest.raises(UsageError, match="cannot feed a GPU or write the ledger"):
        pickle.dumps(loader)
