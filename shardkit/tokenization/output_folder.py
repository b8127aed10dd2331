"""The output folder of a run: whose it is, who may write to it, whether the run is complete in it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from shardkit.dataset.check import check_shard
from shardkit.dataset.journal import JOURNAL_FILE, Journal
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest
from shardkit.dataset.shards import SHARD_NAME
from shardkit.errors import ManifestError, OutputError, ShardError, UsageError
from shardkit.files import write_error
from shardkit.sources.open import DEFAULT_SOURCE

_LOCK = "lock"


@contextmanager
def claim(directory: Path, *, overwrite: bool) -> Iterator[None]:
    """Own `directory` while the block runs: made if missing, refused if it is foreign or another process is at work.

    `overwrite` lets a foreign folder pass; what is in it stays until `clear`. Raises `OutputError`.
    """
    try:
        if directory.exists() and not directory.is_dir():
            raise OutputError(f"{directory} is a file: --out expects a folder")
    except OSError as error:  # a name that is too long
        raise write_error(error, directory, 0) from error
    work = directory / WORK_DIR
    ours = (directory / JOURNAL_FILE).exists()
    if directory.is_dir() and not ours and not overwrite:
        _refuse_foreign(directory)
    lock = filelock.FileLock(work / _LOCK, timeout=0)
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        for temp in work.glob("*.tmp"):
            temp.unlink()
    except filelock.Timeout:
        raise OutputError(f"another process is writing to {directory}: wait for it, or choose another --out") from None
    except OSError as error:
        lock.release()
        raise write_error(error, directory, 0) from error
    try:
        yield
    finally:
        lock.release()


def finished(directory: Path, journal: Journal) -> Manifest | None:
    """The manifest if this very run is complete in `directory`; None if there is more to do.

    Checks that every shard that the journal or the manifest names is there with the right size; raises `OutputError`
    for one that is not.
    """
    try:
        for shard in journal.shards:
            check_shard(directory / shard.file, shard)
        if not (directory / MANIFEST_NAME).exists():
            return None
        manifest = Manifest.load(directory)
        for shard in manifest.shards:
            check_shard(directory / shard.file, shard, dtype=manifest.dtype)
    except (ManifestError, ShardError) as error:
        raise OutputError(
            f"{error}; if it was pushed, go on with the same --push, else start again with --overwrite"
        ) from error
    return manifest


def default_prefix(source_id: str) -> str:
    """`edufineweb` for FineWeb-Edu, as `fineweb.py` has it, else the source's own name, made safe."""
    if source_id == DEFAULT_SOURCE:
        return "edufineweb"
    stem = Path(source_id.rstrip("/")).name.split(".")[0]
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return name if name and "train" not in name and "val" not in name else "tokens"


def check_prefix(prefix: str) -> str:
    """`prefix`, if shards named with it can be told apart by scripts that look for `train` and `val` in a name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", prefix) or "train" in prefix or "val" in prefix:
        raise UsageError(
            f"--prefix {prefix!r}: expected letters, digits, '_', '.', '-', and neither 'train' nor 'val' in it "
            "(scripts choose files by those words)"
        )
    return prefix


def _refuse_foreign(directory: Path) -> None:
    try:
        names = sorted(path.name for path in directory.iterdir() if path.name != WORK_DIR)
    except PermissionError as error:
        raise OutputError(f"no permission to read {directory}: choose another --out") from error
    if not names:
        return
    if MANIFEST_NAME in names:
        raise OutputError(
            f"{directory} holds a finished dataset that was not made here: choose another --out, or replace it with "
            "--overwrite"
        )
    raise OutputError(
        f"{directory} is not empty and no run of ours (it holds {names[0]}): choose another --out, or --overwrite to "
        "replace the shards in it"
    )


def clear(directory: Path) -> None:
    """Remove what shardkit made in `directory` before (shards, manifest, working files) and nothing else.

    For `--overwrite`, once everything else about the run is known to be right: a typing error must not cost a dataset.
    """
    (directory / MANIFEST_NAME).unlink(missing_ok=True)  # first: what is left is no longer a complete dataset
    for path in directory.glob("*.npy"):
        if SHARD_NAME.match(path.name):
            path.unlink()
    for path in (directory / WORK_DIR).iterdir():
        if path.name != _LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
