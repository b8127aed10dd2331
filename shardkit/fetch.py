"""`pull`: a dataset from a remote into a folder, in parallel, resumable, every file checked against its SHA-256.

A file gets its final name only when its hash was checked, and `manifest.json` comes last: its presence means that the
pull is complete. What is there already and right is never fetched again.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from shardkit.arrival import check_listing, fetch_right, published
from shardkit.bare import Wanted, bare_manifest, bare_shards
from shardkit.errors import DiskFull, HubError, ManifestError, OutputError, ShardError, UsageError
from shardkit.files import atomic_write, format_bytes, free_bytes, sha256_file
from shardkit.manifest import MANIFEST_NAME, Manifest, ShardInfo
from shardkit.outbox import Progress
from shardkit.remotes import WORK_FOLDER, Remote, RemoteFile, open_remote


def pull(
    repo: str,
    directory: str | Path | None = None,
    *,
    revision: str | None = None,
    split: str | None = None,
    shards: tuple[int, int] | None = None,
    workers: int = 8,
    progress: Progress | None = None,
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
            return _pull_bare(remote, there, directory, local, _Selection(split, shards), workers, progress)
        text, whole = whole_there
        part = _with_local(whole, _Selection(split, shards).of(whole, remote.name), local, directory)
        wanted = [Wanted(s.file, s.file, s.bytes, s.sha256) for s in part.shards]
        check_listing(remote, wanted, there)
        known = {s.file: s for s in local.shards} if local else {}
        _bring(remote, directory, wanted, {w.target: w.sha256 for w in wanted}, known, workers, progress)
        part.check_files(directory)
        _finish(directory, text if part is whole else part.to_json().encode())
    return part


@dataclasses.dataclass(frozen=True, slots=True)
class _Selection:
    split: str | None
    shards: tuple[int, int] | None

    def takes(self, split: str, index: int) -> bool:
        low, high = self.shards or (0, index + 1)
        return (self.split is None or split == self.split) and low <= index < high

    def of(self, whole: Manifest, name: str) -> Manifest:
        if self.split is None and self.shards is None:
            return whole
        chosen = tuple(s for s in whole.shards if self.takes(s.split, s.index))
        if not chosen:
            have = ", ".join(
                f"{split} ({shards[0].index}:{shards[-1].index + 1})" for split, shards in whole.splits.items()
            )
            raise UsageError(f"{name} has no shard that --split and --shards choose; it has {have}")
        return whole if len(chosen) == len(whole.shards) else dataclasses.replace(whole, shards=chosen)


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


def _bring(
    remote: Remote,
    directory: Path,
    wanted: Sequence[Wanted],
    hashes: Mapping[str, str],
    known: Mapping[str, ShardInfo],
    workers: int,
    progress: Progress | None,
) -> None:
    """Make every wanted file right: check those that are there, fetch the rest. `hashes` are of the local files."""
    with ThreadPoolExecutor(workers) as pool:
        right = pool.map(lambda item: _is_right(directory / item.target, item, hashes.get(item.target)), wanted)
        todo = [item for item, good in zip(wanted, right, strict=True) if not good]
    if not todo:
        return
    if any(item.target in known for item in todo):
        (directory / MANIFEST_NAME).unlink(missing_ok=True)  # it vouches for a file that is not right
    total = sum(item.size for item in todo)
    if total > (free := free_bytes(directory)):
        raise DiskFull(
            f"no room in {directory}: {format_bytes(total)} are to come, {format_bytes(free)} are free; make room, or "
            "pull a part with --split or --shards"
        )
    incoming = directory / WORK_FOLDER / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # of a pull that was killed: unfinished files restart anyway
    incoming.mkdir(parents=True)
    done, lock = 0, threading.Lock()

    def fetch(item: Wanted) -> None:
        nonlocal done
        fetch_right(remote, item, incoming, directory / item.target)
        with lock:
            done += item.size
            if progress is not None:
                progress(item.target, done, total)

    with ThreadPoolExecutor(workers, thread_name_prefix="shardkit-pull") as pool:
        futures = [pool.submit(fetch, item) for item in todo]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
        except BaseException:
            remote.stopping.set()  # cuts the waits between tries; what has arrived stays
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_right(path: Path, item: Wanted, sha256: str | None) -> bool:
    """Whether the local file is the wanted one: by hash, or, where nobody knows one, by size."""
    try:
        if item.is_bin:
            return bool(sha256) and sha256_file(path) == sha256
        return path.stat().st_size == item.size and (not sha256 or sha256_file(path) == sha256)
    except OSError:  # not there, or not readable: fetched anew
        return False


def _pull_bare(
    remote: Remote,
    there: Mapping[str, RemoteFile],
    directory: Path,
    local: Manifest | None,
    selection: _Selection,
    workers: int,
    progress: Progress | None,
) -> Manifest:
    wanted, hashes = bare_shards(remote.name, there, selection.takes, local)
    warnings.warn(
        f"{remote.name} has no {MANIFEST_NAME}: hashes were not checked by the publisher, the manifest is made here",
        stacklevel=3,
    )
    known = {s.file: s for s in local.shards} if local else {}
    if local is not None and (other := set(known) - {item.target for item in wanted}):
        raise OutputError(
            f"{directory} also holds {min(other)}, which is not to be pulled: pull all of it, or choose another folder"
        )
    _bring(remote, directory, wanted, hashes, known, workers, progress)
    manifest = bare_manifest(directory, wanted, remote.name, remote.revision)
    _finish(directory, manifest.to_json().encode())
    return manifest


def _finish(directory: Path, manifest: bytes) -> None:
    path = directory / MANIFEST_NAME
    if not path.exists() or path.read_bytes() != manifest:
        atomic_write(path, manifest)


@contextmanager
def _only_pull(directory: Path) -> Iterator[None]:
    """Hold the folder: two pulls into one would take each other's unfinished files away."""
    work = directory / WORK_FOLDER
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
