"""`files`: whole or not there, and errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
from pathlib import Path

import pytest

from shardkit.errors import DiskFull, OutputError
from shardkit.files import atomic_write, format_bytes, free_bytes, sha256_file, write_error


@pytest.mark.parametrize("data", [b"", b"\0\xff" * 100_000, "naïve \u2028 text"])
def test_atomic_write_leaves_exactly_the_data_and_no_other_file(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "a file"
    path.write_text("before")
    atomic_write(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [p.name for p in tmp_path.iterdir()] == ["a file"]


def test_a_failed_write_keeps_the_old_file_and_removes_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DiskFull, match=r"no room to write .*file: 2\.0 kB more are needed, .* free; make room"):
            atomic_write(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_into_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*missing/file: No such file"):
        atomic_write(tmp_path / "missing" / "file", b"x")


def test_a_write_over_a_folder_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        atomic_write(tmp_path / "folder", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refused_write_says_to_choose_another_folder(tmp_path: Path, code: int) -> None:
    error = write_error(OSError(code, os.strerror(code)), tmp_path / "x", 1)
    assert not isinstance(error, DiskFull)
    assert "no permission to write" in str(error)
    assert "choose another folder" in str(error)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_sha256_of_a_file_is_hashlibs_at_every_block_edge(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_free_bytes_works_for_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b" / "c") > 0


def test_sizes_for_people_are_decimal() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1.0 kB", 200_000_128: "200.0 MB", 5e12: "5.00 TB", 5e15: "5000.00 TB"}
    assert {size: format_bytes(size) for size in sizes} == sizes
