"""The saved state: JSON and back, and refused where it would change the data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.batches.state import LoaderState, make_identity, make_state, read_state
from shardkit.errors import StateError

IDENTITY = make_identity(fingerprint="abc", split="train", seq_len=8, shuffle=True, seed=1)
COUNT = st.integers(0, 2**60)


@given(position=COUNT, step=COUNT, epoch=COUNT, n_windows=st.integers(1, 2**50), data=st.data())
def test_a_state_survives_json(position: int, step: int, epoch: int, n_windows: int, data: st.DataObject) -> None:
    rows_left = data.draw(st.integers(0, n_windows))
    state = LoaderState(position=position, step=step, epoch=epoch, rows_left=rows_left)
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
        ("version", True),
        ("version", 1.0),
        ("seed", True),
        ("shuffle", 1),
        ("seq_len", 8.0),
    ],
)
def test_a_state_of_other_data_is_refused(key: str, value: Any) -> None:
    state = make_state(IDENTITY, LoaderState(position=3, step=3, epoch=0, rows_left=7), n_windows=10)
    with pytest.raises(StateError, match=f"saved with {key} {value!r}, this loader has {IDENTITY[key]!r}"):
        read_state(IDENTITY, {**state, key: value}, n_windows=10)


def test_a_state_of_the_old_order_of_spans_is_refused_with_what_to_do() -> None:
    identity = make_identity(fingerprint="abc", split="train", seq_len=8, shuffle=True, seed=1, span=4, order=2)
    state = make_state(identity, LoaderState(position=33, step=3, epoch=3, rows_left=7), n_windows=10)
    with pytest.raises(StateError, match=r"saved with order 1, this version reads with 2: .* set_epoch\(3\)"):
        read_state(identity, {**state, "order": 1}, n_windows=10)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": 1 << 70},
        {"step": 10**4000},
        {"window": 10},
        {"window": "3"},
        {"step": 1.5},
        {"step": True},
        {"step": 1 << 62},
        {"epoch": 1 << 60},
        {"epoch": None},
        {"run": 1},
        {"run": [0]},
        {"run": [0, 11]},
        {"run": [10**4000, 3]},
        {"run": [-1, 3]},
        {"run": None},
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    state = make_state(IDENTITY, LoaderState(position=3, step=3, epoch=0, rows_left=7), n_windows=10)
    with pytest.raises(StateError, match="the state is damaged"):
        read_state(IDENTITY, {**state, **change}, n_windows=10)


def test_a_value_that_changed_since_it_was_saved_is_refused_wherever_it_is() -> None:
    state = make_state(IDENTITY, LoaderState(position=37, step=12, epoch=3, rows_left=3), n_windows=10)
    for key, value in state.items():
        changed: list[Any] = [value + 1] if isinstance(value, int) else ["x", [0, 2, 3], [3, 2]]
        for other in changed:
            with pytest.raises(StateError, match=r"the state is damaged|was saved with"):
                read_state(IDENTITY, {**state, key: other}, n_windows=10)
        lacking = {name: state[name] for name in state if name != key}
        with pytest.raises(StateError):
            read_state(IDENTITY, {**lacking, f"{key}_": value}, n_windows=10)


def test_a_state_of_the_first_releases_is_in_the_epoch_of_its_position() -> None:
    state = make_state(IDENTITY, LoaderState(position=23, step=3, epoch=1, rows_left=2), n_windows=10)
    for name in ("check", "span", "weights", "run"):
        del state[name]
    assert read_state(IDENTITY, state, n_windows=10) == LoaderState(position=23, step=3, epoch=2, rows_left=7)


@pytest.mark.parametrize("state", [None, [], {}, {"epoch": 0, "window": 0, "step": 0}, "{}", IDENTITY])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="not the state of a ShardLoader"):
        read_state(IDENTITY, state, n_windows=10)


def test_a_state_of_other_sources_says_which_came_and_went() -> None:
    def identity(*fingerprints: str) -> dict[str, Any]:
        many = len(fingerprints) > 1
        return make_identity(
            fingerprint=[*fingerprints] if many else fingerprints[0],
            split="train",
            seq_len=8,
            shuffle=True,
            seed=1,
            span=[None] * len(fingerprints) if many else None,
            weights=["1/2"] * len(fingerprints) if many else None,
        )

    def refusal(ours: dict[str, Any], saved: dict[str, Any]) -> str:
        state = make_state(saved, LoaderState(position=3, step=1, epoch=0, rows_left=5), n_windows=8)
        with pytest.raises(StateError) as caught:
            read_state(ours, state, n_windows=8)
        assert "None" not in str(caught.value)
        return str(caught.value)

    three, two, one = identity("aa", "bb", "cc"), identity("aa", "cc"), identity("aa")
    said = refusal(two, three)
    assert "saved with a mixture of 3 sources, this loader has a mixture of 2 sources (gone by fingerprint: bb" in said
    assert "new: none" in said
    assert "this loader has one source" in refusal(one, two)
    assert "saved with one source, this loader has a mixture of 3" in refusal(three, one)
    assert "the same sources in another order" in refusal(identity("cc", "aa"), two)
    assert "saved with fingerprint ['aa', 'cc'], this loader has ['aa', 'dd']" in refusal(identity("aa", "dd"), two)
