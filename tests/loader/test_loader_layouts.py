"""`ShardLoader` beyond windows: layouts, documents, ignored targets, mixtures and spans, at any world size."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_data import EOT, document_stream, write_stream
from loader_data import write_documents, write_shards
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from shardkit.batches.ledger import merge_ledger
from shardkit.batches.spans import ShardRows, SpanOrder
from shardkit.errors import StateError, UsageError
from shardkit.loader.batch import Documents
from shardkit.loader.loader import ShardLoader

Pair = tuple[int, int]


def dataset(folder: Path, bodies: list[int], *, lead: int = 0) -> NDArray[np.uint16]:
    """Bare shards of documents whose tokens are all different, but for EOT; returns the stream."""
    tokens = document_stream(bodies, lead=lead)
    write_stream(folder, tokens, [len(tokens) // 3, len(tokens) // 2])
    return tokens


def expected_pairs(tokens: NDArray[np.uint16]) -> Counter[Pair]:
    """Each token with the one after it in the stream; EOT after the last."""
    stream = tokens.tolist()
    return Counter(zip(stream, [*stream[1:], EOT], strict=True))


@settings(max_examples=40, deadline=None)
@given(
    bodies=st.lists(st.integers(0, 40), min_size=3, max_size=30),
    lead=st.integers(0, 20),
    seq_len=st.integers(1, 12),
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 3),
)
def test_packed_rows_train_each_next_token_of_the_stream_exactly_once(
    bodies: list[int],
    lead: int,
    seq_len: int,
    world_size: int,
    batch_size: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    tokens = dataset(folder, [*bodies, 80], lead=lead)
    loaders = [
        ShardLoader(
            folder,
            batch_size=batch_size,
            seq_len=seq_len,
            rank=rank,
            world_size=world_size,
            layout="packed",
            documents=True,
            eot_id=EOT,
        )
        for rank in range(world_size)
    ]
    rows = loaders[0].windows_per_epoch
    found: Counter[Pair] = Counter()
    shapes = set()
    for position in range(0, rows, batch_size * world_size):
        for rank, loader in enumerate(loaders):
            inputs, targets, documents = loader.next_batch()
            shapes.add(documents.cu_seqlens.shape)
            check_documents(inputs, documents)
            fresh = max(0, rows - position - rank * batch_size)  # rows beyond them are of the next epoch
            for row, target in zip(inputs[:fresh].tolist(), targets[:fresh].tolist(), strict=True):
                found.update((i, t) for i, t in zip(row, target, strict=True) if t != -100)
    assert found == expected_pairs(tokens)
    assert len(shapes) == 1
    stats = loaders[0].stats()
    assert (stats.tokens, stats.rows, stats.crop) == (len(tokens), rows, 0)
    assert stats.use == pytest.approx(len(tokens) / (rows * seq_len))


def check_documents(inputs: torch.Tensor, documents: Documents) -> None:
    """Segments begin at rows, at EOTs (which only begin documents), and nowhere twice; positions count from there."""
    size, length = inputs.shape
    cu = documents.cu_seqlens.tolist()
    assert documents.cu_seqlens.dtype == torch.int32
    assert documents.max_seqlen == length
    assert cu == sorted(cu)
    starts = [start for start in cu if start < size * length]
    assert len(starts) == len(set(starts))
    assert cu[-1] == size * length
    assert set(range(0, size * length, length)) <= set(starts)
    expected = []
    for place in range(size * length):
        expected.append(0 if place in starts else expected[-1] + 1)
    assert documents.position_ids.flatten().tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    bodies=st.lists(st.integers(0, 20), min_size=6, max_size=30),
    seq_len=st.integers(2, 12),
    layout=st.sampled_from(["contiguous", "document"]),
    lead=st.integers(0, 9),
)
def test_windows_tell_where_their_documents_lie_and_ignore_what_crosses(
    bodies: list[int], seq_len: int, layout: str, lead: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("windows")
    dataset(folder, [20, *bodies], lead=lead)
    options: dict[str, Any] = {"batch_size": 2, "seq_len": seq_len, "layout": layout, "eot_id": EOT}
    try:
        plain = ShardLoader(folder, **options)
    except UsageError as error:
        assert "global batch" in str(error)
        return
    loader = ShardLoader(folder, documents=True, ignore_index=-7, **options)
    for _ in range(loader.steps_per_epoch + 1):
        inputs, targets, documents = loader.next_batch()
        same, whole = plain.next_batch()
        assert torch.equal(inputs, same)
        assert torch.equal(targets, torch.where(whole == EOT, -7, whole))
        assert torch.equal(documents.position_ids == 0, (inputs == EOT).index_fill(1, torch.tensor([0]), True))
        check_documents(inputs, documents)
        if layout == "document":
            assert (inputs[:, 0] == EOT).all()


@pytest.mark.filterwarnings("ignore:.*packed into rows of")
def test_padding_takes_the_ignore_index_that_is_asked_for(tmp_path: Path) -> None:
    dataset(tmp_path, [4, 4, 4])
    loader = ShardLoader(tmp_path, batch_size=1, seq_len=8, layout="packed", ignore_index=-1, eot_id=EOT, shuffle=False)
    inputs, targets = loader.next_batch()
    assert inputs.tolist() == [[EOT, 1, 2, 3, 4, EOT, EOT, EOT]]
    assert targets.tolist() == [[1, 2, 3, 4, -1, -1, -1, -1]]  # the EOT after the document crosses into the next


@pytest.mark.parametrize("layout", ["document", "packed"])
def test_a_run_goes_on_at_another_world_size_and_no_other_layout(layout: str, tmp_path: Path) -> None:
    dataset(tmp_path / "data", list(range(60)))
    options: dict[str, Any] = {"seq_len": 16, "layout": layout, "eot_id": EOT, "seed": 5}

    def loaders(world_size: int, batch_size: int, ledger: str) -> list[ShardLoader]:
        return [
            ShardLoader(
                tmp_path / "data",
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                ledger=tmp_path / ledger,
                **options,
            )
            for rank in range(world_size)
        ]

    for loader in loaders(1, 12, "whole"):
        for _ in range(4):
            loader.next_batch()
        loader.close()
    first = loaders(2, 6, "parts")
    for loader in first:
        loader.next_batch()
        loader.next_batch()
    state = json.loads(json.dumps(first[0].state_dict()))
    for loader in (*first, *(second := loaders(3, 4, "parts"))):
        if loader in second:
            loader.load_state_dict(state)
            loader.next_batch()
            loader.next_batch()
        loader.close()
    assert merge_ledger(tmp_path / "whole").first_difference(merge_ledger(tmp_path / "parts")) is None
    with pytest.raises(StateError, match=f"saved with layout '{layout}', this loader has 'contiguous'"):
        ShardLoader(tmp_path / "data", batch_size=1, seq_len=16, seed=5).load_state_dict(state)


def test_bare_shards_need_the_eot_to_be_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [50])
    for options in ({"layout": "packed"}, {"documents": True}, {"ignore_index": -100}):
        with pytest.raises(UsageError, match="give eot_id"):
            ShardLoader(tmp_path, batch_size=1, seq_len=4, **options)  # type: ignore[arg-type]


def test_a_layout_that_is_none_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [50])
    with pytest.raises(UsageError, match="expected one of contiguous, document, packed"):
        ShardLoader(tmp_path, batch_size=1, seq_len=4, layout="best")
    with pytest.raises(UsageError, match="needs the whole split on disk"):
        ShardLoader(tmp_path, batch_size=1, seq_len=4, layout="packed", eot_id=1, span=2)


def test_documents_come_through_a_data_loader(tmp_path: Path) -> None:
    dataset(tmp_path, [9] * 30)
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 8, "layout": "packed", "documents": True, "eot_id": EOT}
    here = list(ShardLoader(tmp_path, **options))
    loader = DataLoader(ShardLoader(tmp_path, **options), batch_size=None)
    for batch, expected in zip(loader, here, strict=True):
        assert torch.equal(batch[0], expected[0])
        assert torch.equal(batch[2].cu_seqlens, expected[2].cu_seqlens)


def test_what_was_worked_out_lies_beside_bare_shards_and_does_not_make_them_unfinished(tmp_path: Path) -> None:
    dataset(tmp_path, [9] * 30)
    options: dict[str, Any] = {"batch_size": 2, "seq_len": 8, "layout": "packed", "eot_id": EOT}
    first = ShardLoader(tmp_path, **options).next_batch()
    assert [path.name for path in (tmp_path / ".shardkit").iterdir()] == ["plans"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix != ".npy" and "val" in path.name]
    assert torch.equal(ShardLoader(tmp_path, **options).next_batch()[0], first[0])


@pytest.mark.filterwarnings("ignore:.*packed into rows of")
def test_what_was_found_in_a_damaged_shard_is_found_anew_once_it_is_mended(tmp_path: Path) -> None:
    write_documents(tmp_path, [("a", list(range(1, 10)))] * 40, tokens_per_shard=100)

    def documents() -> int | None:
        with ShardLoader(tmp_path, batch_size=1, seq_len=16, layout="packed") as loader:
            return loader.stats().documents

    shard = tmp_path / "x_train_000002.npy"
    right = np.load(shard)
    damaged = right.copy()
    damaged[np.flatnonzero(right == 50256)[3]] = 1
    np.save(shard, damaged)
    assert documents() == 29
    np.save(tmp_path / "mended.npy", right)
    os.utime(tmp_path / "mended.npy", (10**9, 10**9))  # at another time, however fast this test is
    (tmp_path / "mended.npy").replace(shard)
    assert documents() == 30


def rows_by_source(batches: list[Any]) -> list[int]:
    """Which of the sources below each row is of: the first has tokens below 1000."""
    return [int(row[0]) // 1000 for inputs, _ in batches for row in inputs]


@pytest.fixture
def two(tmp_path: Path) -> list[tuple[str, float]]:
    """24 windows of 4 tokens below 1000, and 10 from 1000 on."""
    for name, first, count in (("a", 0, 97), ("b", 1000, 41)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x_train_000000.npy", np.arange(first, first + count, dtype="<u2"))
    return [(str(tmp_path / "a"), 3.0), (str(tmp_path / "b"), 1.0)]


def test_a_mixture_keeps_its_shares_and_gives_each_source_its_own_epochs(two: list[tuple[str, float]]) -> None:
    loader = ShardLoader(two, batch_size=4, seq_len=4)
    batches = [loader.next_batch() for _ in range(40)]
    sources = rows_by_source(batches)
    for n in range(1, 161):
        assert abs(sources[:n].count(1) - n / 4) <= 0.5
    firsts = [int(row[0]) for inputs, _ in batches for row in inputs]
    own = [[first for first in firsts if first // 1000 == source] for source in (0, 1)]
    for rows, windows in zip(own, (24, 10), strict=True):
        assert len(rows) > 3 * windows
        epochs = [rows[at : at + windows] for at in range(0, 3 * windows, windows)]
        assert all(sorted(epoch) == sorted(set(rows)) for epoch in epochs)  # every window once an epoch
        assert epochs[0] != epochs[1]  # each in an order of its own
    assert loader.windows_per_epoch == 34


@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_mixture_goes_on_at_another_world_size(stop: int, two: list[tuple[str, float]]) -> None:
    whole = ShardLoader(two, batch_size=6, seq_len=4, seed=2)
    expected = torch.cat([whole.next_batch()[0] for _ in range(14)])
    ranks = [ShardLoader(two, batch_size=3, seq_len=4, seed=2, rank=rank, world_size=2) for rank in range(2)]
    parts = [loader.next_batch()[0] for _ in range(stop) for loader in ranks]
    state = json.loads(json.dumps(ranks[1].state_dict()))
    ranks = [ShardLoader(two, batch_size=1, seq_len=4, seed=2, rank=rank, world_size=6) for rank in range(6)]
    for loader in ranks:
        loader.load_state_dict(state)
    parts += [loader.next_batch()[0] for _ in range(14 - stop) for loader in ranks]
    assert torch.equal(torch.cat(parts), expected)


def test_a_mixture_of_other_weights_or_sources_refuses_the_state(two: list[tuple[str, float]]) -> None:
    state = ShardLoader(two, batch_size=1, seq_len=4).state_dict()
    for other in ([two[0], (two[1][0], 2.0)], [two[1], two[0]], two[0][0]):
        with pytest.raises(StateError, match="the state was saved with"):
            ShardLoader(other, batch_size=1, seq_len=4).load_state_dict(state)


def test_a_row_of_a_mixture_is_located_in_its_own_source(two: list[tuple[str, float]]) -> None:
    loader = ShardLoader(two, batch_size=4, seq_len=4)
    for step in range(3):
        inputs, _ = loader.next_batch()
        for row in range(4):
            found = loader.locate(step=step, row=row)
            assert found.offset == int(inputs[row, 0]) % 1000


def test_sources_of_different_vocabularies_do_not_mix(tmp_path: Path, two: list[tuple[str, float]]) -> None:
    write_shards(tmp_path / "wide", [50], dtype="<u4")
    with pytest.raises(UsageError, match="different vocabularies: tokenize both with one tokenizer"):
        ShardLoader([two[0], (tmp_path / "wide", 1)], batch_size=1, seq_len=4)
    for source in ([], ["a", "b"], [("a", 1, 2)], None, 5, [([("a", 1)], 1)], {"a": 1}):
        with pytest.raises(UsageError, match="expected a dataset, or a list of pairs"):
            ShardLoader(source, batch_size=1, seq_len=4)  # type: ignore[arg-type]


def test_a_source_without_a_row_or_with_a_bad_weight_does_not_mix(tmp_path: Path, two: list[tuple[str, float]]) -> None:
    write_shards(tmp_path / "short", [4])
    with pytest.raises(UsageError, match=r"short has 4 tokens: 0 windows of 4 .*: lower seq_len=, or use more data"):
        ShardLoader([two[0], (tmp_path / "short", 1)], batch_size=1, seq_len=4)
    with pytest.raises(UsageError, match="a mixture's weight is -1"):
        ShardLoader([(two[0][0], -1)], batch_size=1, seq_len=4)


def test_a_span_mixes_within_and_goes_through_them_in_turn(tmp_path: Path) -> None:
    tokens = [100, 90, 110, 50]
    write_shards(tmp_path, tokens)
    loader = ShardLoader(tmp_path, batch_size=1, seq_len=5, span=2)
    order = SpanOrder(ShardRows(tokens, 5), span=2, seed=0, shuffle=True)
    before: list[int] = []
    for epoch in range(2):
        firsts = [int(inputs[0, 0]) for inputs, _ in loader]
        assert sorted(firsts) == list(range(0, 345, 5))
        shards = np.searchsorted(np.cumsum(tokens), firsts, side="right").tolist()
        first, second = ({*order.shards(2 * epoch + span)} for span in range(2))
        assert {*shards[:26]} == first  # 140 tokens at least; a row at each shard's end may come later
        assert sum(shard in first for shard in shards[42:]) <= 2
        assert second <= {*shards[42:]}
        assert firsts not in (sorted(firsts), before)
        before = firsts
    state = loader.state_dict()
    with pytest.raises(StateError, match="saved with span 2, this loader has None"):
        ShardLoader(tmp_path, batch_size=1, seq_len=5).load_state_dict(state)


def test_a_state_from_before_there_were_spans_is_taken(tmp_path: Path) -> None:
    write_documents(tmp_path, [("a", list(range(50)))] * 4, tokens_per_shard=60)
    loader = ShardLoader(tmp_path, batch_size=2, seq_len=5)
    loader.next_batch()
    state = loader.state_dict()
    del state["span"], state["weights"], state["run"], state["check"]
    again = ShardLoader(tmp_path, batch_size=2, seq_len=5)
    again.load_state_dict(state)
    assert torch.equal(again.next_batch()[0], loader.next_batch()[0])
    with pytest.raises(StateError, match="saved with span None, this loader has 1"):
        ShardLoader(tmp_path, batch_size=2, seq_len=5, span=1).load_state_dict(state)


def test_a_dataset_twice_in_a_mixture_comes_in_two_orders(two: list[tuple[str, float]]) -> None:
    loader = ShardLoader([two[0], two[0]], batch_size=2, seq_len=4)
    pairs = [loader.next_batch()[0][:, 0].tolist() for _ in range(24)]
    assert sorted(first for first, _ in pairs) == sorted(second for _, second in pairs) == list(range(0, 96, 4))
    assert sum(first == second for first, second in pairs) < 6


def test_a_span_of_more_shards_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    write_shards(tmp_path, [100, 90])
    state = ShardLoader(tmp_path, batch_size=1, seq_len=5, span=9).state_dict()
    ShardLoader(tmp_path, batch_size=1, seq_len=5, span=2).load_state_dict(state)


def test_options_of_a_remote_are_refused_for_a_folder_and_an_eot_that_is_another(tmp_path: Path) -> None:
    write_documents(tmp_path, [("a", list(range(50)))] * 4, tokens_per_shard=60)
    for name, value in (("cache", tmp_path), ("cache_bytes", 10**6), ("revision", "main")):
        with pytest.raises(UsageError, match=f"{name} is for a remote, .* is here: leave it out"):
            ShardLoader(tmp_path, batch_size=1, seq_len=5, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="eot_id is 7, .* was made with 50256"):
        ShardLoader(tmp_path, batch_size=1, seq_len=5, eot_id=7)
