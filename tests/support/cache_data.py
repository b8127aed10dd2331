"""What the tests of the streaming cache share: environments of real processes, a reader to run as one, and looks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from hub_data import make_dataset
from hub_server import HubServer

from shardkit.dataset.manifest import Manifest
from shardkit.locks import is_locked
from shardkit.remote.streaming.cache import ShardCache
from shardkit.remote.streaming.folder import CacheFolder, Status

REPO = "alice/demo"
SUPPORT = Path(__file__).parent
SMALL_BYTES = 90_000  # more than `small_bytes` of these datasets
READER = """
import sys, time
from pathlib import Path
from shardkit.remote.streaming.cache import ShardCache
folder, bound, ahead, pause, files = Path(sys.argv[1]), int(sys.argv[2]) or None, int(sys.argv[3]), *sys.argv[4:6]
cache = ShardCache.open(sys.argv[6], split="train", folder=folder, cache_bytes=bound, revision=None)
files = files.split(",")
for at, file in enumerate(files):
    cache.want(files[at : at + ahead])
    cache.wait(file)
    print(file, hash((cache.directory / file).read_bytes()), flush=True)
    time.sleep(float(pause))
cache.close()
"""


def environment(endpoint: str = "") -> dict[str, str]:
    """What the processes of a test inherit: this tree, short waits, the local Hub."""
    paths = [str(SUPPORT / "hasty"), str(SUPPORT.parents[1])]
    found = {"PYTHONPATH": os.pathsep.join(paths), "HF_TOKEN": "hf_write", "PYTHONHASHSEED": "0"}
    return found | ({"HF_ENDPOINT": endpoint} if endpoint else {})


def serve(hub: HubServer, folder: Path, *, shards: int = 6, tokens: int = 5000, seed: int = 0) -> Manifest:
    """A dataset in `folder`, and on the Hub as `REPO`."""
    manifest = make_dataset(folder, shards=shards, tokens=tokens, seed=seed)
    hub.seed_repo(REPO, {path.name: path for path in folder.iterdir()})
    hub.reset_log()
    return manifest


def opened(folder: Path, source: str = REPO, *, cache_bytes: int | None = None) -> ShardCache:
    return ShardCache.open(source, split="train", folder=folder, cache_bytes=cache_bytes, revision=None)


def start_reader(
    folder: Path,
    files: list[str],
    *,
    source: str = REPO,
    bound: int = 0,
    ahead: int = 3,
    pause: float = 0.0,
    extra: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A process that walks over `files`, with a look-ahead of `ahead` shards and `pause` seconds at each."""
    return subprocess.Popen(
        [sys.executable, "-c", READER, str(folder), str(bound), str(ahead), str(pause), ",".join(files), source],
        env=os.environ | dict(extra or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(true: Callable[[], object], seconds: float = 15.0) -> float:
    """Wait until `true()`; the seconds that took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, "it did not come to that"
        time.sleep(0.005)
    return time.monotonic() - start


def status_of(folder: Path) -> Status:
    """The answer of the downloader that lives, when it has given one."""
    place = CacheFolder(folder)

    def living() -> Status | None:
        status = place.read(place.status, Status)
        lives = status is not None and is_locked(place.lock) and alive(status.pid)
        return status if lives else None

    until(living)
    status = living()
    assert status is not None
    return status


def readers_of(folder: Path) -> int:
    """How many leases there are. Looking at their locks is for the downloader's process."""
    return len(list(CacheFolder(folder).readers.glob("*.lock")))


def kill_downloader(folder: Path) -> None:
    """SIGKILL, and until the kernel has given its lock back."""
    status = status_of(folder)
    os.kill(status.pid, signal.SIGKILL)
    until(lambda: not alive(status.pid))


def alive(pid: int) -> bool:
    """Whether the process runs or is stopped; a zombie is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def bytes_on_disk(folder: Path, suffix: str = "") -> int:
    """The bytes of all files that were there at one moment: of those that two looks one after the other both found."""
    first, second = _sizes(folder), _sizes(folder)
    return sum(first[name] for name in first.keys() & second.keys() if name.endswith(suffix))


def _sizes(folder: Path) -> dict[str, int]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                found[f"{parent}/{name}"] = os.path.getsize(f"{parent}/{name}")
    return found
