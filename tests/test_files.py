"""`files`: whole or not there, and errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardkit.errors import DiskFull, OutputError
from shardkit.files import LongFile, atomic_write, format_bytes, free_bytes, sha256_file, write_error


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


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
    message = r"no room to write .*file: 2\.0 kB more are needed, .* free; make room"
    with file_size_limit(1000), pytest.raises(DiskFull, match=message):
        atomic_write(path, b"x" * 2000)
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


BLOCK = 2 << 20


def direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_direct_opening(patch: pytest.MonkeyPatch) -> None:
    def opened(path: Path, flags: int, mode: int = 0o777, real: Callable[..., int] = os.open) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode)

    patch.setattr(os, "open", opened)


def refuse_direct_writing(patch: pytest.MonkeyPatch) -> None:
    def written(fd: int, data: memoryview, real: Callable[..., int] = os.write) -> int:
        if direct(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, data)

    patch.setattr(os, "write", written)


def write_a_little(patch: pytest.MonkeyPatch) -> None:
    def written(fd: int, data: memoryview, real: Callable[..., int] = os.write) -> int:
        return real(fd, data[: 4096 * 100] if direct(fd) else data[:100_001])

    patch.setattr(os, "write", written)


SYSTEMS = [lambda _: None, refuse_direct_opening, refuse_direct_writing, write_a_little]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 2 * BLOCK + 4096])
def test_a_long_file_holds_what_was_written_however_the_disk_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    system(monkeypatch)
    data = np.random.default_rng(size).bytes(size)
    path = tmp_path / "long"
    path.write_bytes(b"older and longer" * BLOCK)
    file = LongFile(path)
    for at in range(0, size, 700_001):
        file.write(data[at : at + 700_001])
    assert file.sync() == size
    assert path.read_bytes() == data
    assert file.sha256() == hashlib.sha256(data).hexdigest()
    file.close()
    file.close()


@pytest.mark.parametrize("system", SYSTEMS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(128, 2 * BLOCK + 9), piece=st.integers(4096, 3 * BLOCK))
def test_the_front_of_a_long_file_can_be_replaced_at_the_end(
    tmp_path_factory: pytest.TempPathFactory, size: int, piece: int, system: Callable[[pytest.MonkeyPatch], None]
) -> None:
    data = np.random.default_rng(piece).bytes(size)
    with pytest.MonkeyPatch.context() as patch:
        system(patch)
        file = LongFile(tmp_path_factory.mktemp("long") / "file")
        for at in range(0, size, piece):
            file.write(memoryview(data)[at : at + piece])
        file.rewrite(b"h" * 128)
        assert file.sync() == size
        assert file.sha256() == hashlib.sha256(b"h" * 128 + data[128:]).hexdigest()
        file.close()


def test_a_long_file_keeps_out_of_the_page_cache_where_the_disk_allows_it(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writes")
    modes = []
    with pytest.MonkeyPatch.context() as patch:
        real = os.write
        patch.setattr(os, "write", lambda fd, data: (modes.append(direct(fd)), real(fd, data))[1])
        file = LongFile(tmp_path / "long")
        file.write(b"x" * (2 * BLOCK + 5))
        file.sync()
        file.close()
    assert modes == [True, True, False]  # two whole blocks, and a rest that is none


def test_a_long_file_that_cannot_be_read_back_whole_is_an_error_and_not_another_hash(tmp_path: Path) -> None:
    file = LongFile(tmp_path / "long")
    file.write(b"x" * (BLOCK + 9))
    file.sync()
    os.truncate(tmp_path / "long", BLOCK + 10)
    (tmp_path / "long").rename(tmp_path / "away")
    (tmp_path / "long").write_bytes(b"x" * (BLOCK + 9))
    with pytest.raises(OSError, match=r"only 2,097,161 of 2,097,162 bytes"):
        file.sha256()
    file.close()


def test_a_long_file_is_read_back_also_where_direct_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(io.FileIO):
        def readinto(self, block: Any) -> int:
            if direct(self.fileno()):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().readinto(block[:100_000])  # and in small pieces

    monkeypatch.setattr(os, "fdopen", lambda fd, *_, **__: Refusing(fd))
    data = np.random.default_rng(0).bytes(BLOCK + 9)
    file = LongFile(tmp_path / "long")
    file.write(data)
    file.sync()
    assert file.sha256() == hashlib.sha256(data).hexdigest()
    file.close()


def test_a_disk_that_fills_within_a_block_is_an_error_and_not_a_shorter_file(tmp_path: Path) -> None:
    file = LongFile(tmp_path / "long")
    with file_size_limit(3 * 4096), pytest.raises(OSError, match="File too large"):
        file.write(b"x" * (2 * BLOCK))
    file.close()
