"""Whether two saved states of loaders (`ShardLoader.state_dict()`, as JSON in a file) go on with the same batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit.batches.state import whole_state
from shardkit.dataset.typed_json import parse_json
from shardkit.errors import StateError
from shardkit.look.difference import Difference
from shardkit.look.result_lines import ShownAsLines

_NUMBERING = ("version", "check", "step")  # which changes no batch


@dataclass(frozen=True, kw_only=True, slots=True)
class StateDiff(ShownAsLines):
    """Whether loaders of the states `a` and `b` go on with the same rows. `differs` is what the states say
    differently, their number of steps too, which changes no row."""

    a: str
    b: str
    same: bool
    differs: tuple[Difference, ...]


def diff_states(a: Path, b: Path) -> StateDiff:
    """Compare two files of states. Raises `StateError` for what is none, or damaged."""
    one, other = _state(a), _state(b)
    differs = [
        Difference(what=name.replace("_", " "), a=str(one.get(name)), b=str(other.get(name)))
        for name in dict.fromkeys([*one, *other])
        if one.get(name) != other.get(name) and name != "check"
    ]
    same = all(found.what in _NUMBERING for found in differs)
    return StateDiff(a=str(a), b=str(b), same=same, differs=tuple(differs))


def _state(path: Path) -> dict[str, Any]:
    """The state that a file holds, with what states of earlier releases do not say."""
    try:
        return {"span": None, "weights": None, **whole_state(parse_json(path.read_bytes()))}
    except (OSError, ValueError) as error:
        raise StateError(f"{path} is not a loader's state as JSON: {error}") from None
    except StateError as error:
        raise StateError(f"{path}: {error}") from None
