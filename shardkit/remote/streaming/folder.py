"""What lies in a cache folder besides shards: the files by which readers and their downloader speak. No network.

    FOLDER/x_train_000001.npy            a shard under its final name
    FOLDER/.shardkit/readers/ID.lock     a reader's lease: locked while its process lives (`locks.py`)
    FOLDER/.shardkit/readers/ID.json     what that reader needs, and its bound. Only the reader writes it
    FOLDER/.shardkit/downloader.lock     locked while a downloader lives, by its process
    FOLDER/.shardkit/status.json         what the downloader has verified, and what failed
    FOLDER/.shardkit/dataset.json        the manifest that all running readers use, and its pinned revision
    FOLDER/.shardkit/edges/              ends of shards that have passed, in a folder a dataset; readers write them

Each JSON file is replaced, never written in place, so nobody reads half a file. None is made durable: they mean nothing
after a power loss. The locks belong to a process, so a forked worker has none of its parent's. The folder must be on a
disk of the node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shardkit.cache_home import cache_folder
from shardkit.dataset.manifest import WORK_DIR, Manifest
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import OutputError
from shardkit.files import read_small_file, write_error
from shardkit.lock_owners import OWNER_SUFFIX
from shardkit.locks import ProcessLock, is_locked, lock_for_process
from shardkit.redaction import public_address
from shardkit.remote.address import BUCKETS, hub_place

Record = TypeVar("Record", "Lease", "Status", "Dataset")
_SPARE_BYTES = 1 << 16  # of the folder's bound: leases and the status


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """What a reader needs. `serial` counts its changes; `dataset` is the digest that it opened, "" before."""

    id: str
    serial: int = 0
    wants: list[str] = field(default_factory=list)
    cache_bytes: int | None = None
    edge_bytes: int = 0  # of the bound, for edges that this reader writes
    dataset: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A downloader's answer to the leases that it has `seen`, by id, at their serials. It counts for no other.

    `ready` are verified shards that somebody wants, `errors` what a shard failed of: class name and message. `error` is
    why the downloader ended. For people: `pid`, and `waiting`, what calls over the network wait for ("" for nothing).
    """

    pid: int
    seen: dict[str, int]
    dataset: str = ""
    ready: list[str] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)
    error: list[str] | None = None
    waiting: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What all readers of the folder read: `asked` is the revision that was asked for, `revision` the commit it is.

    `key` tells sources apart, `name` is for people, `manifest` is the text of one.
    """

    key: str
    name: str
    asked: str | None
    revision: str
    unfinished: bool
    manifest: str

    @property
    def digest(self) -> str:
        """Tells this record from any other."""
        return hashlib.sha256(_to_json(self).encode()).hexdigest()


class CacheFolder:
    """The paths of a cache folder, and its records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK_DIR
        self.readers = self.work / "readers"
        self.incoming = self.work / "incoming"  # downloads that are not verified yet
        self.lock = self.work / "downloader.lock"
        self.status = self.work / "status.json"
        self.dataset = self.work / "dataset.json"
        self.edges = self.work / "edges"

    def prepare(self) -> None:
        """Make it. Raises `OutputError` for a folder that holds something else: what is in a cache gets deleted."""
        try:
            files = [*self.path.iterdir(), *self.work.glob("*")] if self.path.exists() else []
            # `readers` is the first thing in a cache, so this order lets several readers make one at the same time
            if any(path not in (self.work, self.readers) for path in files) and not self.readers.is_dir():
                raise OutputError(
                    f"{self.path} holds files and is no shardkit cache, whose shards come and go: give an empty folder"
                )
            self.readers.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.path, 0) from None

    def write(self, path: Path, record: Lease | Status | Dataset) -> None:
        """Replace a record. Raises `OutputError`."""
        text = _to_json(record)
        temp = path.with_name(path.name + ".tmp")
        try:
            temp.write_text(text, encoding="utf-8")
            os.replace(temp, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            raise write_error(error, path, len(text)) from None

    def read(self, path: Path, kind: type[Record]) -> Record | None:
        """A record; None where there is none, or none that this version writes."""
        try:
            return read_record(kind, parse_json(read_small_file(path)))
        except (OSError, ValueError):
            return None

    def new_lease(self, name: str) -> ProcessLock:
        """Make and lock the lease of a new reader, `name`. Raises `OutputError`."""
        young = self.readers / f"{name}.young"  # an unlocked one under its final name is a dead one
        lock = lock_for_process(young)
        assert lock is not None
        try:
            lock.move(self.readers / f"{name}.lock")
        except OSError as error:
            raise write_error(error, young, 0) from None
        return lock

    def living(self) -> list[Lease]:
        """The leases of living processes, by id; what dead ones left is removed. For the downloader alone: the look at
        a lock ends one that the looking process holds."""
        leases = []
        for path in sorted(self.readers.iterdir()):
            lock, record = path.with_suffix(".lock"), path.with_suffix(".json")
            if path == lock and is_locked(lock):
                lease = self.read(record, Lease)
                leases += [lease] if lease is not None else []
            elif path in (lock, record) and not is_locked(lock):
                owner = lock.with_name(lock.name + OWNER_SUFFIX)
                for name in (record.with_name(record.name + ".tmp"), record, owner, lock):
                    name.unlink(missing_ok=True)
        return leases


def default_folder(source: str, revision: str | None, split: str) -> Path:
    """Where the shards of `source`, as `full_name` gives it, go by default: a folder a dataset, revision and split."""
    return cache_folder(default_name(source, revision, split))


def default_name(source: str, revision: str | None, split: str) -> str:
    """The name of that folder."""
    name = public_address(source) + (f"@{revision}" if revision else "") + f"-{split}"
    short = re.sub(r"[^\w.@-]+", "-", name.removeprefix("hf://datasets/").rpartition("://")[2]).strip("-.")[-60:]
    return f"{short}-{source_key(chr(0).join([public_address(source), revision or '', split]))[:8]}"


def full_name(source: str, revision: str | None) -> tuple[str, str | None]:
    """One spelling of a source and its revision, so that all who mean the same meet. Raises `UsageError`."""
    address = hub_place(source, revision)
    if address is not None:
        return dataclasses.replace(address, revision=None).url, address.revision
    if source.startswith(BUCKETS):
        return source.rstrip("/"), revision
    path = source.removeprefix("file://")
    return (source if "://" in path else os.path.abspath(Path(path).expanduser())), revision


def source_key(source: str) -> str:
    """Tells sources apart without saying them."""
    return hashlib.sha256(source.encode()).hexdigest()


def small_bytes(manifest: Manifest, path: Path | None = None) -> int:
    """What a folder's bound leaves free for everything that is not a shard, above what is ever needed; with the
    tokenizer's files that are in the folder `path`."""
    tokenizer = sum(file.stat().st_size for file in path.glob("tokenizer*.json")) if path is not None else 0
    return _SPARE_BYTES + 2 * len(json.dumps(manifest.to_json())) + 160 * len(manifest.shards) + tokenizer


def _to_json(record: Lease | Status | Dataset) -> str:
    return json.dumps(dataclasses.asdict(record))
