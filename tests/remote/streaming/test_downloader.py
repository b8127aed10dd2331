"""The downloader process: faults survived or named, killed, stopped, left alone, and started over an old folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
from cache_data import (
    REPO,
    alive,
    bytes_on_disk,
    environment,
    kill_downloader,
    opened,
    readers_of,
    serve,
    start_reader,
    status_of,
    until,
)
from hub_data import make_dataset
from hub_server import HubServer

from shardkit.errors import AuthError, DiskFull, HubError, OutputError
from shardkit.locks import is_locked
from shardkit.remote.download import FETCHES
from shardkit.remote.streaming import lease as reader_module
from shardkit.remote.streaming.cache import ShardCache
from shardkit.remote.streaming.folder import CacheFolder, Status, small_bytes

CDN = "/_cdn/"
SOAK_RUNS = int(os.environ.get("SHARDKIT_SOAK_RUNS", "3"))  # 200 for a release


def walk(cache: ShardCache, files: list[str], source: Path, ahead: int = 3) -> None:
    """Read `files` as a loader does, and compare each with the original."""
    for at, file in enumerate(files):
        cache.want(files[at : at + ahead])
        cache.wait(file)
        assert (cache.directory / file).read_bytes() == (source / file).read_bytes()


@pytest.mark.parametrize(
    ("action", "path", "options"),
    [
        ("status", "/api/datasets", {"code": 503, "times": 2}),
        ("status", CDN, {"code": 429, "retry_after": 0, "times": 2}),
        ("drop_midway", CDN, {"times": 3}),
        ("truncate", CDN, {"times": 2}),
        ("corrupt", CDN, {"times": 2}),
    ],
)
def test_a_passing_fault_is_survived_without_a_word(
    served: HubServer, tmp_path: Path, action: str, path: str, options: dict[str, int]
) -> None:
    manifest = serve(served, tmp_path / "a", shards=3)
    fault = served.fault(action, "GET", path, **options)  # type: ignore[arg-type]
    cache = opened(tmp_path / "b")
    walk(cache, [shard.file for shard in manifest.shards], tmp_path / "a")
    cache.close()
    assert fault.fired == options["times"]


@pytest.mark.parametrize(
    ("fault", "kind", "expected"),
    [
        ({"action": "corrupt"}, HubError, f"arrived {FETCHES} times with other bytes than promised"),
        ({"action": "status", "code": 404}, HubError, "demo_train_000001.npy.*no such file|it does not have this"),
        ({"action": "status", "code": 401}, AuthError, "does not accept the token"),
        ({"action": "status", "code": 503}, HubError, "answered 503"),
    ],
)
def test_a_shard_that_does_not_come_is_reported_to_every_reader_and_the_others_come(
    served: HubServer, tmp_path: Path, fault: dict[str, object], kind: type[Exception], expected: str
) -> None:
    manifest = serve(served, tmp_path / "a", shards=4)
    files = [shard.file for shard in manifest.shards]
    served.fault(method="GET", path="train_000001", times=None, **fault)  # type: ignore[arg-type]
    caches = [opened(tmp_path / "b") for _ in range(2)]
    said = []
    for cache in caches:
        cache.want(files)
    for cache in caches:
        with pytest.raises(kind, match=expected) as caught:
            cache.wait(files[1])
        said.append(str(caught.value))
        cache.wait(files[2])
    assert said[0] == said[1]
    assert "hf_write" not in said[0]
    served.faults.clear()
    fresh = opened(tmp_path / "b")  # while the others live: it gets a fresh try
    walk(fresh, files, tmp_path / "a")
    caches[0].wait(files[1])
    for cache in (fresh, *caches):
        cache.close()


def test_a_killed_downloader_is_replaced_and_only_the_rest_comes_again(served: HubServer, tmp_path: Path) -> None:
    manifest = serve(served, tmp_path / "a", shards=8, tokens=100_000)
    files = [shard.file for shard in manifest.shards]
    served.fault("slow", "GET", CDN, seconds=0.1, times=None)
    cache = opened(tmp_path / "b")
    cache.want(files)
    cache.wait(files[0])
    first = status_of(tmp_path / "b").pid
    kill_downloader(tmp_path / "b")
    walk(cache, files, tmp_path / "a", ahead=8)
    assert status_of(tmp_path / "b").pid != first
    total = sum(shard.bytes for shard in manifest.shards)
    assert served.bytes_sent(CDN) <= total + 4 * manifest.shards[0].bytes
    cache.close()


def test_a_stopped_downloader_keeps_its_place_until_it_is_continued_or_killed(
    served: HubServer, tmp_path: Path
) -> None:
    manifest = serve(served, tmp_path / "a", shards=8)
    files = [shard.file for shard in manifest.shards]
    cache = opened(tmp_path / "b")
    cache.want(files[:1])
    cache.wait(files[0])
    pid = status_of(tmp_path / "b").pid
    for signal_number, start in ((signal.SIGCONT, 1), (signal.SIGKILL, 4)):
        os.kill(pid, signal.SIGSTOP)
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        with ThreadPoolExecutor(1) as pool:
            walking = pool.submit(walk, cache, files[start : start + 3], tmp_path / "a")
            until(partial(readers_want, tmp_path / "b", files[start]))
            assert is_locked(CacheFolder(tmp_path / "b").lock)
            assert not walking.done()
            os.kill(pid, signal_number)
            walking.result()
        assert (status_of(tmp_path / "b").pid == pid) == (signal_number == signal.SIGCONT)
    cache.close()


def readers_want(folder: Path, shard: str) -> bool:
    return any(shard in path.read_text() for path in CacheFolder(folder).readers.glob("*.json"))


def test_a_worker_that_was_forked_does_not_keep_its_dead_parents_lease(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    code = (
        "import os, sys, time; from pathlib import Path; from shardkit.remote.streaming.cache import ShardCache\n"
        f"cache = ShardCache.open({REPO!r}, split='train', folder=Path(sys.argv[1]), cache_bytes=None, revision=None)\n"
        "if child := os.fork():\n    print(child, flush=True)\ntime.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "b")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    pid = status_of(tmp_path / "b").pid
    parent.kill()
    until(lambda: not alive(pid))
    assert alive(worker)
    os.kill(worker, signal.SIGKILL)
    parent.communicate()
    assert not list(CacheFolder(tmp_path / "b").readers.iterdir())


def test_what_a_killed_downloader_left_is_not_believed_by_a_fresh_reader(served: HubServer, tmp_path: Path) -> None:
    files = [shard.file for shard in serve(served, tmp_path / "a").shards]
    cache = opened(tmp_path / "b")
    cache.want(files)
    for file in files:
        cache.wait(file)
    kill_downloader(tmp_path / "b")
    cache.close()
    left = CacheFolder(tmp_path / "b")
    status = left.read(left.status, Status)
    assert status is not None
    assert files[1] in status.ready
    (tmp_path / "b" / files[1]).write_bytes(bytes((tmp_path / "a" / files[1]).stat().st_size))
    cache = opened(tmp_path / "b")
    walk(cache, files, tmp_path / "a")
    cache.close()


def test_a_folder_of_an_earlier_version_is_taken_up(served: HubServer, tmp_path: Path) -> None:
    files = [shard.file for shard in serve(served, tmp_path / "a").shards]
    work = tmp_path / "b" / ".shardkit"
    (work / "readers").mkdir(parents=True)
    process = {"pid": os.getpid(), "born": "1"}
    (work / "readers" / "1-aa.json").write_text(json.dumps({"id": "1-aa", "process": process, "serial": 1}))
    (work / "status.json").write_text(json.dumps({"generation": "ab", "process": process, "ready": files}))
    for name in ("downloader.lock", "start.lock", "downloader.log", "dataset.json"):
        (work / name).touch()
    shutil.copy(tmp_path / "a" / files[0], tmp_path / "b" / files[0])
    (tmp_path / "b" / files[1]).write_bytes(b"half a shard")
    cache = opened(tmp_path / "b")
    walk(cache, files, tmp_path / "a")
    assert readers_of(tmp_path / "b") == 1
    assert not (work / "readers" / "1-aa.json").exists()
    cache.close()
    assert served.bytes_sent(CDN) == sum((tmp_path / "a" / file).stat().st_size for file in files[1:])


def test_a_password_in_the_source_is_in_no_file_no_command_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HubError, match="localhost:1/data") as caught:
        opened(tmp_path / "b", "http://me:hunter2@localhost:1/data")
    assert "hunter2" not in str(caught.value)
    assert not any(b"hunter2" in path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file())


def test_a_status_from_before_a_want_was_seen_does_not_count(served: HubServer, tmp_path: Path) -> None:
    files = [shard.file for shard in serve(served, tmp_path / "a").shards]
    cache = opened(tmp_path / "b")
    cache.want(files[:1])
    cache.wait(files[0])
    pid = status_of(tmp_path / "b").pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    cache.want(files[1:2])
    cache.want(files[:1])  # the downloader may have heard the first of the two, and be about to delete the shard
    assert files[0] in status_of(tmp_path / "b").ready
    assert cache._reader is not None
    heard = cache._reader.has(files[0])
    os.kill(pid, signal.SIGCONT)
    assert not heard
    cache.wait(files[0])
    cache.close()


def test_a_downloader_that_dies_whenever_it_starts_is_reported_with_its_cause(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(served, tmp_path / "a")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys, os\nif 'shardkit.remote.streaming.downloader' in sys.orig_argv:\n"
        "    print('the last words'); os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(HubError, match=r"failed, 4 times, and brought nothing \(last words: the last words\)"):
        opened(tmp_path / "b")
    (broken / "sitecustomize.py").write_text(
        "import sys, os\nif 'shardkit.remote.streaming.downloader' in sys.orig_argv:\n    os.kill(os.getpid(), 9)\n"
    )
    with pytest.raises(HubError, match=r"was killed \(signal 9\), 4 times, and brought nothing"):
        opened(tmp_path / "b")
    monkeypatch.undo()


def test_a_downloader_that_fails_once_is_replaced(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(served, tmp_path / "a")
    broken, flag = tmp_path / "broken", tmp_path / "failed"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys, os\nif 'shardkit.remote.streaming.downloader' in sys.orig_argv:\n"
        f"    if not os.path.exists({str(flag)!r}):\n        open({str(flag)!r}, 'w'); os._exit(1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    opened(tmp_path / "b").close()
    assert flag.exists()
    monkeypatch.undo()


def test_a_disk_that_fails_for_one_shard_is_reported_and_the_others_arrive(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    files = [shard.file for shard in manifest.shards]
    change = (
        "usual = downloader.Downloader._fetch\n"
        "def failing(self, shard):\n"
        f"    if shard == {files[0]!r}:\n        raise OSError(5, 'Input/output error')\n"
        "    return usual(self, shard)\n"
        "downloader.Downloader._fetch = failing"
    )
    child = start_downloader(tmp_path / "b", str(tmp_path / "a"), change)
    cache = opened(tmp_path / "b", str(tmp_path / "a"))
    cache.want(files)
    with pytest.raises(OutputError, match=f"{files[0]}.*Input/output error"):
        cache.wait(files[0])
    cache.wait(files[1])
    cache.close()
    child.kill()
    child.communicate()


def test_it_ends_soon_after_its_readers_were_killed_and_not_when_only_its_starter_was(
    served: HubServer, tmp_path: Path
) -> None:
    manifest = serve(served, tmp_path / "a")
    files = [shard.file for shard in manifest.shards]
    served.fault("slow", "GET", "demo_train_000003", seconds=60, times=None)  # a download is under way at the end
    starter = start_reader(tmp_path / "b", files[:1] * 1, pause=600)
    pid = status_of(tmp_path / "b").pid
    until(lambda: (tmp_path / "b" / files[0]).exists())
    other = start_reader(tmp_path / "b", files[1:4], pause=600)
    until(lambda: (tmp_path / "b" / files[1]).exists())
    starter.kill()
    starter.communicate()
    time.sleep(1.5)
    assert alive(pid)
    other.kill()
    other.communicate()
    until(lambda: not alive(pid))
    assert not list((tmp_path / "b" / ".shardkit" / "readers").iterdir())
    assert not (tmp_path / "b" / ".shardkit" / "status.json").exists()


def test_ctrl_c_is_not_for_it_and_its_command_line_names_only_the_folder(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    cache = opened(tmp_path / "b")
    process = psutil.Process(status_of(tmp_path / "b").pid)
    assert process.cmdline()[1:] == ["-m", "shardkit.remote.streaming.downloader", str(tmp_path / "b")]
    assert os.getsid(process.pid) != os.getsid(0)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_running()
    loaded = {Path(region.path).name for region in process.memory_maps()}
    assert not any("torch" in name for name in loaded)
    assert [child.last_words() for child in reader_module._children if child.pid == process.pid] == [""]
    cache.close()


def test_an_old_folder_is_hashed_again_and_only_what_is_missing_or_wrong_comes(
    served: HubServer, tmp_path: Path
) -> None:
    manifest = serve(served, tmp_path / "a", shards=5)
    files = [shard.file for shard in manifest.shards]
    cache = opened(tmp_path / "b")
    walk(cache, files, tmp_path / "a")
    cache.close()
    until(lambda: not is_locked(CacheFolder(tmp_path / "b").lock))
    content = (tmp_path / "b" / files[1]).read_bytes()
    (tmp_path / "b" / files[1]).write_bytes(content[:-1] + b"\0")  # as a power loss may leave it
    (tmp_path / "b" / files[2]).write_bytes(content[:99])
    (tmp_path / "b" / files[3]).unlink()
    served.reset_log()
    cache = opened(tmp_path / "b")
    walk(cache, files, tmp_path / "a")
    cache.close()
    assert served.bytes_sent(CDN) == sum(shard.bytes for shard in manifest.shards[1:4])


def test_a_second_downloader_leaves_the_place_to_the_first(served: HubServer, tmp_path: Path) -> None:
    serve(served, tmp_path / "a")
    cache = opened(tmp_path / "b")
    first = status_of(tmp_path / "b").pid
    command = [sys.executable, "-m", "shardkit.remote.streaming.downloader", str(tmp_path / "b")]
    request = json.dumps(["hf://datasets/" + REPO, None])
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    assert status_of(tmp_path / "b").pid == first
    cache.close()


RUN = """
import sys; from pathlib import Path
from shardkit.remote.streaming import downloader; from shardkit.remote.streaming.folder import CacheFolder
{}
folder = CacheFolder(Path(sys.argv[1])); folder.prepare(); sys.exit(downloader.main(folder))
"""


def start_downloader(folder: Path, source: str, change: str) -> subprocess.Popen[str]:
    """A downloader with a `change` of its constants, or of the free disk; ready to be joined."""
    child = subprocess.Popen(
        [sys.executable, "-c", RUN.format("downloader.LINGER_SECONDS = 600; " + change), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps([source, None]))
    child.stdin.close()
    child.stdin = None
    status_of(folder)
    return child


def test_readers_that_together_need_more_than_the_bound_are_told_so_and_not_left_waiting(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=8)
    files, size = [shard.file for shard in manifest.shards], manifest.shards[0].bytes
    child = start_downloader(tmp_path / "b", str(tmp_path / "a"), "downloader.BLOCKED_SECONDS = 1.0")
    caches = [opened(tmp_path / "b", str(tmp_path / "a"), cache_bytes=small_bytes(manifest) + 3 * size) for _ in "12"]
    caches[0].want(files[:2])
    caches[0].wait(files[1])
    caches[1].want(files[3:6])
    caches[1].wait(files[3])
    with pytest.raises(DiskFull, match=r"its 2 readers together need .* cache_bytes is .* none has moved on"):
        caches[1].wait(files[4])
    caches[0].want([])
    until(lambda: "readers" not in str(status_of(tmp_path / "b").errors))
    caches[1].wait(files[5])
    for cache in caches:
        cache.close()
    child.kill()
    child.communicate()


def test_a_disk_that_stays_full_is_reported_with_numbers_and_the_shard_arrives_when_there_is_room(
    tmp_path: Path,
) -> None:
    manifest = make_dataset(tmp_path / "a")
    files, flag = [shard.file for shard in manifest.shards], tmp_path / "room"
    change = f"downloader.free_bytes = lambda path: 10**9 if Path({str(flag)!r}).exists() else 1000\n"
    change += "from shardkit.remote.streaming import room; room.FULL_SECONDS = 0.0"
    child = start_downloader(tmp_path / "b", str(tmp_path / "a"), change)
    cache = opened(tmp_path / "b", str(tmp_path / "a"))
    cache.want(files)
    with pytest.raises(DiskFull, match=r"6\.1 kB are to come, 1\.0 kB are free; make room, or give cache_bytes"):
        cache.wait(files[0])
    flag.touch()
    until(lambda: not status_of(tmp_path / "b").errors)
    walk(cache, files, tmp_path / "a")
    cache.close()
    child.kill()
    child.communicate()


@pytest.mark.parametrize("seed", range(SOAK_RUNS))
def test_random_faults_and_kills_end_in_the_right_bytes_within_the_bound_or_in_a_named_error(
    served: HubServer, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    manifest = serve(served, tmp_path / "a", shards=rng.randint(4, 9), tokens=3000, seed=seed)
    files = [shard.file for shard in manifest.shards]
    bound = small_bytes(manifest) + 4 * manifest.shards[0].bytes
    for code, options in ((429, {"retry_after": 0}), (500, {}), (503, {})):
        served.random_faults(seed * 10 + code, rng.choice([0.02, 0.1]), ["status"], code=code, **options)
    served.random_faults(seed, rng.choice([0.05, 0.2]), ["drop", "drop_midway", "truncate", "corrupt"])
    readers = [start_reader(tmp_path / "b", files, bound=bound, pause=rng.choice([0, 0.02])) for _ in range(2)]
    kills = rng.choice([0, 0, 1])
    folder, most = CacheFolder(tmp_path / "b"), 0
    kill_at = time.monotonic() + rng.uniform(0.7, 1.5)
    while any(reader.poll() is None for reader in readers):
        most = max(most, bytes_on_disk(tmp_path / "b", ".npy"))
        if (
            kills
            and time.monotonic() > kill_at
            and is_locked(folder.lock)
            and (status := folder.read(folder.status, Status))
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(status.pid, signal.SIGKILL)
            kills -= 1
        time.sleep(0.003)
    for reader in readers:
        _, err = reader.communicate()
        if reader.returncode:
            assert "hf_write" not in err
            last = err.strip().splitlines()[-1]
            assert last.startswith("shardkit.errors.HubError: "), err
    assert most <= 4 * manifest.shards[0].bytes
    served.faults.clear()
    cache = opened(tmp_path / "b", cache_bytes=bound)  # whatever it was, a fresh run finishes
    walk(cache, files, tmp_path / "a")
    cache.close()
