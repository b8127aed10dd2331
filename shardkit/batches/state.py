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
_MOST = 1 << 62  # positions and steps are 64-bit numbers
_COUNTS = ("epoch", "window", "step")
_ADDED_LATER: dict[str, Any] = {"span": None, "weights": None}  # not in states of the first releases


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerShare:
    """What one of several DataLoader workers gives of an epoch: every `workers`-th batch from `worker` on."""

    worker: int
    workers: int
    given: int = 0  # how many of its batches it has given


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Where a run is: the position and the number of its next global batch; of a DataLoader worker, also its share."""

    position: int
    step: int
    share: WorkerShare | None = None


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
    saved = {**identity, "epoch": epoch, "window": window, "step": state.step}
    if state.share is not None:
        saved["worker"] = [state.share.worker, state.share.workers, state.share.given]
    return saved


def read_state(identity: Mapping[str, Any], state: object, *, n_windows: int) -> LoaderState:
    """What `make_state` made `state` of. Raises `StateError` if it is no state, damaged, or of another identity."""
    state = {**_ADDED_LATER, **state} if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not {*identity, *_COUNTS} <= state.keys():
        raise StateError(f"not the state of a ShardLoader: {state!r:.200}: give what state_dict() returned")
    for key, value in identity.items():
        if key == "order" and state[key] != value:
            raise StateError(
                f"the state was saved with order {state[key]!r}, this version reads with {value!r}: go on with the "
                f"version of then, or begin an epoch anew with set_epoch({state['epoch']!r}) instead of the state"
            )
        if state[key] != value:
            raise StateError(
                f"the state was saved with {key} {state[key]!r}, this loader has {value!r}: make it as it was then, or "
                "begin anew without the state"
            )
    epoch, window, step = (state[key] for key in _COUNTS)
    share = state.get("worker")
    if (
        not (is_count(epoch) and is_count(window) and is_count(step) and window < n_windows and step < _MOST)
        or not epoch * n_windows + window < _MOST
    ):
        raise StateError(f"the state is damaged: epoch {epoch!r}, window {window!r} of {n_windows}, step {step!r}")
    if share is not None and not (isinstance(share, list) and len(share) == 3 and all(map(is_count, share))):
        raise StateError(f"the state is damaged: worker {share!r}")
    return LoaderState(
        position=epoch * n_windows + window,
        step=step,
        share=None if share is None else WorkerShare(worker=share[0], workers=share[1], given=share[2]),
    )
