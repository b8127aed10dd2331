"""The saved state of a loader: how it is written, checked and refused. Plain JSON values; no torch, no files.

A state counts windows, not steps, and names neither rank nor cut: every rank saves the same, and any `batch_size` and
`world_size` may go on from it. `step` only keeps a run's numbering. `identity` is what must be equal, or going on would
silently change the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardkit.batches.checks import is_count
from shardkit.batches.order import ORDER_VERSION
from shardkit.errors import StateError

STATE_VERSION = 1
_COUNTS = ("epoch", "window", "step")
_ADDED_LATER: dict[str, Any] = {"span": None, "weights": None}  # not in states of the first releases


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a run is: position and number of its next global batch, the epoch that is in, and the rows left of that.

    A run's epoch is a number of batches, so it need not be the one that the position says.
    """

    position: int
    step: int
    epoch: int
    rows_left: int


def make_identity(
    *,
    fingerprint: str | list[str],
    split: str,
    seq_len: int,
    shuffle: bool,
    seed: int,
    layout: str = "contiguous",
    span: int | list[int | None] | None = None,
    weights: list[str] | None = None,
) -> dict[str, Any]:
    """What decides the order of windows and what is in them; of a mixture lists of fingerprints, spans and weights."""
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


def make_state(identity: Mapping[str, Any], state: LoaderState, *, n_windows: int) -> dict[str, Any]:
    """`state` as JSON-able values, of a loader whose epochs have `n_windows` windows."""
    epoch, window = divmod(state.position, n_windows)
    return {**identity, "epoch": epoch, "window": window, "step": state.step, "run": [state.epoch, state.rows_left]}


def read_state(identity: Mapping[str, Any], state: object, *, n_windows: int) -> LoaderState:
    """What `make_state` made `state` of. Raises `StateError` if it is no state, damaged, or of another identity."""
    state = {**_ADDED_LATER, **state} if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not {*identity, *_COUNTS} <= state.keys():
        raise StateError(f"not the state of a ShardLoader: {state!r:.200}: give what state_dict() returned")
    for key, value in identity.items():
        if state[key] != value:
            raise StateError(
                f"the state was saved with {key} {state[key]!r}, this loader has {value!r}: make it as it was then, or "
                "begin anew without the state"
            )
    epoch, window, step = (state[key] for key in _COUNTS)
    if not (is_count(epoch) and is_count(window) and is_count(step) and window < n_windows):
        raise StateError(f"the state is damaged: epoch {epoch!r}, window {window!r} of {n_windows}, step {step!r}")
    if state.get("worker") is not None:
        raise StateError(
            "the state is one DataLoader worker's, as an earlier shardkit had them, which does not say where the whole "
            "run was: go on from a state of a loader without workers, or begin anew"
        )
    run = state.get("run", [epoch, n_windows - window])  # not in states of the first releases
    if not (isinstance(run, list) and len(run) == 2 and all(map(is_count, run)) and run[1] <= n_windows):
        raise StateError(f"the state is damaged: run {run!r}")
    return LoaderState(position=epoch * n_windows + window, step=step, epoch=run[0], rows_left=run[1])
