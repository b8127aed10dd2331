"""The places of a run that goes on: what it reads, and where it sends and reports. No checkpoint decides them.

They come from the command, or from the `config.toml` that the run itself wrote into its folder. What a checkpoint says
otherwise is printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shardkit import ShardkitError, machine_fault
from trainer.config import Config, flag_of, names_of, read_toml


def read_own(run: Path) -> dict[str, Any]:
    """The settings in the `config.toml` of a run's folder; none where there is no such file. Raises `UsageError`."""
    path = run / "config.toml"
    return read_toml(path) if path.is_file() else {}


def places_beside(checkpoint: Path) -> dict[str, Any]:
    """The places of the run that `checkpoint`, a run's folder or a file in one, belongs to."""
    own = read_own(checkpoint if checkpoint.is_dir() else checkpoint.absolute().parent.parent)
    return {name: value for name, value in own.items() if name in names_of("place")}


def differences(config: Config, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """In lines for people: where a resumed run differs from its checkpoint, and what comes from its config.toml."""
    default, mine = dataclasses.asdict(Config()), dataclasses.asdict(config)
    other = {key: value for key, value in saved.items() if key in mine and value not in (mine[key], default[key])}
    left = {key: value for key, value in other.items() if key in names_of("place") and key not in ("out", "resume")}
    if left:
        said = ", ".join(f"{flag_of(key)} {_shown(value)}" for key, value in left.items())
        yield f"note: not taken from the checkpoint: {said}"
    changed = [key for key in other if key not in names_of("place") and mine[key] is not None]
    if changed:
        said = ", ".join(f"{flag_of(key)} {_shown(mine[key])} (was {_shown(other[key])})" for key in changed)
        yield f"note: other than in the checkpoint: {said}"
    taken = [key for key, value in own.items() if key != "out" and value == mine[key] != default[key]]
    if taken:
        said = ", ".join(f"{flag_of(key)} {_shown(mine[key])}" for key in taken)
        yield f"note: from the run's config.toml: {said}"


def one_line(error: BaseException) -> str:
    """What a client of some place says, for people: its first line, without tokens and an address's secret parts; of a
    driver that is not installed, how it is."""
    if isinstance(error, ImportError) and (missing := machine_fault(error)) is not None:
        return str(missing)
    return str(ShardkitError((str(error).splitlines() or [""])[0].strip()))[:300] or type(error).__name__


def _shown(value: Any) -> str:
    """A setting for a terminal: control characters as escapes, no secrets."""
    text = str(ShardkitError(value)) if isinstance(value, str) else value
    return f"{text!r:.100}"
