"""`pull`: a dataset from a remote into a folder, in parallel, resumable, every file checked against its SHA-256.

A file gets its final name only when its hash was checked, and `manifest.json` comes last: its presence means that the
pull is complete. What is there already and right is never fetched again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest
from shardkit.errors import HubError, ManifestError, OutputError, ShardError, UsageError
from shardkit.remote.address import open_remote
from shardkit.remote.bare_shards import pull_bare
from shardkit.remote.download import WantedFile, bring_all, finish_folder
from shardkit.remote.listing import Selection, check_listing, published
from shardkit.remote.uploader import TransferProgress


def pull(
    repo: str,
    directory: str | Path | None = None,
    *,
    revision: str | None = None,
    split: str | None = None,
    shards: tuple[int, int] | None = None,
    workers: int = 8,
    progress: TransferProgress | None = None,
) -> Manifest:
    """Bring the dataset at `repo` into `directory` (default: the repo's own name) and return its manifest.

    `split` and `shards`, a half-open range of shard indices, choose a part: then `manifest.json` lists that part and
    what earlier pulls of the same dataset brought, and a later pull of more fetches only the rest. Safe to repeat after
    any failure; all that is there is hashed again, so a damaged file is found and fetched anew.

    A repo of bare `.npy` or llm.c `.bin` shards without a manifest is pulled too, with a warning: `.bin` files become
    `.npy` shards, and the manifest is made here. `progress(file, done_bytes, total_bytes)` follows each fetched file.

    Raises `HubError`, `AuthError`, `DiskFull`, `OutputError` (the folder holds another dataset), `UsageError`.
    """
    remote = open_remote(repo, revision=revision)
    there = remote.files()
    directory = Path(directory if directory is not None else remote.default_folder)
    if remote.local_folder == directory.resolve():
        raise UsageError(f"{repo} is the folder to pull into itself: give another folder")
    whole_there = published(remote, there)
    with _only_pull(directory):
        local = _local_manifest(directory)
        if whole_there is None:
            return pull_bare(remote, there, directory, local, Selection(split, shards), workers, progress)
        text, whole = whole_there
        part = _with_local(whole, Selection(split, shards).of(whole, remote.name), local, directory)
        wanted = [WantedFile(s.file, s.file, s.bytes, s.sha256) for s in part.shards]
        check_listing(remote, wanted, there)
        known = {s.file: s for s in local.shards} if local else {}
        bring_all(remote, directory, wanted, {w.target: w.sha256 for w in wanted}, known, workers, progress)
        part.check_files(directory)
        finish_folder(directory, text if part is whole else part.to_json().encode())
    return part


def _local_manifest(directory: Path) -> Manifest | None:
    if not (directory / MANIFEST_NAME).exists():
        return None
    try:
        return Manifest.load(directory)
    except ManifestError as error:
        raise OutputError(f"{error}; or delete it, and the pull keeps every shard that is right") from error


def _with_local(whole: Manifest, part: Manifest, local: Manifest | None, directory: Path) -> Manifest:
    """`part` and what the folder's own manifest lists; refuses a folder that holds another dataset."""
    if local is None:
        return part
    ours = {(s.file, s.sha256) for s in whole.shards}
    for shard in local.shards:
        if (shard.file, shard.sha256) not in ours:
            raise OutputError(
                f"{directory} holds another dataset ({shard.file} is not the one to pull): pull into another folder, "
                f"or delete {directory / MANIFEST_NAME} to have its shards replaced"
            )
    listed = {s.file for s in (*part.shards, *local.shards)}
    if len(listed) == len(whole.shards):
        return whole
    return dataclasses.replace(whole, shards=tuple(s for s in whole.shards if s.file in listed))


@contextmanager
def _only_pull(directory: Path) -> Iterator[None]:
    """Hold the folder: two pulls into one would take each other's unfinished files away."""
    work = directory / WORK_DIR
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / "pull.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"another pull into {directory} is running: wait for it, or choose another folder") from None
    except OSError as error:
        raise OutputError(f"cannot write to {directory} ({error.strerror}): choose another folder") from error
    try:
        yield
    except ShardError as error:
        raise HubError(f"{error}; what the remote holds is not a dataset that shardkit can use") from error
    finally:
        if (directory / MANIFEST_NAME).exists():
            shutil.rmtree(work / "incoming", ignore_errors=True)
        lock.release()
        (work / "pull.lock").unlink(missing_ok=True)
        if not any(work.iterdir()):
            work.rmdir()
