"""Checkpoints: one file each, whole or not there, loadable with `weights_only=True`. Owns `RUN/checkpoints`.

A file is a zip that `torch.save` wrote, with a CRC-32 for each tensor, which tells a damaged file from a whole one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from trainer.checkpoint_parts import FORMAT, CheckpointError, NoCheckpoint, State, check_parts
from trainer.places import one_line

_NAME = re.compile(r"step_(\d{8})\.pt")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint after `step` updates."""
    return f"step_{step:08d}.pt"


def is_checkpoint_name(name: str) -> bool:
    """Whether `name` is that of a checkpoint: `step_00000250.pt`."""
    return _NAME.fullmatch(name) is not None


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if is_checkpoint_name(path.name))


def save_checkpoint(folder: Path, state: State, *, keep: int) -> Path:
    """Write `state` under its final name only when it is whole and on the disk; then drop all but `keep` and the best.

    `best.json` names the one with the lowest validation loss. Raises `CheckpointError` if it cannot be written.
    """
    path = folder / checkpoint_name(state["step"])
    temp = folder / f".{path.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step_*.tmp"):  # of a run that was killed while it saved
            left.unlink(missing_ok=True)
        with open(temp, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        if state["val_loss"] is not None and state["val_loss"] <= state["best"]:
            write_atomically(folder / "best.json", json.dumps({"checkpoint": path.name, "val_loss": state["val_loss"]}))
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError on a full disk
        if folder.is_dir():
            temp.unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {path}: {reason}; make room and go on with --resume auto") from error
    best = best_checkpoint(folder)
    for old in list_checkpoints(folder)[:-keep]:
        if old != best:
            with suppress(OSError):  # Windows does not delete a file that is mapped: the next time, then
                old.unlink()
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file by rename."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temp.write_text(text, encoding="utf-8")
    os.replace(temp, path)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best.json` names; None where there is no such file."""
    try:
        path = folder / str(json.loads((folder / "best.json").read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path.exists() else None


def verify_checkpoint(path: Path) -> None:
    """Read all of `path` once, against the CRC-32 of each tensor. Raises `CheckpointError` if it is not whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]
            damaged = packed[0] if packed else archive.testzip()
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception as error:  # whatever Python's zip reader makes of a damaged file
        raise _not_whole(path, error) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged (in {damaged!r:.80}): take an older checkpoint")


def map_checkpoint(path: Path) -> State:
    """The state in a verified file, its tensors memory-mapped: all processes of a node share one copy of the pages.

    Raises `CheckpointError` for a file of another program, one that holds more than plain data and tensors, and one
    with a part that cannot be.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch makes of another program's file
        raise _not_whole(path, error) from error
    return check_parts(state, path)


def _not_whole(path: Path, error: Exception) -> CheckpointError:
    reason = ascii((str(error).splitlines() or [""])[0])[1:-1] or type(error).__name__
    return CheckpointError(f"{path} is not a whole checkpoint ({reason:.200}): take an older one")


def load_checkpoint(path: Path) -> State:
    """Verify and map a checkpoint. Raises `CheckpointError` if it is not a whole one of this version."""
    verify_checkpoint(path)
    return map_checkpoint(path)


def content_hash(path: Path) -> str:
    """SHA-256 over the name, size and CRC-32 of each part of a checkpoint: its content's name, without reading it."""
    with zipfile.ZipFile(path) as archive:
        parts = [[part.filename, part.file_size, part.CRC] for part in archive.infolist()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint in `folder`; a damaged one is said and passed over. None for an empty folder.

    Raises `CheckpointError` if all are damaged: a run is not begun anew by mistake.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            say(f"warning: {error}")
        else:
            return path
    if paths:
        raise CheckpointError(f"none of the {len(paths)} checkpoints in {folder} is whole: delete them to begin anew")
    return None


def find_checkpoint(where: Path, which: str = "last") -> Path:
    """The file that `where` means: itself, or the `last` or `best` checkpoint of a run's folder."""
    if where.is_file():
        return where
    if not where.exists():
        raise CheckpointError(f"there is no {where}: give a run's folder, or a step_*.pt of one")
    folder = checkpoint_folder(where)
    paths = list_checkpoints(folder)
    path = best_checkpoint(folder) if which == "best" else paths[-1] if paths else None
    if path is None:
        raise CheckpointError(f"{where} holds no {which} checkpoint: give a run's folder, or a step_*.pt of one")
    return path


def checkpoint_folder(run: Path) -> Path:
    """The folder of a run's checkpoints; a folder without `checkpoints` is taken for one."""
    return run / "checkpoints" if (run / "checkpoints").is_dir() else run


def is_hub_repo(name: str) -> bool:
    """Whether `name` is spelled like a repo on the Hub: `user/name`."""
    return _REPO.fullmatch(name) is not None


def is_remote(resume: str) -> bool:
    """Whether `--resume` names a Hub repo or a URL, rather than something on this disk."""
    return not Path(resume).exists() and ("://" in resume or is_hub_repo(resume))


def download_newest(remote: str, folder: Path) -> Path:
    """Fetch the newest checkpoint of a Hub model repo or an fsspec folder into `folder` (a RUN's checkpoints).

    Raises `NoCheckpoint` where there is none, `CheckpointError` where it cannot be had.
    """
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(remote if "://" in remote else f"hf://{remote}")
        try:
            fs.invalidate_cache()  # of what this process saw there before
            found = fs.ls(f"{root}/checkpoints", detail=False)
        except FileNotFoundError as error:
            raise NoCheckpoint(f"cannot fetch a checkpoint from {remote}: {one_line(error)}") from None
        names = sorted(Path(p).name for p in found if is_checkpoint_name(Path(p).name))
        if not names:
            raise NoCheckpoint(f"{remote} has no checkpoints/step_*.pt: was it written by --push-checkpoints?")
        folder.mkdir(parents=True, exist_ok=True)
        temp = folder / f".{names[-1]}.{os.getpid()}.tmp"
        fs.get_file(f"{root}/checkpoints/{names[-1]}", str(temp))
        os.replace(temp, folder / names[-1])
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 (of any client of any place)
        raise CheckpointError(f"cannot fetch a checkpoint from {remote}: {one_line(error)}") from None
    return folder / names[-1]
