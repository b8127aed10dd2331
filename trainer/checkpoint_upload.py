"""Checkpoints on their way to the Hub or an fsspec place, in a thread: nothing that happens there stops training."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from shardkit import ShardkitError, UsageError, public_address
from trainer.checkpoint import CheckpointError, is_checkpoint_name, is_hub_repo


class Uploader:
    """Sends the newest checkpoint and the run's small files to `remote`, one upload at a time, in a thread.

    A checkpoint handed in during an upload waits for its end, or is replaced by a newer one. A failed upload is a
    printed warning. Hard links in `RUN/.upload` hold the files, so that deleting old checkpoints leaves them there.
    """

    def __init__(self, run: Path, remote: str, say: Callable[[str], None]) -> None:
        if "://" not in remote and not is_hub_repo(remote):
            raise UsageError(f"--push-checkpoints {remote!r}: expected user/repo on the Hub, or a URL like s3://...")
        self._run, self._remote, self._say = run, remote, say
        self._next: Path | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._upload_all, name="trainer-upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Upload a finished checkpoint in the background; returns at once."""
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
        """Wait for the last upload to end."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        shutil.rmtree(self._run / ".upload", ignore_errors=True)

    def _upload_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._closed)
                stage, self._next = self._next, None
            if stage is None:
                return
            try:
                (_push_fsspec if "://" in self._remote else _push_hub)(stage, self._remote)
                self._say(f"pushed {stage.name} to {public_address(self._remote)}")
            except (OSError, ValueError, RuntimeError, ImportError, ShardkitError) as error:
                shown, why = public_address(self._remote), (str(error) or type(error).__name__).splitlines()[0]
                self._say(f"warning: {CheckpointError(f'{stage.name} was not pushed to {shown}: {why}')}")
            shutil.rmtree(stage, ignore_errors=True)


def _push_hub(stage: Path, repo: str) -> None:
    """One commit adds this checkpoint and deletes older ones."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, exist_ok=True, private=True)
    api.upload_folder(
        repo_id=repo, folder_path=stage, delete_patterns="checkpoints/*.pt", commit_message=f"Checkpoint {stage.name}"
    )


def _push_fsspec(stage: Path, url: str) -> None:
    """Each file under a temporary name, then renamed; then the checkpoints that this one replaces are deleted."""
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    fs.makedirs(f"{root}/checkpoints", exist_ok=True)
    names = [path.relative_to(stage).as_posix() for path in sorted(stage.rglob("*")) if path.is_file()]
    for name in names:
        fs.put_file(str(stage / name), f"{root}/{name}.part")
        fs.mv(f"{root}/{name}.part", f"{root}/{name}")
    for old in fs.ls(f"{root}/checkpoints", detail=False):
        if is_checkpoint_name(Path(old).name) and f"checkpoints/{Path(old).name}" not in names:
            fs.rm_file(old)
