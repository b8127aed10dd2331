"""What a training run's folder tells: the steps in its `log.jsonl`, and which data it was given."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardkit.errors import UsageError
from shardkit.files import open_file

RUN_LOG = "log.jsonl"
FIGURES = (
    *("loss", "val_loss", "bits_per_byte", "hellaswag"),
    *("lr", "grad_norm", "tokens_per_second", "data_wait", "mfu", "epoch"),
)
_OF_VALIDATION = FIGURES[1:4]  # few points, and none of them is left out
_LONGEST_LINE = 1 << 20
_MOST_POINTS = 1 << 20  # of a figure; of longer runs every second one is left out, again and again


def is_run(place: object) -> bool:
    """Whether `place` is the folder of a training run."""
    return isinstance(place, str | Path) and (Path(place) / RUN_LOG).is_file()


@dataclass(slots=True)
class RunLog:
    """A run's figures by name, each as (step, value), in the order of its steps; `data` is what its last line on data
    says, `seconds` what its steps took, `unread` how many lines could not be read (a kill may cut the last one short),
    `resumed` how often it went on."""

    folder: Path
    figures: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    unread: int = 0
    resumed: int = 0

    def last(self, name: str) -> float | None:
        """The figure's last value."""
        points = self.figures.get(name)
        return points[-1][1] if points else None


def read_run(folder: Path) -> RunLog:
    """Read the log of the run in `folder`. Raises `UsageError` where there is none, or no step in it."""
    run, path = RunLog(folder), folder / RUN_LOG
    every: dict[str, int] = {}
    try:
        with open_file(path) as file:
            for text in iter(lambda: file.readline(_LONGEST_LINE), b""):
                try:
                    entry = json.loads(text)
                except (ValueError, RecursionError):
                    run.unread += 1
                    continue
                if isinstance(entry, dict):
                    _take(run, entry, every)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}; give the folder of a training run") from None
    if not run.steps:
        raise UsageError(f"{path} has no step in it: the run has not begun, or it is no log of a training run")
    return run


def _take(run: RunLog, entry: dict[str, Any], every: dict[str, int]) -> None:
    if "after_step" in entry:
        run.data = entry
        run.resumed += entry["after_step"] not in (0, None)
    step = _number(entry.get("step"))
    if step is None or not step.is_integer():
        return
    run.steps = max(run.steps, int(step))
    run.seconds += (_number(entry.get("ms")) or 0.0) / 1e3
    for name in FIGURES:
        value = _number(entry.get(name))
        if value is None:
            continue
        points = run.figures.setdefault(name, [])
        if int(step) % every.setdefault(name, 1) == 0 or name in _OF_VALIDATION:
            points.append((step, value))
        if len(points) > _MOST_POINTS:
            del points[::2]
            every[name] *= 2


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
