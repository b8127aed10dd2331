"""Errors of the machine are told from bugs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_data import make_dataset

from shardkit.cli import main
from shardkit.errors import machine_fault


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_an_error_of_the_machine_is_one_line_that_names_the_file_and_what_to_do(code: int) -> None:
    line = str(machine_fault(OSError(code, os.strerror(code), "/data/x.npy")))
    assert line.startswith(f"{os.strerror(code)} (/data/x.npy): ")
    assert line.endswith(", and run the same command again")


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), OSError(errno.EBADF, "Bad file"), KeyError(1)])
def test_any_other_exception_is_a_bug(error: Exception) -> None:
    assert machine_fault(error) is None


def test_a_command_ends_with_the_line_for_the_machine_and_with_a_traceback_for_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path)
    error: Exception = OSError(errno.EMFILE, "Too many open files", "x")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("shardkit.look.verify.verify", fail)
    result = CliRunner().invoke(main, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: Too many open files (x): allow more open files")
    error = MemoryError()
    assert "error: out of memory" in CliRunner().invoke(main, ["verify", str(tmp_path)]).stderr
    error = RuntimeError("can't start new thread")
    assert "error: no room for another thread" in CliRunner().invoke(main, ["verify", str(tmp_path)]).stderr
    error = OSError(errno.EBADF, "Bad file descriptor")
    assert CliRunner().invoke(main, ["verify", str(tmp_path)]).exception is error
