"""Whose a folder is: a run's, in which one process at a time trains, or a dataset's, in which no trainer writes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from shardkit import UsageError, hold_lock

_LOCK = ".lock"
_OF_A_DATASET = ("manifest.json", "*_train_*.npy", "*_val_*.npy")
_OF_A_RUN = ("config.toml", "log.jsonl", "checkpoints", "step_*.pt")


def hold_run(run: Path) -> AbstractContextManager[object]:
    """Let nobody else train in the folder `run` while the block runs; it is made, and removed where it stays empty.

    Free if we die. Raises `OutputError` where another process trains there, and where it cannot be written.
    """
    busy = f"another process is training in {run}: wait for it, or give another --out"
    return hold_lock(run / _LOCK, busy=busy, remove=True)


def refuse_dataset(out: Path) -> None:
    """Raise `UsageError` where the folder `out`, to be a run's, holds a dataset."""
    _refuse(out, "a dataset", _OF_A_DATASET, "give another --out")


def refuse_dataset_and_run(out: Path) -> None:
    """Raise `UsageError` where the folder `out`, to be a model's, holds a dataset or a run."""
    _refuse(out, "a dataset", _OF_A_DATASET, "give another folder to export into")
    _refuse(out, "a run", _OF_A_RUN, "give another folder to export into")


def _refuse(out: Path, what: str, patterns: tuple[str, ...], advice: str) -> None:
    found = next((path for pattern in patterns for path in out.glob(pattern)), None)
    if found is not None:
        raise UsageError(f"{out} holds {what} ({found.name}): {advice}")
