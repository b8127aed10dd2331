"""The saved state of a loader: how it is written, checked and refused. Plain JSON values; no torch, no files.

A state counts windows, not steps, and names neither rank nor cut: every rank saves the same, and any `batch_size` and
`world_size` may go on from it. `step` only keeps a run's numbering. `identity` is what must be equal, or going on would
silently change the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shardkit.batches.checks import is_count
from shardkit.batches.order import ORDER_VERSION
from shardkit.dataset.checked_lines import checksum
from shardkit.errors import StateError

STATE_VERSION = 1
_COUNTS = ("epoch", "window", "step")
_LAST = 1 << 60  # of positions and steps: further than any run comes, and an int64 counts on
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
    order: int = ORDER_VERSION,
) -> dict[str, Any]:
    """What decides the order of windows and what is in them; of a mixture lists of fingerprints, spans and weights."""
    return {
        "version": STATE_VERSION,
        "layout": layout,
        "span": span,
        "weights": weights,
        "order": order,
        "fingerprint": fingerprint,
        "split": split,
        "seq_len": seq_len,
        "shuffle": shuffle,
        "seed": seed,
    }


def make_state(identity: Mapping[str, Any], state: LoaderState, *, n_windows: int) -> dict[str, Any]:
    """`state` as JSON-able values, of a loader whose epochs have `n_windows` windows."""
    epoch, window = divmod(state.position, n_windows)
    run = [state.epoch, state.rows_left]
    saved = {**identity, "epoch": epoch, "window": window, "step": state.step, "run": run}
    return {**saved, "check": checksum(saved)}


def _refuse_other_sources(ours: object, saved: object) -> None:
    """Raise `StateError` that says which sources came or went; other fingerprints of as many say enough themselves."""
    ours, saved = (each if isinstance(each, list) else [each] for each in (ours, saved))
    if len(ours) != len(saved):
        gone, new = (
            ", ".join(f"{each!s:.16}" for each in some if each not in others) or "none"
            for some, others in ((saved, ours), (ours, saved))
        )
        raise StateError(
            f"the state was saved with {_count(saved)}, this loader has {_count(ours)} (gone by fingerprint: {gone}; "
            f"new: {new}): give the same sources, with weights, as then, or begin anew without the state"
        )
    if ours != saved and sorted(map(str, ours)) == sorted(map(str, saved)):
        raise StateError("the state was saved with the same sources in another order: give them in that order")


def _count(sources: list[Any]) -> str:
    return f"a mixture of {len(sources)} sources" if len(sources) > 1 else "one source"


def whole_state(state: object) -> dict[str, Any]:
    """A state as it was saved, of whatever data. Raises `StateError` for what is none, or damaged."""
    found = _as_state(state, make_identity(fingerprint="", split="", seq_len=1, shuffle=True, seed=0))
    _check_sum(found)
    return dict(found)


def _as_state(state: object, names: Iterable[str]) -> Mapping[str, Any]:
    """`state`, if it has the `names` of an identity, and its counts."""
    if not isinstance(state, Mapping) or not {*names, *_COUNTS} <= {*_ADDED_LATER, *state}:
        raise StateError(f"not the state of a ShardLoader: {state!r:.200}: give what state_dict() returned")
    return state


def _check_sum(state: Mapping[str, Any]) -> None:
    if "check" in state and state["check"] != checksum({key: state[key] for key in state if key != "check"}):
        raise StateError("the state is damaged: its checksum is of other values; give one as it was saved")


def read_state(identity: Mapping[str, Any], state: object, *, n_windows: int) -> LoaderState:
    """What `make_state` made `state` of. Raises `StateError` if it is no state, damaged, or of another identity.

    States of the first releases have no checksum.
    """
    state = _as_state(state, identity)
    _refuse_other_sources(identity["fingerprint"], state["fingerprint"])
    for key, value in identity.items():
        saved = state.get(key, _ADDED_LATER.get(key))
        if key == "order" and saved != value:
            raise StateError(
                f"the state was saved with order {saved!r}, this version reads with {value!r}: go on with the version "
                f"of then, or begin an epoch anew with set_epoch({state['epoch']!r}) instead of the state"
            )
        if (type(saved), saved) != (type(value), value):
            raise StateError(
                f"the state was saved with {key} {saved!r}, this loader has {value!r}: make it as it was then, or "
                "begin anew without the state"
            )
    if unknown := sorted(map(str, state.keys() - {*identity, *_COUNTS, "run", "worker", "check"})):
        raise StateError(f"the state is damaged: no loader saves {unknown[0]!r}")
    epoch, window, step = (state[key] for key in _COUNTS)
    if state.get("worker") is not None:
        raise StateError(
            "the state is one DataLoader worker's, as an earlier shardkit had them, which does not say where the whole "
            "run was: go on from a state of a loader without workers, or begin anew"
        )
    counts = is_count(epoch) and is_count(window) and is_count(step)
    if not (counts and window < n_windows and max(epoch * n_windows + window, step) <= _LAST):
        raise StateError(f"the state is damaged: epoch {epoch!r}, window {window!r} of {n_windows}, step {step!r}")
    run = state.get("run", [epoch, n_windows - window])  # not in states of the first releases
    if not (
        isinstance(run, list) and len(run) == 2 and all(map(is_count, run)) and run[0] <= _LAST and run[1] <= n_windows
    ):
        raise StateError(f"the state is damaged: run {run!r}")
    _check_sum(state)
    return LoaderState(position=epoch * n_windows + window, step=step, epoch=run[0], rows_left=run[1])
