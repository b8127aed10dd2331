"""Checkpoints on their way to the Hub, a bucket or an fsspec place, in a thread: nothing there stops training."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from shardkit import UsageError, public_address
from trainer.checkpoint import is_checkpoint_name, is_hub_repo
from trainer.places import one_line

FIRST_WAIT_SECONDS = 2.0  # after a failed try; then twice as long each time
LONGEST_WAIT_SECONDS = 300.0
_BUCKETS = "hf://buckets/"
_BUCKET = re.compile(r"hf://buckets/(?P<id>[\w.-]+/[\w.-]+)(?P<folder>(/[^/@?#\\]+)*)/?")
LAST_TRIES = 4  # of the last checkpoint, when the run is over


class Uploader:
    """Sends the newest checkpoint and the run's small files to `remote`, one upload at a time, in a thread.

    A checkpoint handed in during an upload waits for its end, or is replaced by a newer one. Whatever ends an upload is
    a printed warning, and it is tried again until it succeeds, or a newer checkpoint takes its place. Hard links in
    `RUN/.upload` hold the files, so that deleting old checkpoints leaves them there.
    """

    def __init__(self, run: Path, remote: str, say: Callable[[str], None]) -> None:
        if not (is_hub_repo(remote) or "://" in remote) or (
            remote.startswith(_BUCKETS) and not _BUCKET.fullmatch(remote)
        ):
            raise UsageError(
                f"--push-checkpoints {remote!r}: expected user/repo on the Hub, hf://buckets/user/name/folder, or a "
                "URL like s3://..."
            )
        self._run, self._remote, self._say = run, remote, say
        self._shown = public_address(remote)
        self._next: Path | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._pushed = self._unsent = ""  # the newest checkpoint that is there, and one that is not
        self._thread = threading.Thread(target=self._upload_all, name="trainer-upload", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path) -> None:
        """Upload a finished checkpoint in the background; returns at once."""
        self._unsent = checkpoint.stem
        try:
            stage = self._stage(checkpoint)
        except OSError as error:
            self._say(f"warning: {checkpoint.stem} is not pushed to {self._shown}: {one_line(error)}")
            return
        with self._wake:
            replaced, self._next = self._next, stage
            self._wake.notify()
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)

    def close(self) -> None:
        """Wait for the last upload to end, and say what is there."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        while self._thread.is_alive():
            self._thread.join(1.0)  # an end to each wait: Python looks for a Ctrl-C after it
        shutil.rmtree(self._run / ".upload", ignore_errors=True)
        self.report()

    def report(self) -> None:
        """Say which checkpoint was pushed last, and which was not."""
        there = f"{self._shown} has {self._pushed or 'no checkpoint of this run'}"
        self._say(f"warning: {there}, {self._unsent} was not pushed" if self._unsent else f"pushed    {there}")

    def _stage(self, checkpoint: Path) -> Path:
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
        return stage

    def _upload_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next is not None or self._closed)
                stage, self._next = self._next, None
            if stage is None:
                return
            self._upload(stage)
            shutil.rmtree(stage, ignore_errors=True)

    def _upload(self, stage: Path) -> None:
        """Try until it is there, or a newer one waits, or the run is over and the last tries were in vain."""
        tries = last_tries = 0
        while True:
            try:
                _push(stage, self._remote)
            except BaseException as error:  # noqa: BLE001 (a client's panic too: nothing may end this thread)
                tries += 1
                self._say(f"warning: {stage.name} was not pushed to {self._shown} (try {tries}): {one_line(error)}")
            else:
                self._pushed = stage.name
                self._unsent = "" if self._unsent == stage.name else self._unsent
                self._say(f"pushed {stage.name} to {self._shown}")
                return
            with self._wake:
                over = self._closed
                last_tries += over
                if last_tries == LAST_TRIES:
                    return
                seconds = FIRST_WAIT_SECONDS * 2 ** min((last_tries or tries) - 1, 10)
                self._wake.wait_for(partial(self._has_news, over), min(seconds, LONGEST_WAIT_SECONDS))
                if self._next is not None:
                    return

    def _has_news(self, was_closed: bool) -> bool:
        return self._next is not None or self._closed != was_closed


def _push(stage: Path, remote: str) -> None:
    if match := _BUCKET.fullmatch(remote):
        _push_bucket(stage, match["id"], match["folder"].strip("/"))
    else:
        (_push_fsspec if "://" in remote else _push_hub)(stage, remote)


def _push_hub(stage: Path, repo: str) -> None:
    """One commit adds this checkpoint and deletes older ones."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, exist_ok=True, private=True)
    api.upload_folder(
        repo_id=repo, folder_path=stage, delete_patterns="checkpoints/*.pt", commit_message=f"Checkpoint {stage.name}"
    )


def _push_bucket(stage: Path, bucket: str, folder: str) -> None:
    """All files are named in one call when their bytes are there; then the checkpoints that this one replaces go."""
    from huggingface_hub import HfApi

    api, head = HfApi(), f"{folder}/" if folder else ""
    api.create_bucket(bucket, exist_ok=True, private=True)
    files = {head + path.relative_to(stage).as_posix(): path for path in sorted(stage.rglob("*")) if path.is_file()}
    api.batch_bucket_files(bucket, add=[(path, name) for name, path in files.items()])
    there = [item.path for item in api.list_bucket_tree(bucket, f"{head}checkpoints/", recursive=True)]
    old = [name for name in there if is_checkpoint_name(Path(name).name) and name not in files]
    if old:
        api.batch_bucket_files(bucket, delete=old)


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
