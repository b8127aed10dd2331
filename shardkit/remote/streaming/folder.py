"""What lies in a cache folder besides shards: the files by which readers and their downloader speak. No network.

    FOLDER/x_train_000001.npy            a shard under its final name
    FOLDER/.shardkit/readers/ID.json     a reader: its process, what it needs, its bound. Only the reader writes it
    FOLDER/.shardkit/status.json         the downloader: what is verified; its mtime is its heartbeat
    FOLDER/.shardkit/dataset.json        the manifest that every reader of now has, and its pinned revision
    FOLDER/.shardkit/downloader.lock     held by the downloader for life

Each JSON file is replaced, never written in place, so nobody reads half a file and nobody locks. None is made durable:
they mean nothing after a power loss. The processes must see each other's pids, so the folder is for one node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shardkit.dataset.manifest import WORK_DIR, Manifest
from shardkit.errors import OutputError
from shardkit.files import write_error
from shardkit.remote.address import hub_repo

Record = TypeVar("Record", "ReaderNote", "Status", "Dataset")
_SPARE_BYTES = 1 << 16  # of the folder's bound: readers' notes and the log


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process: `born` tells it from a later one of the same pid, after a reboot too."""

    pid: int
    born: str

    @classmethod
    def current(cls) -> Process:
        """This one."""
        return cls(pid=os.getpid(), born=_born(os.getpid()))

    @property
    def lives(self) -> bool:
        """Whether it runs, or is stopped; a zombie does not live."""
        return _born(self.pid) == self.born

    def kill(self) -> None:
        """SIGKILL, if it is still that process."""
        import psutil  # 30 ms that nobody should wait for who has no process to end

        with contextlib.suppress(psutil.NoSuchProcess):
            if self.lives:
                psutil.Process(self.pid).kill()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderNote:
    """What a reader tells. `serial` counts its changes; `dataset` is the digest that it opened, "" before."""

    id: str
    process: Process
    serial: int
    wants: tuple[str, ...] = ()
    cache_bytes: int | None = None
    dataset: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What a downloader tells. `ready` are verified shards that somebody wants, as of each reader's `seen` serial.

    `dataset` is "" until `dataset.json` is there. `error` is what it ended of, `errors` what a shard failed of: class
    name and message. `brought` counts the shards that this generation verified.
    """

    generation: str
    process: Process
    dataset: str = ""
    ready: tuple[str, ...] = ()
    seen: dict[str, int] = field(default_factory=dict)
    errors: dict[str, tuple[str, str]] = field(default_factory=dict)
    error: tuple[str, str] | None = None
    brought: int = 0


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


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """The paths of a cache folder, and its records."""

    path: Path

    @property
    def work(self) -> Path:
        return self.path / WORK_DIR

    @property
    def readers(self) -> Path:
        return self.work / "readers"

    @property
    def incoming(self) -> Path:
        return self.work / "incoming"

    @property
    def lock(self) -> Path:
        return self.work / "downloader.lock"

    @property
    def start_lock(self) -> Path:
        return self.work / "start.lock"

    @property
    def log(self) -> Path:
        return self.work / "downloader.log"

    @property
    def status(self) -> Path:
        return self.work / "status.json"

    @property
    def dataset(self) -> Path:
        return self.work / "dataset.json"

    def prepare(self) -> None:
        """Make it. Raises `OutputError` for a folder that holds something else: what is in a cache gets deleted."""
        try:
            found = [*self.path.iterdir(), *self.work.glob("*")] if self.path.exists() else []
            # `readers` is the first thing in a cache, so this order lets several readers make one at the same time
            if any(path not in (self.work, self.readers) for path in found) and not self.readers.is_dir():
                raise OutputError(
                    f"{self.path} holds files and is no shardkit cache, whose shards come and go: give an empty folder"
                )
            self.readers.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, self.path, 0) from error

    def write(self, path: Path, record: ReaderNote | Status | Dataset) -> None:
        """Replace a record. Raises `OutputError`."""
        text = _to_json(record)
        temp = path.with_name(path.name + ".tmp")
        try:
            temp.write_text(text, encoding="utf-8")
            os.replace(temp, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            raise write_error(error, path, len(text)) from error

    def read_status(self) -> Status | None:
        """What the downloader tells, None if there is nothing to read."""
        return _read(self.status, Status)

    def read_dataset(self) -> Dataset | None:
        """What the folder is a cache of, None while nobody knows."""
        return _read(self.dataset, Dataset)

    def live_readers(self) -> list[ReaderNote]:
        """The notes of living processes, oldest name first; what dead ones left is removed."""
        notes = []
        for path in sorted(self.readers.iterdir()):
            note = _read(path, ReaderNote) if path.suffix == ".json" else None
            if note is not None and note.process.lives:
                notes.append(note)
            elif note is not None or not _is_young(path):
                path.unlink(missing_ok=True)
        return notes

    def last_words(self) -> str:
        """The last line of the downloader's log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def default_folder(source: str, revision: str | None, split: str) -> Path:
    """Where the shards of `source`, as `full_name` gives it, go by default: a folder a dataset, revision and split."""
    base = Path(os.environ.get("SHARDKIT_CACHE") or Path.home() / ".cache" / "shardkit").expanduser().absolute()
    name = shown(source) + (f"@{revision}" if revision else "") + f"-{split}"
    short = re.sub(r"[^\w.@-]+", "-", name.removeprefix("hf://datasets/").rpartition("://")[2]).strip("-.")[-60:]
    return base / f"{short}-{source_key(chr(0).join([source, revision or '', split]))[:8]}"


def full_name(source: str, revision: str | None) -> tuple[str, str | None]:
    """One spelling of a source and its revision, so that all who mean the same meet. Raises `UsageError`."""
    name, revision = hub_repo(source, revision)
    if name:
        return f"hf://datasets/{name}", revision
    path = source.removeprefix("file://")
    return (source if "://" in path else os.path.abspath(Path(path).expanduser())), revision


def shown(source: str) -> str:
    """`source` without what may be a secret in it: a password, a signed query."""
    return re.sub(r"//[^/@]*@", "//", source).partition("?")[0]


def source_key(source: str) -> str:
    """Tells sources apart without saying them."""
    return hashlib.sha256(source.encode()).hexdigest()


def small_bytes(manifest: Manifest) -> int:
    """What the folder's bound keeps free for everything that is not a shard; above what is ever needed."""
    return _SPARE_BYTES + 2 * len(json.dumps(manifest.to_json())) + 160 * len(manifest.shards)


def _born(pid: int) -> str:
    """When a process began, in the system's own unit; "" if there is none, or a zombie.

    Linux counts from boot: a clock that is set must not make a living reader look dead.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists("/proc/self/stat"):
            return ""
    try:
        import psutil

        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.0f}"
    except psutil.NoSuchProcess:
        return ""


def _is_young(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < 60
    except OSError:
        return True


def _to_json(record: ReaderNote | Status | Dataset) -> str:
    return json.dumps(dataclasses.asdict(record))


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return kind(**_typed(data))
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def _typed(data: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists and objects as the records have them."""
    if "process" in data:
        data["process"] = Process(**data["process"])
    for name in ("wants", "ready"):
        if name in data:
            data[name] = tuple(data[name])
    if "errors" in data:
        data["errors"] = {shard: (error[0], error[1]) for shard, error in data["errors"].items()}
    if data.get("error") is not None:
        data["error"] = (data["error"][0], data["error"][1])
    return data
