"""A file system without file locks (Lustre, NFS without its lock service) is one clear line for each command."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hub_data import make_dataset

from shardkit.errors import OutputError
from shardkit.remote.pull import pull
from shardkit.tokenization.output_folder import claim

CODES = [errno.ENOSYS, errno.ENOLCK]


@pytest.fixture(params=CODES, ids=[errno.errorcode[code] for code in CODES])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_a_pull_says_so(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    with pytest.raises(OutputError, match=r"cannot lock .*pull\.lock: its file system has no file locks"):
        pull(str(tmp_path / "a"), tmp_path / "b")


@pytest.mark.usefixtures("without_locks")
def test_an_output_folder_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot lock .*: its file system has no file locks"),
        claim(tmp_path / "out", overwrite=False),
    ):
        pass
