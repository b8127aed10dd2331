"""Mixtures: exact shares at any time, every row of a source in turn, the same wherever one begins to count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.batches.mixture import Mixture
from shardkit.errors import UsageError

WEIGHT = st.integers(1, 1000) | st.floats(0.5, 1000).map(lambda weight: round(weight, 3))


@given(weights=st.lists(WEIGHT, min_size=1, max_size=9))
def test_shares_are_exact_to_half_a_row_a_halving_at_any_time(weights: list[float]) -> None:
    numbers, _ = Mixture(weights).assign(np.arange(2000))
    halvings = (len(weights) - 1).bit_length()
    for source, weight in enumerate(weights):
        given_out = np.cumsum(numbers == source)
        due = np.arange(1, 2001) * (weight / sum(weights))
        assert np.abs(given_out - due).max() <= halvings / 2 + 1e-6


@given(weights=st.lists(WEIGHT, min_size=1, max_size=9), start=st.integers(0, 10**12))
def test_each_source_counts_its_own_rows_without_a_gap(weights: list[float], start: int) -> None:
    mixture = Mixture(weights)
    numbers, indices = mixture.assign(np.arange(start, start + 300))
    for source in range(len(weights)):
        own = indices[numbers == source]
        assert (np.diff(own) == 1).all()
        if start == 0 and len(own):
            assert own[0] == 0
    shuffled = np.random.default_rng(0).permutation(300)
    again = mixture.assign(start + shuffled.reshape(30, 10))
    assert (again[0].ravel() == numbers[shuffled]).all()
    assert (again[1].ravel() == indices[shuffled]).all()


def test_shares_stay_exact_over_long_runs() -> None:
    mixture = Mixture([0.7, 0.2, 0.1])
    for n in (10**6, 10**9, 10**12):
        numbers, indices = mixture.assign(np.arange(n, n + 100))
        for source, share in enumerate((0.7, 0.2, 0.1)):
            assert abs(int(indices[numbers == source][0]) - n * share) < 12


def test_the_pattern_is_frozen() -> None:
    numbers, indices = Mixture([3, 1]).assign(np.arange(8))
    assert numbers.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert indices.tolist() == [0, 1, 0, 2, 3, 4, 1, 5]


@pytest.mark.parametrize("weights", [[1, 0], [1, -2], [1, float("nan")], [1, float("inf")], [1, True], [1, "2"]])
def test_a_weight_that_is_none_is_refused(weights: list[float]) -> None:
    with pytest.raises(UsageError, match="a mixture's weight is"):
        Mixture(weights)


def test_weights_too_far_apart_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 10,000 times the smallest"):
        Mixture([1, 10_001])
