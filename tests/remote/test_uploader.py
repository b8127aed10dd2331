"""The uploader: order, the disk bound, errors from its threads, and what is left after it was cut short."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hub_data import journal_at, make_dataset, open_uploader
from hub_server import HubServer

from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.errors import DiskFull, HubError, ShardError
from shardkit.remote.commit_pace import COMMITS_AN_HOUR, FIRST_COMMITS, CommitPace
from shardkit.remote.uploader import Uploader

REPO = "alice/demo"


def line(shard: ShardInfo) -> bytes:
    return shard.file.encode() + b"\n"


def make(folder: Path, uploader: Uploader, manifest: Manifest, source: Path) -> list[int]:
    """A tokenizer that makes the shards of `source` in `folder`, within the bound; the disk use after each step."""
    used, journal = [], b""
    for shard in manifest.shards:
        uploader.wait_for_room(shard.bytes)
        (folder / shard.file).write_bytes((source / shard.file).read_bytes())
        used.append(sum(path.stat().st_size for path in folder.glob("*.npy")))
        journal += line(shard)
        uploader.submit(folder / shard.file, shard, {JOURNAL_FILE: journal}.copy)
    return used


def test_the_disk_bound_holds_always_and_a_slow_remote_throttles_the_maker(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=12)
    bound = 3 * manifest.shards[0].bytes
    (tmp_path / "work").mkdir()
    hub.fault("slow", "PUT", "/_lfs/", seconds=0.02, times=None)
    most, done = 0, threading.Event()

    def still(entry: os.DirEntry[str]) -> bool:
        try:
            return bool(entry.stat())
        except FileNotFoundError:
            return False

    def sample() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, sum(entry.stat().st_size for entry in os.scandir(tmp_path / "work") if still(entry)))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        with open_uploader(REPO, b"", max_bytes=bound) as uploader:
            used = make(tmp_path / "work", uploader, manifest, tmp_path / "a")
            uploader.flush()
            assert uploader.pending_bytes == 0
    finally:
        done.set()
        watcher.join()
    assert 0 < most <= bound
    assert max(used) <= bound
    assert list((tmp_path / "work").glob("*.npy")) == []
    assert {s.file for s in manifest.shards} <= hub.files(REPO).keys()


def test_few_commits_where_nobody_waits(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=40)
    with open_uploader(REPO, b"") as uploader:
        for shard in manifest.shards:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: line(shard)}.copy)
        uploader.flush()
    assert len(hub.commits(REPO)) == 3


def test_a_small_disk_makes_few_commits_where_the_remote_is_slow(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=48)
    (tmp_path / "work").mkdir()
    hub.fault("slow", "PUT", "/_lfs/", seconds=0.01, times=None)
    with open_uploader(REPO, b"", max_bytes=12 * manifest.shards[0].bytes) as uploader:
        make(tmp_path / "work", uploader, manifest, tmp_path / "a")
        uploader.flush()
    assert len(hub.commits(REPO)) <= 2 + 48 // 6 + 1  # half of what is on the disk each time


def test_in_no_hour_are_there_more_commits_than_the_hub_allows() -> None:
    now, made = 0.0, []
    pace = CommitPace(now)
    while now < 4 * 3600:
        if pace.allows(now):
            pace.count()
            made.append(now)
        now += 5.0
    assert all(sum(start <= at < start + 3600 for at in made) <= 124 for start in made)
    assert len(made) >= FIRST_COMMITS + 4 * COMMITS_AN_HOUR - 1
    assert made[FIRST_COMMITS - 1] == 5.0 * (FIRST_COMMITS - 1)  # the first ones are not put off


def test_without_a_bound_the_files_stay(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    with open_uploader(REPO, b"") as uploader:
        uploader.wait_for_room(10**15)
        for shard in manifest.shards:
            uploader.submit(tmp_path / "a" / shard.file, shard)
        uploader.flush()
    assert all((tmp_path / "a" / s.file).exists() for s in manifest.shards)


def test_a_shard_larger_than_the_bound_is_refused_at_once(hub: HubServer) -> None:
    with open_uploader(REPO, b"", max_bytes=1000) as uploader, pytest.raises(DiskFull, match=r"max_disk=1\.0 kB"):
        uploader.wait_for_room(1001)


def test_an_upload_that_fails_for_good_stops_the_maker(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=6)
    hub.fault("status", "PUT", "/_lfs/", code=403, times=None)
    with open_uploader(REPO, b"", max_bytes=2 * manifest.shards[0].bytes) as uploader, pytest.raises(HubError):
        make(tmp_path / "a", uploader, manifest, tmp_path / "a")
    assert all((tmp_path / "a" / s.file).exists() for s in manifest.shards)  # nothing that did not arrive was deleted


def test_a_commit_that_fails_for_good_deletes_nothing(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    with open_uploader(REPO, b"", max_bytes=10**9) as uploader:
        hub.fault("status", "POST", "/commit/", code=403, times=None)
        for shard in manifest.shards:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: line(shard)}.copy)
        with pytest.raises(HubError, match="does not allow"):
            uploader.flush()
        with pytest.raises(HubError):
            uploader.submit(tmp_path / "a" / manifest.shards[0].file, manifest.shards[0])
    assert all((tmp_path / "a" / s.file).exists() for s in manifest.shards)
    assert journal_at(REPO) == b""


def test_a_shard_that_is_gone_or_damaged_is_named(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    (tmp_path / "a" / manifest.shards[0].file).unlink()
    with open_uploader(REPO, b"") as uploader:
        uploader.submit(tmp_path / "a" / manifest.shards[0].file, manifest.shards[0])
        with pytest.raises(ShardError, match=r"demo_val_000000.npy is missing"):
            uploader.flush()


def test_closing_early_waits_for_nothing_and_leaves_what_has_not_arrived(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=20)
    held = hub.fault("hold", "PUT", "/_lfs/", nth=3)
    uploader = open_uploader(REPO, max_bytes=10**9)
    for shard in manifest.shards:
        uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: line(shard)}.copy)
    assert held.reached.wait(60)
    uploader.close()  # would wait for ever
    held.gate.set()
    uploader.close(wait=True)  # what was abandoned must not go on into the next test
    named = set((journal_at(REPO) or b"").decode().split())
    left = {shard.file for shard in manifest.shards if (tmp_path / "a" / shard.file).exists()}
    assert left | named >= {shard.file for shard in manifest.shards}


def test_a_shard_that_is_there_already_is_acknowledged_and_deleted_without_a_byte(
    hub: HubServer, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "a")
    with open_uploader(REPO, b"") as uploader:
        for shard in manifest.shards:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: line(shard)}.copy)
        uploader.flush()
    commits = len(hub.commits(REPO))
    hub.reset_log()
    with open_uploader(REPO, b"", max_bytes=10**9) as uploader:
        for shard in manifest.shards:
            assert uploader.has(shard)
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: line(shard)}.copy)
        uploader.flush()
    assert hub.bytes_received("/_lfs/") == 0
    assert len(hub.commits(REPO)) == commits
    assert not any((tmp_path / "a" / s.file).exists() for s in manifest.shards)


def test_progress_counts_to_the_total(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    seen: list[tuple[str, int, int]] = []
    with open_uploader(REPO, b"", progress=lambda *step: seen.append(step)) as uploader:
        for shard in manifest.shards:
            uploader.submit(tmp_path / "a" / shard.file, shard)
        uploader.flush()
    total = sum(s.bytes for s in manifest.shards)
    assert {name for name, _, _ in seen} == {s.file for s in manifest.shards}
    assert seen[-1][1:] == (total, total)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
