"""The saved place of a loader: making it, checking it, refusing it. Plain JSON values; no torch, no files.

A state counts windows, not steps, and names neither rank nor cut: every rank saves the same, and any `batch_size` and
`world_size` may go on from it. `step` only keeps a run's numbering. `identity` is what must be equal, or going on would
silently change the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from shardkit.batches.order import ORDER_VERSION
from shardkit.errors import StateError

STATE_VERSION = 1
_COUNTS = ("epoch", "window", "step")
_LATER: dict[str, Any] = {"span": None, "weights": None}  # not in states of the first releases


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """The part of an epoch that one of several DataLoader workers gives, and how many batches of it are given."""

    worker: int
    workers: int
    given: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run is: the next position of the order, the number of the next step, and a worker's lane."""

    position: int
    step: int
    lane: Lane | None = None


def make_identity(
    *, fingerprint: str | list[str], split: str, seq_len: int, shuffle: bool, seed: int, layout: str = "contiguous",
    span: int | list[int | None] | None = None, weights: list[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What decides the order of windows and what is in them. Of a mixture a list of each, and the shares."""
    return {
        "version": STATE_VERSION,
        "order": ORDER_VERSION,
        "layout": layout,
        "span": span,
        "weights": weights,
        "fingerprint": fingerprint,
        "split": split,
        "seq_len": seq_len,
        "shuffle": shuffle,
        "seed": seed,
    }


def make_state(identity: Mapping[str, Any], place: Position, *, n_windows: int) -> dict[str, Any]:
    """The JSON-able state of `place` in an order of `n_windows` windows."""
    epoch, window = divmod(place.position, n_windows)
    state = {**identity, "epoch": epoch, "window": window, "step": place.step}
    if place.lane is not None:
        state["worker"] = [place.lane.worker, place.lane.workers, place.lane.given]
    return state


def read_state(identity: Mapping[str, Any], state: object, *, n_windows: int) -> Position:
    """The place that `state` tells of. Raises `StateError` if it is no state, damaged, or of another identity."""
    state = {**_LATER, **state} if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not {*identity, *_COUNTS} <= state.keys():
        raise StateError(f"not the state of a ShardLoader: {state!r:.200}: give what state_dict() returned")
    for key, value in identity.items():
        if state[key] != value:
            raise StateError(
                f"the state was saved with {key} {state[key]!r}, this loader has {value!r}: make it as it was then, or "
                "begin anew without the state"
            )
    epoch, window, step = (state[key] for key in _COUNTS)
    lane = state.get("worker")
    if not (is_count(epoch) and is_count(window) and is_count(step) and window < n_windows):
        raise StateError(f"the state is damaged: epoch {epoch!r}, window {window!r} of {n_windows}, step {step!r}")
    if lane is not None and not (isinstance(lane, list) and len(lane) == 3 and all(map(is_count, lane))):
        raise StateError(f"the state is damaged: worker {lane!r}")
    return Position(
        position=epoch * n_windows + window,
        step=step,
        lane=None if lane is None else Lane(worker=lane[0], workers=lane[1], given=lane[2]),
    )


def is_count(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number of at least 0, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
