"""Files from a remote into a folder, in parallel: each gets its final name when its SHA-256 was checked."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from shardkit.dataset.check import check_shard
from shardkit.dataset.formats.llmc import bin_to_npy
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest, ShardInfo
from shardkit.dataset.shards import open_shard
from shardkit.dataset.tokenizer_file import (
    TOKENIZER_NAME,
    file_sha256,
    own_tokenizer_paths,
    read_tokenizer_files,
    tokenizer_files,
)
from shardkit.errors import DiskFull, HubError, ShardError
from shardkit.files import atomic_write, format_bytes, free_bytes, read_small_file, remove_tree, write_error
from shardkit.hub_answers import or_mirror
from shardkit.remote.interface import Remote, RemoteFile
from shardkit.remote.threads import TransferThreads
from shardkit.remote.uploader import TransferProgress
from shardkit.waits import ended, join, result_of

_WATCH_SECONDS = 0.5
FETCHES = 3  # of one file, while it arrives with a wrong hash


@dataclasses.dataclass(frozen=True, slots=True)
class WantedFile:
    """A shard on its way: what it must be here, and its file at the remote (name, bytes, SHA-256 or "").

    The two differ where a bare `.bin` file becomes a shard on arrival. Of a bare shard nothing but its name need be
    known: `shard.sha256` is then empty, and `shard.bytes` 0 if it is still to be made of a `.bin` file.
    """

    shard: ShardInfo
    file: str
    size: int
    sha256: str

    @classmethod
    def of(cls, shard: ShardInfo) -> WantedFile:
        """A shard that is at the remote as it must be here."""
        return cls(shard, shard.file, shard.bytes, shard.sha256)

    @property
    def is_bin(self) -> bool:
        """Whether it must be converted on arrival."""
        return self.file.endswith(".bin")


def fetch_tokenizer(
    remote: Remote, files: Mapping[str, RemoteFile], directory: Path, manifest: Manifest
) -> dict[str, bytes]:
    """Name and content of the files of the dataset's own tokenizer; none if they are in `directory`, or the remote has
    none, or another."""
    info, listed = manifest.tokenizer, files.get(TOKENIZER_NAME)
    if info is None or listed is None or listed.sha256 not in ("", file_sha256(info)):
        return {}
    return {} if read_tokenizer_files(directory, info) else tokenizer_files(info, remote.read(TOKENIZER_NAME))


def replaced_files(directory: Path, local: Manifest, kept: Iterable[ShardInfo]) -> list[Path]:
    """What goes of the dataset that the manifest `local` in `directory` lists, where one of which the shards `kept` are
    right comes in its place, in that order; none if every shard of it is among them. Nothing else there is ours."""
    right = {(shard.file, shard.sha256) for shard in kept}
    shards = [directory / shard.file for shard in local.shards if (shard.file, shard.sha256) not in right]
    if not shards:
        return []
    tokenizer = own_tokenizer_paths(directory, local.tokenizer) if local.tokenizer else []
    manifest = directory / MANIFEST_NAME  # first: what is left is no longer a complete dataset
    return [manifest, *tokenizer, *shards, directory / JOURNAL_FILE]


def download_files(
    remote: Remote,
    directory: Path,
    wanted: Sequence[WantedFile],
    listed: Collection[str],
    workers: int,
    progress: TransferProgress | None,
    *,
    replaced: Sequence[Path] = (),
) -> None:
    """Make every wanted file in `directory` right: check those that are there, fetch the others.

    `listed` are the files that the folder's own manifest names: it goes if one of them is not right. The files
    `replaced` are removed first. Raises `DiskFull` before anything is removed or fetched, `HubError` or `AuthError`.
    """
    with TransferThreads(workers, "shardkit-pull") as threads:
        going = set(replaced)
        stay = [item for item in wanted if directory / item.shard.file not in going]
        checks = [threads.submit(partial(is_right, directory / item.shard.file, item)) for item in stay]
        right = {item.file for item, check in zip(stay, checks, strict=True) if result_of(check)}
        missing = [item for item in wanted if item.file not in right]
        total = sum(item.size for item in missing)
        if missing and total > (free := free_bytes(directory) + _bytes_of(replaced)):
            raise DiskFull(
                f"no room in {directory}: {format_bytes(total)} are to come, {format_bytes(free)} are free; make room, "
                "or pull a part with --split or --shards"
            )
        if any(item.shard.file in listed for item in missing):
            (directory / MANIFEST_NAME).unlink(missing_ok=True)
        for path in replaced:
            path.unlink(missing_ok=True)
        if not missing:
            return
        unfinished = directory / WORK_DIR / "incoming"
        remove_tree(unfinished)  # of a pull that was killed: its files restart anyway
        unfinished.mkdir(parents=True)
        incoming = Path(tempfile.mkdtemp(dir=unfinished))  # an abandoned thread must not find our files under its names

        def fetch(item: WantedFile) -> None:
            download_verified(remote, item, incoming, directory / item.shard.file)
            arrivals.count(item)

        with _Arrivals(incoming, len(missing), total, progress) as arrivals:
            try:
                fetches = [threads.submit(partial(fetch, item)) for item in missing]
                for future in ended(fetches):
                    future.result()
            except BaseException:
                remote.stopping.set()  # cuts the waits between tries, and what is arriving; what has arrived stays
                raise


class _Arrivals:
    """Tells `progress` how many of `total` bytes have come: of whole files, and, twice a second, of those that grow in
    the folder `incoming`. A context manager."""

    def __init__(self, incoming: Path, files: int, total: int, progress: TransferProgress | None) -> None:
        self._incoming, self._files, self._total, self._progress = incoming, files, total, progress
        self._whole = self._told = 0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="shardkit-watch", daemon=True)

    def __enter__(self) -> _Arrivals:
        if self._progress is not None:
            self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._progress is not None:
            join(self._watcher)

    def count(self, item: WantedFile) -> None:
        """A file is whole, and no longer in the folder."""
        with self._lock:
            self._whole += item.size
            self._tell(item.shard.file, 0)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            with self._lock:
                self._tell(f"{self._files:,} files", _bytes_in(self._incoming))

    def _tell(self, file: str, arriving: int) -> None:
        self._told = max(self._told, min(self._whole + arriving, self._total))  # what came wrong comes again
        if self._progress is not None:
            self._progress(file, self._told, self._total)


def _bytes_in(folder: Path) -> int:
    """The bytes of all files under a folder in which others work."""
    return _bytes_of(folder.rglob("*"))


def _bytes_of(paths: Iterable[Path]) -> int:
    """The bytes of those that are files, as far as they are still there."""
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def is_right(path: Path, item: WantedFile) -> bool:
    """Whether the local file is the wanted one: by its hash, or, where nobody knows one, by its size."""
    try:
        check_shard(path, item.shard, hashed=True)
    except ShardError:  # missing, damaged or not readable: fetched anew
        return False
    return True


def download_verified(remote: Remote, item: WantedFile, incoming: Path, target: Path) -> None:
    """Fetch one file into the folder `incoming`, check it, and only then move it to `target`.

    Raises `HubError` if it arrives with another size or SHA-256 again and again.
    """
    path = fetch_right(remote, item, incoming)
    if path is None:
        raise HubError(
            f"{item.file} from {remote.name} arrived {FETCHES} times with other bytes than promised (size or SHA-256): "
            "pull again later; if it stays so, the copy there is damaged, and its owner mends it with "
            f"`shardkit push --repair`{or_mirror(remote.name)}"
        )
    if item.is_bin:
        path = bin_to_npy(path)
    elif not item.sha256:
        open_shard(path)
    try:
        os.replace(path, target)
    except OSError as error:  # a folder of that name
        raise write_error(error, target, 0) from None


def fetch_right(remote: Remote, item: WantedFile, incoming: Path) -> Path | None:
    """Fetch one file into the folder `incoming`, again if it arrives wrong; None if it does so `FETCHES` times."""
    for attempt in range(FETCHES):
        path, sha256 = remote.fetch(item.file, incoming, again=attempt > 0)
        if path.stat().st_size == item.size and item.sha256 in ("", sha256):
            return path
        path.unlink()
    return None


def write_manifest(directory: Path, manifest: bytes) -> None:
    """Put `manifest.json` into `directory`, unless that very one is there."""
    path = directory / MANIFEST_NAME
    if not path.exists() or read_small_file(path) != manifest:
        atomic_write(path, manifest)
