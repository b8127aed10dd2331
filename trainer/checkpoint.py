"""Checkpoints: one file each, whole or not there, loadable with `weights_only=True`. Owns `RUN/checkpoints`.

A file is a zip that `torch.save` wrote, with a CRC for each tensor: that tells a damaged one from a whole one. Uploads
run in a thread of their own and never stop training.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shardkit import ShardkitError, UsageError

FORMAT = 1
_NAME = re.compile(r"step_(\d{8})\.pt")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")

State = dict[str, Any]


class CheckpointError(ShardkitError):
    """A checkpoint that is missing, damaged, or of another version."""


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint after `step` updates."""
    return f"step_{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


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
            old.unlink(missing_ok=True)
    return path


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file by rename."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temp.write_text(text, encoding="utf-8")
    os.replace(temp, path)


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `best.json` names, if it is there."""
    try:
        path = folder / str(json.loads((folder / "best.json").read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if path.exists() else None


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint onto the CPU. Raises `CheckpointError` if it is not a whole one of this version."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:
                raise CheckpointError(f"{path} is damaged (in {bad}): resume from an older checkpoint")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except (OSError, zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is not a whole checkpoint ({reason}): resume from an older one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (format {FORMAT})")
    return state


def load_newest(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest whole checkpoint in `folder`; a damaged one is said and passed over. None where there is none.

    Raises `CheckpointError` if there are some and all are damaged: a run is not begun anew by mistake.
    """
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            say(f"warning: {error}")
    if found:
        raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} is whole: delete them to begin anew")
    return None


def find_checkpoint(where: Path, which: str = "last") -> Path:
    """The file that `where` means: a checkpoint, or a run, of which `which` says `last` or `best`."""
    if where.is_file():
        return where
    folder = where / "checkpoints" if (where / "checkpoints").is_dir() else where
    found = list_checkpoints(folder)
    best = best_checkpoint(folder) if which == "best" else None
    if not found or (which == "best" and best is None):
        raise CheckpointError(f"{where} holds no {which} checkpoint: give a run's folder, or a step_*.pt of one")
    return best or found[-1]


def is_remote(resume: str) -> bool:
    """Whether `--resume` names a Hub repo or a URL, rather than something on this disk."""
    return not Path(resume).exists() and ("://" in resume or bool(_REPO.fullmatch(resume)))


def download_newest(remote: str, folder: Path) -> Path:
    """Fetch the newest checkpoint of a Hub model repo or an fsspec folder into `folder` (a RUN's checkpoints)."""
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(remote if "://" in remote else f"hf://{remote}")
        names = sorted(
            Path(p).name for p in fs.ls(f"{root}/checkpoints", detail=False) if _NAME.fullmatch(Path(p).name)
        )
        if not names:
            raise CheckpointError(f"{remote} has no checkpoints/step_*.pt: was it written by --push-checkpoints?")
        folder.mkdir(parents=True, exist_ok=True)
        temp = folder / f".{names[-1]}.{os.getpid()}.tmp"
        fs.get_file(f"{root}/checkpoints/{names[-1]}", str(temp))
        os.replace(temp, folder / names[-1])
    except (OSError, ValueError, ImportError, RuntimeError) as error:  # the Hub client's errors are OSErrors
        raise CheckpointError(f"cannot fetch a checkpoint from {remote}: {str(error).splitlines()[0]}") from error
    return folder / names[-1]


class Uploader:
    """Sends the newest checkpoint and the run's small files to `remote`, one upload at a time, in a thread.

    A checkpoint that comes while one is on its way waits; one that waits is replaced by a newer one. Every failure
    becomes a warning. The files are held by hard links, so that pruning cannot take them away.
    """

    def __init__(self, run: Path, remote: str, say: Callable[[str], None]) -> None:
        if "://" not in remote and not _REPO.fullmatch(remote):
            raise UsageError(f"--push-checkpoints {remote!r}: expected user/repo on the Hub, or a URL like s3://...")
        self._run, self._remote, self._say = run, remote, say
        self._next: Path | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="trainer-upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Hand in a finished checkpoint; returns at once."""
        stage = self._run / ".upload" / checkpoint.stem
        shutil.rmtree(stage, ignore_errors=True)
        (stage / "checkpoints").mkdir(parents=True)
        try:
            os.link(checkpoint, stage / "checkpoints" / checkpoint.name)
        except OSError:  # a disk without hard links
            shutil.copy(checkpoint, stage / "checkpoints" / checkpoint.name)
        for name in ("config.toml", "log.jsonl", "loss.png"):
            if (self._run / name).exists():
                shutil.copy(self._run / name, stage / name)
        with self._wake:
            replaced, self._next = self._next, stage
            self._wake.notify()
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def close(self) -> None:
        """Wait until the last one is there."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        shutil.rmtree(self._run / ".upload", ignore_errors=True)

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._closed)
                stage, self._next = self._next, None
            if stage is None:
                return
            try:
                (_push_fsspec if "://" in self._remote else _push_hub)(stage, self._remote)
                self._say(f"pushed {stage.name} to {self._remote}")
            except (OSError, ValueError, RuntimeError, ImportError, ShardkitError) as error:
                self._say(f"warning: {stage.name} was not pushed to {self._remote}: {str(error).splitlines()[0]}")
            shutil.rmtree(stage, ignore_errors=True)


def _push_hub(stage: Path, repo: str) -> None:
    """One commit: this checkpoint in, older ones out."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, exist_ok=True, private=True)
    api.upload_folder(
        repo_id=repo, folder_path=stage, delete_patterns="checkpoints/*.pt", commit_message=f"Checkpoint {stage.name}"
    )


def _push_fsspec(stage: Path, url: str) -> None:
    """New files under temporary names first; then the checkpoints that this one replaces go."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/checkpoints", exist_ok=True)
    fresh = [path.relative_to(stage).as_posix() for path in sorted(stage.rglob("*")) if path.is_file()]
    for name in fresh:
        fs.put_file(str(stage / name), f"{root}/{name}.part")
        fs.mv(f"{root}/{name}.part", f"{root}/{name}")
    for old in fs.ls(f"{root}/checkpoints", detail=False):
        if _NAME.fullmatch(Path(old).name) and f"checkpoints/{Path(old).name}" not in fresh:
            fs.rm_file(old)
