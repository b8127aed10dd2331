"""The order: a bijection that shuffles well, one line of positions, and cuts that never change it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardkit.batches.order import Cut, Order, Permutation, count_windows


def neighbour_scores(images: NDArray[np.int64]) -> dict[str, float]:
    """Standard scores, near N(0, 1) for a random permutation: where places go, and where their neighbours go."""
    size = len(images)
    places = np.arange(size)

    def table(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
        counts = np.histogram2d(first, second, bins=16)[0]
        expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / counts.sum()
        freedom = 15 * 15
        return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)

    steps = np.abs(np.diff(images))
    near, expected_near = np.count_nonzero(steps <= 32), 64 * (size - 1) / size
    return {
        "place and image": float(np.corrcoef(places, images)[0, 1]) * size**0.5,
        "neighbouring images": float(np.corrcoef(images[:-1], images[1:])[0, 1]) * size**0.5,
        "images far apart": float(np.corrcoef(images[:-17], images[17:])[0, 1]) * size**0.5,
        "neighbours that stay near": (near - expected_near) / expected_near**0.5,
        "coarse place and image": table(places, images),
        "fine place and image": table(places % 16, images % 16),
        "images of neighbours": table(images[:-1], images[1:]),
    }


@settings(max_examples=150)
@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_the_permutation_is_a_bijection(size: int, key: str) -> None:
    images = Permutation(size, key)(np.arange(size))
    assert np.array_equal(np.sort(images), np.arange(size))


@pytest.mark.parametrize("size", [20_000, 65_536, 99_991, 131_072])
@pytest.mark.parametrize("seed", range(5))
def test_the_permutation_mixes_neighbours_as_a_random_one_does(size: int, seed: int) -> None:
    scores = neighbour_scores(Permutation(size, f"{seed}:0")(np.arange(size)))
    assert all(abs(score) < 5 for score in scores.values()), scores


def test_the_neighbour_test_tells_weak_permutations() -> None:
    size = 65_536
    affine = (np.arange(size) * 40_503 + 12_345) % size
    blocks = np.arange(size).reshape(-1, 64)[np.random.default_rng(0).permutation(size // 64)].ravel()
    random = np.random.default_rng(0).permutation(size)
    assert max(map(abs, neighbour_scores(affine).values())) > 5
    assert max(map(abs, neighbour_scores(blocks).values())) > 5
    assert max(map(abs, neighbour_scores(random).values())) < 5


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    positions = np.arange(20_000)

    def epoch(seed: int, number: int) -> NDArray[np.int64]:
        order = Order(n_windows=20_000, seed=seed, shuffle=True)
        return order.windows(positions + number * 20_000)

    orders = [epoch(0, 0), epoch(0, 1), epoch(0, 2), epoch(1, 0), epoch(1, 1), epoch(10, 0)]
    for index, one in enumerate(orders):
        for other in orders[index + 1 :]:
            assert np.count_nonzero(one == other) < 12  # 1 is expected
            assert abs(np.corrcoef(one, other)[0, 1]) * 20_000**0.5 < 5


def test_the_order_is_frozen() -> None:
    """A saved state means the same windows for ever: these change only with ORDER_VERSION."""
    order = Order(n_windows=9_765_624, seed=1337, shuffle=True)
    assert order.windows(np.arange(5)).tolist() == [9726318, 5402537, 2089089, 8433336, 574641]
    assert order.windows(np.arange(5) + 9_765_622).tolist() == [5535104, 2970489, 5502979, 382244, 5563000]
    assert Permutation(10, "0:0")(np.arange(10)).tolist() == [1, 6, 2, 4, 8, 7, 3, 5, 9, 0]


def test_a_trillion_windows_need_no_memory() -> None:
    order = Order(n_windows=10**12 + 39, seed=0, shuffle=True)
    tracemalloc.start()
    windows = order.windows(np.array([0, 1, 10**12, 7 * 10**12]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(windows.tolist())) == 4
    assert windows.max() < order.n_windows
    assert peak < 100_000


@given(tokens=st.integers(0, 500), seq_len=st.integers(1, 50))
def test_windows_are_those_that_have_all_their_targets(tokens: int, seq_len: int) -> None:
    slow = [start for start in range(0, tokens, seq_len) if start + seq_len + 1 <= tokens]
    assert count_windows(tokens, seq_len) == len(slow)


@settings(max_examples=200)
@given(
    n_windows=st.integers(1, 80),
    seed=st.integers(0, 2**63),
    shuffle=st.booleans(),
    positions=st.lists(st.integers(0, 400), max_size=30),
)
def test_any_position_alone_is_what_the_whole_sequence_has_there(
    n_windows: int, seed: int, shuffle: bool, positions: list[int]
) -> None:
    order = Order(n_windows=n_windows, seed=seed, shuffle=shuffle)
    sequence = order.windows(np.arange(401))
    assert order.windows(np.array(positions, dtype=np.int64)).tolist() == [sequence[position] for position in positions]
    for epoch in range(400 // n_windows):
        assert sorted(sequence[epoch * n_windows : (epoch + 1) * n_windows]) == list(range(n_windows))


@given(batch_size=st.integers(1, 9), world_size=st.integers(1, 9), begin=st.integers(0, 999), steps=st.integers(1, 5))
def test_ranks_share_each_global_batch_without_gap_or_overlap(
    batch_size: int, world_size: int, begin: int, steps: int
) -> None:
    cut = Cut(batch_size=batch_size, world_size=world_size)
    shares = [cut.positions(begin, steps=steps, rank=rank) for rank in range(world_size)]
    assert {share.shape for share in shares} == {(steps, batch_size)}
    assert np.concatenate(shares, axis=1).ravel().tolist() == list(range(begin, begin + steps * cut.global_batch))


@given(
    first=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    second=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    step=st.integers(0, 99),
    more=st.integers(0, 9),
)
def test_a_re_cut_run_counts_its_steps_on(
    first: tuple[int, int], second: tuple[int, int], step: int, more: int
) -> None:
    before = Cut(batch_size=first[0], world_size=first[1])
    position = before.position_of(step)
    after = Cut(batch_size=second[0], world_size=second[1]).resumed(step=step, position=position)
    assert after.position_of(step) == position
    assert after.position_of(step + more) == position + more * after.global_batch
    assert after.step_at(after.position_of(step + more)) == step + more
    if before.global_batch == after.global_batch:
        assert after.origin_step == after.origin_position == 0
