"""The disk under a cache folder: full for a while, and without file locks."""

from __future__ import annotations

import errno
import logging
import os
import threading
from pathlib import Path

import pytest
from cache_data import kill_downloader, opened, serve, start_reader, until
from disks import fill
from hub_data import make_dataset
from hub_server import HubServer

from shardkit.dataset.manifest import Manifest
from shardkit.errors import DiskFull
from shardkit.locks import NO_LOCKS
from shardkit.remote.streaming import room
from shardkit.remote.streaming.cache import ShardCache
from shardkit.remote.streaming.room import RoomWait, when_there_is_room

CDN = "/_cdn/"


def read_all(cache: ShardCache, manifest: Manifest, source: Path) -> None:
    for shard in manifest.shards:
        cache.want([shard.file])
        cache.wait(shard.file)
        assert (cache.directory / shard.file).read_bytes() == (source / shard.file).read_bytes()


@pytest.mark.parametrize("moment", ["before it opens", "while it reads"])
def test_a_disk_that_is_full_for_a_while_is_said_and_waited_for(
    served: HubServer, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    manifest = serve(served, tmp_path / "a")
    if moment == "while it reads":
        cache = opened(small_disk / "b")
        cache.want([manifest.shards[0].file])
        cache.wait(manifest.shards[0].file)
    else:
        (small_disk / "b").mkdir()
    filler = fill(small_disk)
    failed: list[BaseException] = []

    def read() -> None:
        try:
            reader = opened(small_disk / "b") if moment == "before it opens" else cache
            read_all(reader, manifest, tmp_path / "a")
            reader.close()
        except BaseException as error:  # noqa: BLE001 (shown by the test's own thread)
            failed.append(error)

    with caplog.at_level(logging.WARNING, "shardkit"):
        reading = threading.Thread(target=read)
        reading.start()
        until(lambda: failed or "no room on the disk of" in caplog.text)
        if moment == "while it reads":
            kill_downloader(small_disk / "b")  # the next one can write nothing at all
        filler.unlink()
        reading.join()
    assert failed == []
    assert "make some and it goes on: waiting" in caplog.text


def test_a_disk_that_stays_full_is_an_error_with_numbers(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "FULL_SECONDS", 0.0)
    monkeypatch.setattr(room, "_LOOK_SECONDS", 0.0)
    wait = RoomWait(small_disk)
    wait.look()  # there is room
    fill(small_disk)
    wait.look()
    with pytest.raises(DiskFull, match="no room on the disk of .*: 0 B are free; make room and start again"):
        wait.look()

    def write() -> None:
        raise DiskFull("no room at all")

    with pytest.raises(DiskFull, match="no room at all"):
        when_there_is_room(small_disk, write)


@pytest.mark.parametrize("code", sorted({errno.errorcode[code] for code in (*NO_LOCKS, errno.EIO)}))
def test_shards_stream_into_a_folder_without_file_locks_and_each_byte_comes_once(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    manifest = serve(served, tmp_path / "a")
    files = [shard.file for shard in manifest.shards]
    monkeypatch.setenv("WITHOUT_LOCKS", code)  # for every process that is started from here on
    readers = [start_reader(tmp_path / "b", files) for _ in range(2)]
    said = [reader.communicate() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    assert served.bytes_sent(CDN) == sum(shard.bytes for shard in manifest.shards)


def test_without_locks_what_killed_processes_left_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: HubServer
) -> None:
    manifest = make_dataset(tmp_path / "a")
    files = [shard.file for shard in manifest.shards]

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(os, "lockf", refuse)
    monkeypatch.setenv("WITHOUT_LOCKS", "ENOLCK")
    killed = start_reader(tmp_path / "b", files, source=str(tmp_path / "a"), pause=600)
    assert killed.stdout is not None
    assert killed.stdout.readline()
    killed.kill()
    killed.communicate()
    cache = opened(tmp_path / "b", str(tmp_path / "a"))
    read_all(cache, manifest, tmp_path / "a")
    kill_downloader(tmp_path / "b")
    beside = opened(tmp_path / "b", str(tmp_path / "a"))
    read_all(beside, manifest, tmp_path / "a")
    until(
        lambda: len(list((tmp_path / "b" / ".shardkit" / "readers").glob("*.lock.owner"))) == 2
    )  # not the killed one's
    for each in (cache, beside):
        each.close()
