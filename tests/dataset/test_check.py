"""What is under a shard's name and is no file: an error at once in everything that reads shards, and no waiting."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_data import make_dataset

from shardkit import Manifest, ShardLoader, open_shard, pull, push
from shardkit.dataset.check import check_shard
from shardkit.errors import ShardkitError
from shardkit.files import open_file, sha256_file
from shardkit.look.info import info
from shardkit.look.verify import verify

SHARD = "demo_train_000001.npy"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.timeout(60)  # what waits for a pipe waits for ever
@pytest.mark.parametrize("put", [pipe, folder, device, circle])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.filterwarnings("ignore::shardkit.errors.ShardkitWarning")
def test_what_is_no_file_in_a_shards_place_is_one_line_at_once(
    put: Callable[[Path], None], bare: bool, tmp_path: Path
) -> None:
    data, there = tmp_path / "data", tmp_path / "there"
    manifest = make_dataset(data, shards=3)
    (data / SHARD).unlink()
    put(data / SHARD)
    if bare:
        (data / "manifest.json").unlink()
    readers: list[Callable[[], object]] = [
        lambda: verify(data),
        lambda: verify(data, hashes=False),
        lambda: push(data, str(there)),
        lambda: pull(str(data), there),
        lambda: ShardLoader(data, batch_size=1, seq_len=8),
        lambda: open_shard(data / SHARD),
        lambda: check_shard(data / SHARD, manifest.shards[1], hashed=True),
    ]
    if bare:
        readers.append(lambda: info(data))
        if put in (folder, circle):  # a remote lists files alone, and tries again for a while
            readers.pop(3)
    for read in readers:
        with pytest.raises(ShardkitError) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(OSError):
        open_file(data / SHARD)
    with pytest.raises(OSError):
        sha256_file(data / SHARD)


@pytest.mark.timeout(60)
def test_a_pipe_that_comes_while_a_loader_reads_is_not_waited_for(tmp_path: Path) -> None:
    make_dataset(tmp_path, shards=3)
    loader = ShardLoader(tmp_path, batch_size=1, seq_len=8)
    for path in tmp_path.glob("*_train_*.npy"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ShardkitError, match=r"demo_train_00000\d\.npy has 0 bytes, expected"):
        loader.next_batch()


@pytest.mark.timeout(60)
def test_a_pipe_under_the_name_of_the_manifest_is_not_waited_for(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", shards=3)
    (tmp_path / "data" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "data" / "manifest.json")
    for read in (
        lambda: Manifest.load(tmp_path / "data"),
        lambda: pull(str(tmp_path / "data"), tmp_path / "here"),
        lambda: push(tmp_path / "data", str(tmp_path / "there")),
    ):
        with pytest.raises(ShardkitError, match="no plain file"):
            read()
