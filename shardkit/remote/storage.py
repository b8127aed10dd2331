"""Any place that fsspec reaches as a remote: a folder, a mounted drive, S3, GCS."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, ShardInfo
from shardkit.errors import HubError, UsageError, missing_package
from shardkit.files import open_file, read_small_file, sha256_file
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.remote.claim import create_file, still_ours
from shardkit.remote.interface import CLAIM_FILE, PlaceChanged, RemoteFile, check_small
from shardkit.remote.upload_record import UploadRecord, is_record, stated_shards

Result = TypeVar("Result")
# Object stores show a file only when it is whole; anywhere else a file is written beside its name and then renamed.
_WHOLE_OR_NOT_THERE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"}


class FsspecRemote:
    """A folder or bucket prefix. A record there holds the size and SHA-256 of each shard that arrived whole, until
    `manifest.json`, which says the same, has come."""

    commit_files = 1
    has_commits = False

    def __init__(self, url: str) -> None:
        self.name = public_address(url)
        try:
            self._fs, self._root = open_filesystem(str(Path(url).expanduser()) if "://" not in url else url)
        except ImportError as error:
            raise missing_package(error, self.name) or UsageError(f"{self.name} needs a driver: {error}") from None
        except ValueError as error:
            raise UsageError(f"{self.name} is no place ({error}): write user/name, s3://bucket/x, ./folder") from None
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.stopping = threading.Event()
        self._root = self._root.rstrip("/")
        self._direct = protocol in _WHOLE_OR_NOT_THERE
        self._only_reads = protocol in ("http", "https")
        self._record = UploadRecord({})
        self._seen: dict[str, Any] = {}  # the listing of the last `files`
        self._mark: bytes | None = None
        self._writer = uuid.uuid4().hex[:8]  # in the names of half-written files: two who push write two files
        self._stated: dict[str, tuple[int, str]] = {}  # what the manifest there says of its shards
        self._lock = threading.Lock()
        # FTP is one connection, on which nothing may come between a request and its answer
        self._turn = threading.Lock() if protocol == "ftp" else nullcontext()

    @property
    def local_folder(self) -> Path | None:
        """The folder, if it is one of this machine."""
        return Path(self._root).resolve() if "file" in self._fs.protocol else None

    @property
    def revision(self) -> str:
        return ""

    @property
    def default_folder(self) -> str:
        return public_address(self._root).rpartition("/")[2]

    def exists(self) -> bool:
        return True

    def create(self, *, private: bool) -> None:
        if private:
            raise UsageError(f"{self.name} is not a Hub repo: leave --private out and set the rights there")
        if self._only_reads:
            raise UsageError(
                f"{self.name} is an address that can only be read: push to user/name (the Hub), a folder, or what its "
                "server offers for writing (s3://, gs://, sftp://)"
            )
        if not self._direct:  # an object store has no folders, and a bucket is not ours to make
            self._call("create", partial(self._fs.makedirs, self._root, exist_ok=True))

    def files(self, listed: Any = None) -> dict[str, RemoteFile]:  # noqa: ARG002 (no listing has it all)
        def look() -> dict[str, RemoteFile]:
            self._fs.invalidate_cache()
            details: dict[str, Any] = {}
            for folder in (WORK_DIR, ""):  # a manifest comes before the claim there goes: one of them is seen
                details |= self._fs.find(self._at(folder), maxdepth=1, detail=True)
            if not details:
                self._check_is_empty()
            if unsized := [path for path, info in details.items() if info["size"] is None]:
                raise HubError(f"{self.name} does not say how long {unsized[0]} is: no dataset can be checked there")
            self._seen = {path[len(self._root) + 1 :]: info for path, info in details.items()}
            names = [file for file in self._seen if is_record(file) or file == MANIFEST_NAME]
            small = {file: self._read(file) for file in names}
            self._stated = stated_shards(small.pop(MANIFEST_NAME, b"{}"))
            self._record = UploadRecord(small)
            arrived = {**self._stated, **self._record.entries}
            sizes = {file: int(info["size"]) for file, info in self._seen.items()}
            return {
                file: RemoteFile(size, arrived[file][1] if file in arrived and arrived[file][0] == size else "")
                for file, size in sizes.items()
            }

        def look_again() -> dict[str, RemoteFile]:
            try:
                return look()
            except FileNotFoundError:  # somebody else may have taken a file away since it was listed
                return look()

        return self._call("list", look_again)

    def subfolders(self, folder: str) -> dict[str, Any]:
        return dict.fromkeys(self._call("list", partial(_subfolders, self._fs, self._at(folder))))

    def read(self, file: str) -> bytes:
        return self._call(f"read {file}", partial(self._read, file))

    def _read(self, file: str) -> bytes:
        check_small(self.name, file, int(self._seen[file]["size"]) if file in self._seen else 0)
        read = self._fs.cat_file if self.local_folder is None else read_small_file  # which waits for no pipe
        return bytes(read(self._at(file)))

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:  # noqa: ARG002 (there is no cache to distrust)
        target = folder / Path(file).name

        def get() -> None:
            if self.local_folder is not None:
                open_file(self._at(file)).close()  # a device would come without an end
            self._fs.get_file(self._at(file), str(target))

        self._call(f"download {file}", get)
        return target, sha256_file(target)

    def claimed_by(self) -> bytes | None:
        def get() -> bytes | None:
            try:
                return self._read(CLAIM_FILE)
            except FileNotFoundError:
                return None

        return self._call(f"read {CLAIM_FILE}", get)

    def claim(self, mark: bytes, held: bytes | None, small: Mapping[str, bytes | None], message: str) -> None:
        if held != mark:
            seen = self._seen
            if held is not None:
                self._delete(CLAIM_FILE)
            if not self._call(f"write {CLAIM_FILE}", partial(self._create, CLAIM_FILE, mark)):
                raise PlaceChanged(f"{self.name} has changed meanwhile")
            self._mark = mark
            self.files()
            if _without_claim(self._seen) != _without_claim(seen):  # others were there between the look and the claim
                raise PlaceChanged(f"{self.name} has changed meanwhile")
        self._mark = mark
        self.commit([], small, message)

    def release(self) -> None:
        if self._mark is not None and self.claimed_by() == self._mark:
            self._delete(CLAIM_FILE)

    def discard(self, shards: Sequence[ShardInfo]) -> None:
        """Nothing to do: an upload replaces what is there."""

    def prepare(self, files: Sequence[tuple[Path, ShardInfo]]) -> None:
        """Nothing to do: there is nothing to ask about."""

    def upload(self, path: Path, shard: ShardInfo) -> str:
        def put() -> None:
            if not still_ours(self, self._mark, [shard], {}):
                return
            target = self._first_name(shard.file)
            self._fs.put_file(str(path), target)
            self._fs.invalidate_cache()
            if (size := self._fs.info(target)["size"]) != shard.bytes:
                raise OSError(f"{size:,} of {shard.bytes:,} bytes arrived")
            if self.stopping.is_set():  # the file that was written may be another run's by now
                raise ConnectionAbortedError("stopped")
            if not self._direct and still_ours(self, self._mark, [shard], {}):
                self._fs.mv(target, self._at(shard.file))
            elif not self._direct:
                self._tidy()

        self._call(f"upload {shard.file}", partial(self._unless_complete, put, [shard]))
        return ""

    def received(self, shard: ShardInfo, receipt: str) -> None:
        """Nothing to do: it is there."""

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:  # noqa: ARG002
        if not still_ours(self, self._mark, shards, small):
            return
        with self._lock:
            arrived = {shard.file: (shard.bytes, shard.sha256) for shard in shards}
            if small.get(MANIFEST_NAME, b"") is None:  # from here on the record alone says what has arrived
                arrived = {file: entry for file, entry in self._stated.items() if file not in small} | arrived
            for file, segment in (self._record.remove(small) | self._record.add(arrived)).items():
                self._write(file, segment)
        for file, content in small.items():
            if content is not None:
                self._write(file, content)
            else:
                self._delete(file)
        # What completed the dataset may have been another push of it, while we wrote.
        if small.get(MANIFEST_NAME) is not None or (shards and not still_ours(self, self._mark, shards, {})):
            for file in self._record.files:
                self._delete(file)
            self._tidy()

    def tag(self, name: str, *, overwrite: bool) -> None:  # noqa: ARG002
        raise UsageError(f"{self.name} is not a Hub repo: leave --tag={name} out")

    def _write(self, file: str, content: bytes) -> None:
        def write() -> None:
            target = self._first_name(file)
            self._fs.pipe_file(target, content)
            if not self._direct:
                self._fs.mv(target, self._at(file))

        self._call(f"write {file}", partial(self._unless_complete, write, []))

    def _unless_complete(self, write: Callable[[], None], shards: Sequence[ShardInfo]) -> None:
        """Run `write`; what another push of the same, which has completed it, tidied away meanwhile is no failure."""
        try:
            write()
        except (FileNotFoundError, FileExistsError):  # the folder of working files comes and goes
            if still_ours(self, self._mark, shards, {}):
                raise

    def _delete(self, file: str) -> None:
        def delete() -> None:
            try:
                self._fs.rm_file(self._at(file))
            except FileNotFoundError:
                return

        self._call(f"delete {file}", delete)

    def _create(self, file: str, content: bytes) -> bool:
        """Write `file` only if there is none, all of it at once where the place can; False if there is one."""
        if self.local_folder is None:
            try:
                self._fs.pipe_file(self._at(file), content, mode="create")
            except FileExistsError:
                return False
            return True
        return create_file(Path(self._first_name(file)), Path(self._at(file)), content)

    def _first_name(self, file: str) -> str:
        """Where `file` is written first: its own place, or, where that would show half a file, beside it."""
        if self._direct:
            return self._at(file)
        self._fs.makedirs(self._at(WORK_DIR), exist_ok=True)
        return self._at(f"{WORK_DIR}/{Path(file).name}.{self._writer}.part")

    def _tidy(self) -> None:
        if not self._direct:
            self._call("tidy", partial(_tidy, self._fs, self._at(WORK_DIR)))

    def _check_is_empty(self) -> None:
        """Raise why there was nothing to list, if it is another reason: `find` passes over refused connections."""
        with suppress(FileNotFoundError):
            self._fs.ls(self._root)

    def _at(self, file: str) -> str:
        return f"{self._root}/{file}" if file else self._root

    def _call(self, what: str, action: Callable[[], Result]) -> Result:
        def in_turn() -> Result:
            with self._turn:
                return action()

        return with_retries(in_turn, self.name, what, self.stopping)


def _subfolders(filesystem: Any, path: str) -> list[str]:
    """The names of the folders at `path`."""
    filesystem.invalidate_cache()
    try:
        found = filesystem.ls(path, detail=True)
    except FileNotFoundError:
        return []
    folders = [item["name"] for item in found if item["type"] == "directory" or "destination" in item]  # of a link
    return [str(name).rstrip("/").rpartition("/")[2] for name in folders]


def _tidy(filesystem: Any, work: str) -> None:
    """Remove what killed pushes left half written, and the folder of working files if it is empty then."""
    filesystem.invalidate_cache()
    with suppress(OSError):  # it is not there, or not empty
        for name in filesystem.ls(work, detail=False):
            if name.endswith(".part"):
                filesystem.rm_file(name)
        filesystem.rmdir(work)


def _without_claim(listing: Mapping[str, Any]) -> dict[str, Any]:
    """The listing but for the claim, and files that are only half written."""
    return {file: info for file, info in listing.items() if file != CLAIM_FILE and not file.endswith(".part")}
