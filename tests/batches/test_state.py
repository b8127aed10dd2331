"""The saved state: JSON and back, and refused where it would change the data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.batches.state import LoaderState, WorkerShare, make_identity, make_state, read_state
from shardkit.errors import StateError

IDENTITY = make_identity(fingerprint="abc", split="train", seq_len=8, shuffle=True, seed=1)
COUNT = st.integers(0, 2**62 - 1)


@given(position=COUNT, step=COUNT, n_windows=st.integers(1, 2**50), share=st.none() | st.tuples(COUNT, COUNT, COUNT))
def test_a_state_survives_json(position: int, step: int, n_windows: int, share: tuple[int, int, int] | None) -> None:
    state = LoaderState(
        position=position,
        step=step,
        share=None if share is None else WorkerShare(worker=share[0], workers=share[1], given=share[2]),
    )
    text = json.dumps(make_state(IDENTITY, state, n_windows=n_windows))
    assert len(text) < 400
    assert read_state(IDENTITY, json.loads(text), n_windows=n_windows) == state


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2),
        ("layout", "packed"),
        ("fingerprint", "abd"),
        ("split", "val"),
        ("seq_len", 16),
        ("shuffle", False),
        ("seed", 2),
    ],
)
def test_a_state_of_other_data_is_refused(key: str, value: Any) -> None:
    state = make_state(IDENTITY, LoaderState(position=3, step=3), n_windows=10)
    with pytest.raises(StateError, match=f"saved with {key} {value!r}, this loader has {IDENTITY[key]!r}"):
        read_state(IDENTITY, {**state, key: value}, n_windows=10)


def test_a_state_of_the_old_order_of_spans_is_refused_with_what_to_do() -> None:
    identity = make_identity(fingerprint="abc", split="train", seq_len=8, shuffle=True, seed=1, span=4, order=2)
    state = make_state(identity, LoaderState(position=33, step=3), n_windows=10)
    with pytest.raises(StateError, match=r"saved with order 1, this version reads with 2: .* set_epoch\(3\)"):
        read_state(identity, {**state, "order": 1}, n_windows=10)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"window": 10},
        {"window": "3"},
        {"step": 1.5},
        {"step": True},
        {"step": 1 << 62},
        {"epoch": 1 << 60},
        {"epoch": None},
        {"worker": 1},
        {"worker": [0, 2]},
        {"worker": [0, 2, -1]},
        {"worker": "abc"},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    state = make_state(IDENTITY, LoaderState(position=3, step=3), n_windows=10)
    with pytest.raises(StateError, match="the state is damaged"):
        read_state(IDENTITY, {**state, **change}, n_windows=10)


@pytest.mark.parametrize("state", [None, [], {}, {"epoch": 0, "window": 0, "step": 0}, "{}", IDENTITY])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="not the state of a ShardLoader"):
        read_state(IDENTITY, state, n_windows=10)
