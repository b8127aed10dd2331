"""Any place that fsspec reaches as a remote: a folder, a mounted drive, S3, GCS."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shardkit.dataset.manifest import MANIFEST_NAME, WORK_DIR, Manifest, ShardInfo
from shardkit.errors import HubError, ManifestError, UsageError
from shardkit.files import open_file, read_small_file, sha256_file
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.remote.interface import RemoteFile, check_small
from shardkit.remote.upload_record import OLD_RECORD_FILE, UploadRecord, is_record

Result = TypeVar("Result")
# Object stores show a file only when it is whole; anywhere else a file is written beside its name and then renamed.
_WHOLE_OR_NOT_THERE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "memory"}


class FsspecRemote:
    """A folder or bucket prefix. A record there holds the size and SHA-256 of each shard that arrived whole.

    It goes when `manifest.json`, which says the same, has come.
    """

    commit_files = 1
    has_commits = False

    def __init__(self, url: str) -> None:
        self.name = public_address(url)
        try:
            self._fs, self._root = open_filesystem(str(Path(url).expanduser()) if "://" not in url else url)
        except ImportError as error:
            raise UsageError(f"{self.name} needs a driver ({error}): for S3, pip install 'shardkit[s3]'") from error
        except ValueError as error:
            raise UsageError(
                f"{self.name} is no place ({error}): write user/name, s3://bucket/folder, ./folder"
            ) from error
        protocol = self._fs.protocol if isinstance(self._fs.protocol, str) else self._fs.protocol[0]
        self.stopping = threading.Event()
        self._root = self._root.rstrip("/")
        self._direct = protocol in _WHOLE_OR_NOT_THERE
        self._record = UploadRecord({})
        self._sizes: dict[str, int] = {}
        self._stated: dict[str, tuple[int, str]] = {}  # what the manifest there says of its shards
        self._lock = threading.Lock()
        # FTP is one connection, on which nothing may come between a request and its answer
        self._turn = threading.Lock() if protocol == "ftp" else contextlib.nullcontext()

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
        return bool(self.files())

    def create(self, *, private: bool) -> None:
        if private:
            raise UsageError(f"{self.name} is not a Hub repo: leave --private out and set the rights there")
        if not self._direct:  # an object store has no folders, and a bucket is not ours to make
            self._call("create", partial(self._fs.makedirs, self._root, exist_ok=True))

    def files(self) -> dict[str, RemoteFile]:
        def list_files() -> dict[str, int]:
            self._fs.invalidate_cache()
            details: dict[str, Any] = {}
            for folder in ("", WORK_DIR):
                details |= self._fs.find(self._at(folder), maxdepth=1, detail=True)
            if not details:
                self._check_is_empty()
            if unsized := [path for path, info in details.items() if info["size"] is None]:
                raise HubError(f"{self.name} does not say how long {unsized[0]} is: no dataset can be checked there")
            return {path[len(self._root) + 1 :]: int(info["size"]) for path, info in details.items()}

        self._sizes = sizes = self._call("list", list_files)
        self._stated = _shards_of(self.read(MANIFEST_NAME)) if MANIFEST_NAME in sizes else {}
        self._record = UploadRecord({file: self.read(file) for file in sizes if is_record(file)})
        arrived = {**self._stated, **self._record.entries}
        return {
            file: RemoteFile(size, arrived[file][1] if file in arrived and arrived[file][0] == size else "")
            for file, size in sizes.items()
        }

    def read(self, file: str) -> bytes:
        check_small(self.name, file, self._sizes.get(file, 0))
        read = self._fs.cat_file if self.local_folder is None else read_small_file  # which waits for no pipe
        return bytes(self._call(f"read {file}", lambda: read(self._at(file))))

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:  # noqa: ARG002 (there is no cache to distrust)
        target = folder / Path(file).name

        def get() -> None:
            if self.local_folder is not None:
                open_file(self._at(file)).close()  # a device would come without an end
            self._fs.get_file(self._at(file), str(target))

        self._call(f"download {file}", get)
        return target, sha256_file(target)

    def upload(self, path: Path, shard: ShardInfo) -> None:
        def put() -> None:
            target = self._first_name(shard.file)
            self._fs.put_file(str(path), target)
            self._fs.invalidate_cache()
            if (size := self._fs.info(target)["size"]) != shard.bytes:
                raise OSError(f"{size:,} of {shard.bytes:,} bytes arrived")
            if self.stopping.is_set():  # the file that was written may be another run's by now
                raise ConnectionAbortedError("stopped")
            if not self._direct:
                self._fs.mv(target, self._at(shard.file))

        self._call(f"upload {shard.file}", put)

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:  # noqa: ARG002
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
        if small.get(MANIFEST_NAME) is not None:
            for file in (
                *self._record.files,
                f"{OLD_RECORD_FILE}.part",
            ):  # of an earlier version
                self._delete(file)
            self._tidy()

    def tag(self, name: str, *, overwrite: bool) -> None:  # noqa: ARG002
        raise UsageError(f"{self.name} is not a Hub repo: leave --tag {name} out")

    def _write(self, file: str, content: bytes) -> None:
        def write() -> None:
            target = self._first_name(file)
            self._fs.pipe_file(target, content)
            if not self._direct:
                self._fs.mv(target, self._at(file))

        self._call(f"write {file}", write)

    def _delete(self, file: str) -> None:
        def delete() -> None:
            try:
                self._fs.rm_file(self._at(file))
            except FileNotFoundError:
                return

        self._call(f"delete {file}", delete)

    def _first_name(self, file: str) -> str:
        """Where `file` is written first: its own place, or, where that would show half a file, beside it."""
        if self._direct:
            return self._at(file)
        self._fs.makedirs(self._at(WORK_DIR), exist_ok=True)
        return self._at(f"{WORK_DIR}/{Path(file).name}.part")

    def _tidy(self) -> None:
        work = self._at(WORK_DIR)
        if not self._direct and self._fs.isdir(work) and not self._call("list", partial(self._fs.ls, work)):
            self._call("tidy", partial(self._fs.rmdir, work))

    def _check_is_empty(self) -> None:
        """Raise why there was nothing to list, if it is another reason: `find` passes over refused connections."""
        try:
            self._fs.ls(self._root)
        except FileNotFoundError:
            return

    def _at(self, file: str) -> str:
        return f"{self._root}/{file}" if file else self._root

    def _call(self, what: str, action: Callable[[], Result]) -> Result:
        def in_turn() -> Result:
            with self._turn:
                return action()

        return with_retries(in_turn, self.name, what, self.stopping)


def _shards_of(manifest: bytes) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of the shards in a manifest, by name; nothing if it cannot be read."""
    try:
        return {shard.file: (shard.bytes, shard.sha256) for shard in Manifest.from_json(manifest).shards}
    except ManifestError:
        return {}  # whoever needs the manifest says what is wrong with it
