"""Files from a remote into a folder, in parallel: each gets its final name when its SHA-256 was checked."""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from shardkit.dataset.llmc import bin_to_npy
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, ShardInfo
from shardkit.dataset.shards import open_shard
from shardkit.errors import DiskFull, HubError
from shardkit.files import atomic_write, format_bytes, free_bytes, sha256_file
from shardkit.remote.interface import Remote
from shardkit.remote.uploader import TransferProgress


def bring_all(
    remote: Remote,
    directory: Path,
    wanted: Sequence[WantedFile],
    hashes: Mapping[str, str],
    known: Mapping[str, ShardInfo],
    workers: int,
    progress: TransferProgress | None,
) -> None:
    """Make every wanted file right: check those that are there, fetch the rest. `hashes` are of the local files."""
    with ThreadPoolExecutor(workers) as pool:
        right = pool.map(lambda item: is_right(directory / item.target, item, hashes.get(item.target)), wanted)
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
    incoming = directory / WORK_DIR / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # of a pull that was killed: unfinished files restart anyway
    incoming.mkdir(parents=True)
    done, lock = 0, threading.Lock()

    def fetch(item: WantedFile) -> None:
        nonlocal done
        download_verified(remote, item, incoming, directory / item.target)
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


def is_right(path: Path, item: WantedFile, sha256: str | None) -> bool:
    """Whether the local file is the wanted one: by hash, or, where nobody knows one, by size."""
    try:
        if item.is_bin:
            return bool(sha256) and sha256_file(path) == sha256
        return path.stat().st_size == item.size and (not sha256 or sha256_file(path) == sha256)
    except OSError:  # not there, or not readable: fetched anew
        return False


def finish_folder(directory: Path, manifest: bytes) -> None:
    path = directory / MANIFEST_NAME
    if not path.exists() or path.read_bytes() != manifest:
        atomic_write(path, manifest)


FETCHES = 3  # of one file, while it arrives with a wrong hash


def download_verified(remote: Remote, item: WantedFile, incoming: Path, target: Path) -> None:
    for attempt in range(FETCHES):
        path, sha256 = remote.fetch(item.file, incoming, again=attempt > 0)
        if path.stat().st_size == item.size and item.sha256 in ("", sha256):
            if item.is_bin:
                path = bin_to_npy(path)
            elif not item.sha256:
                open_shard(path)
            os.replace(path, target)
            return
        path.unlink()
    raise HubError(
        f"{item.file} from {remote.name} arrived {FETCHES} times with other bytes than promised (size or SHA-256): the "
        "copy there is damaged, its owner must push it again with --overwrite"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class WantedFile:
    """A file to have: its name at the remote, its name here, its bytes and SHA-256 ("" unknown) at the remote."""

    file: str
    target: str
    size: int
    sha256: str

    @property
    def is_bin(self) -> bool:
        """Whether it must be converted on arrival."""
        return self.file.endswith(".bin")
