"""Reads that fail for a moment: the file is opened again and read, said once; then one line that names it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_data import make_dataset
from loader_data import write_shards

from shardkit import pull, push
from shardkit.dataset import patience, shard_maps
from shardkit.dataset.check import check_shard
from shardkit.dataset.patience import PASSING
from shardkit.dataset.token_stream import TokenStream, open_split
from shardkit.errors import ShardError

Break = Callable[[int, int], list[int]]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    """`broken(code, times)`: so many of the next reads at a place, and openings, fail with `code`."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(shard_maps, "is_on_local_disk", lambda path: False)  # where mounts are that drop

    def fail(code: int, times: int) -> list[int]:
        left, preadv, open_ = [times], os.preadv, os.open

        def refuse() -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))

        def read(*arguments: object) -> int:
            refuse()
            return preadv(*arguments)  # type: ignore[arg-type]

        def open_file(path: str, *arguments: int, **options: int) -> int:
            if str(path).endswith(".npy"):
                refuse()
            return open_(path, *arguments, **options)

        monkeypatch.setattr(os, "preadv", read)
        monkeypatch.setattr(os, "open", open_file)
        return left

    return fail


def by_read(stream: TokenStream, out: np.ndarray) -> None:
    stream.read(3, out)


def by_gather(stream: TokenStream, out: np.ndarray) -> None:
    stream.gather([(3, 4), (7, 8)], out)


def by_run(stream: TokenStream, out: np.ndarray) -> None:
    for begin, end in ((0, 7), (7, 12)):
        run = stream.run(3 + begin, end - begin)
        assert run is not None
        out[begin:end] = run


@pytest.mark.parametrize("read", [by_read, by_gather, by_run])
@pytest.mark.parametrize("code", sorted(PASSING), ids=errno.errorcode.get)
@pytest.mark.parametrize("opened", [True, False])
def test_a_read_that_fails_for_a_moment_is_made_again_and_said_once(
    read: Callable[[TokenStream, np.ndarray], None],
    code: int,
    opened: bool,
    tmp_path: Path,
    broken: Break,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    out = np.zeros(12, np.uint16)
    if opened:
        stream.read(0, out)
    left = broken(code, 3)
    with caplog.at_level(logging.WARNING, "shardkit"):
        read(stream, out)
    assert left == [0]
    assert out.tolist() == whole[3:15].tolist()
    (record,) = caplog.records
    assert "cannot read " in record.message
    assert ".npy for the moment" in record.message


def test_a_read_that_goes_on_failing_is_one_line_that_names_the_file(
    tmp_path: Path, broken: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "READ_SECONDS", 0.0)
    write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    broken(errno.ENOTCONN, 1000)
    with pytest.raises(ShardError, match=r"cannot read .*x_train_000001\.npy: .*look at the disk or mount") as caught:
        stream.read(12, np.zeros(3, np.uint16))
    assert "\n" not in str(caught.value)


def test_a_read_that_no_time_mends_is_an_error_at_once(tmp_path: Path, broken: Break) -> None:
    write_shards(tmp_path, [10])
    _, stream = open_split(tmp_path, "train", verify=False)
    left = broken(errno.EACCES, 2)
    with pytest.raises(ShardError, match="cannot open shard .*: Permission denied"):
        stream.read(0, np.zeros(3, np.uint16))
    assert left == [1]


def test_a_mount_that_is_gone_for_a_moment_hides_the_file_too(tmp_path: Path, broken: Break) -> None:
    whole = write_shards(tmp_path, [10])
    _, stream = open_split(tmp_path, "train", verify=False)
    out = np.zeros(3, np.uint16)
    stream.read(0, out)
    away = tmp_path / "away"

    def back(path: Path, error: OSError) -> None:
        if error.errno == errno.ENOENT:
            away.rename(tmp_path / "x_train_000000.npy")

    (tmp_path / "x_train_000000.npy").rename(away)
    broken(errno.ENOTCONN, 1)
    wait = patience.ReadPatience.wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            patience.ReadPatience, "wait", lambda self, path, error: (wait(self, path, error), back(path, error))
        )
        stream.read(5, out)
    assert out.tolist() == whole[5:8].tolist()


def test_a_push_reads_again_what_fails_for_a_moment(tmp_path: Path, broken: Break) -> None:
    manifest = make_dataset(tmp_path / "a")
    left = broken(errno.ESTALE, 2)
    check_shard(tmp_path / "a" / manifest.shards[0].file, manifest.shards[0], hashed=True)
    assert left == [0]
    left = broken(errno.EIO, 2)
    push(tmp_path / "a", str(tmp_path / "far"))
    assert left == [0]
    assert pull(str(tmp_path / "far"), tmp_path / "back") == manifest
