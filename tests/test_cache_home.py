"""`cache_home`: what can be made again goes where this user may write, and nobody else can have put something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardkit.cache_home import cache_folder, is_trusted, is_usable
from shardkit.errors import OutputError, ShardkitWarning
from shardkit.remote.streaming.folder import default_folder

NOBODY = 65534
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root is another user")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder like `/tmp`, where every user may make folders, and a home in it for another user."""
    folder = Path(tempfile.mkdtemp(prefix="shardkit-tests-"))
    folder.chmod(0o1777)
    (folder / "home").mkdir()
    yield folder
    shutil.rmtree(folder)


AS_NOBODY = """
import os, sys
from shardkit.remote.streaming.folder import CacheFolder, default_folder
from shardkit.tokenization.tiktoken_files import load_encoding
import tiktoken.registry
os.environ["TIKTOKEN_CACHE_DIR"] = sys.argv[1]
load_encoding("r50k_base")  # imports all that this user may not
tiktoken.registry.ENCODINGS.clear()
del os.environ["TIKTOKEN_CACHE_DIR"]
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
"""


def as_nobody(code: str, folder: Path, filled: Path, **environment: str) -> str:
    """What `code` prints when another user runs it."""
    os.chown(folder / "home", NOBODY, NOBODY)
    inherited = {name: value for name, value in os.environ.items() if name != "SHARDKIT_CACHE"}
    paths = {"HOME": str(folder / "home"), "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AS_NOBODY + code, str(filled)],
        env=inherited | paths | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_folder_that_is_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_folder("proofs") == tmp_path / "new" / "cache" / "proofs"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("block", [lambda path: path.write_text(""), lambda path: path.symlink_to("/dev/null")])
def test_where_that_is_no_folder_the_home_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Callable[[Path], object]
) -> None:
    block(tmp_path / "cache")
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    with pytest.warns(ShardkitWarning, match=r"cache/x cannot be used by this user, so .*\.cache/shardkit/x is: set"):
        assert cache_folder("x") == tmp_path / "home" / ".cache" / "shardkit" / "x"


def test_without_a_home_there_is_a_folder_of_this_users_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("SHARDKIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.warns(ShardkitWarning, match="set SHARDKIT_CACHE to a folder of your own"):
        found = default_folder("hf://datasets/a/b", None, "train")
    assert found.parent == tmp_path / f"shardkit-{os.geteuid()}"
    assert found.parent.stat().st_mode & 0o777 == 0o700


def test_where_there_is_neither_one_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("no home")

    def no_folder() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.delenv("SHARDKIT_CACHE")
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    with pytest.raises(OutputError, match="neither a home nor a temporary folder here: set SHARDKIT_CACHE"):
        default_folder("hf://datasets/a/b", None, "train")


@needs_root
def test_what_another_user_put_where_everybody_may_is_not_trusted(everybodys: Path) -> None:
    for path in (everybodys / "ours", everybodys / "theirs", everybodys / "theirs" / "deep"):
        path.mkdir()
    (everybodys / "link").symlink_to(everybodys / "ours")
    for path in (everybodys / "theirs", everybodys / "link"):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    assert [is_trusted(everybodys / name) for name in ("ours", "theirs", "theirs/deep", "link", "none")] == [
        *(True, False, False, False, True)
    ]
    assert not is_usable(everybodys / "theirs")
    assert is_usable(everybodys / "none" / "deep")


@needs_root
def test_a_second_user_of_the_machine_streams_into_a_folder_of_their_own(everybodys: Path, tmp_path: Path) -> None:
    first = everybodys / "cache"
    first.mkdir(mode=0o700)
    code = "folder = default_folder('hf://datasets/a/b', None, 'train')\nCacheFolder(folder).prepare()\nprint(folder)"
    said = as_nobody(code, everybodys, tmp_path, SHARDKIT_CACHE=str(first))
    assert said.startswith(f"{everybodys}/home/.cache/shardkit/a-b-train-")


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_second_user_of_the_machine_gets_the_vocabulary_too(everybodys: Path, tmp_path: Path, mode: int) -> None:
    (everybodys / "data-gym-cache").mkdir()
    (everybodys / "data-gym-cache").chmod(mode)
    code = "print(load_encoding('r50k_base').n_vocab, 'TIKTOKEN_CACHE_DIR' in os.environ)"
    assert as_nobody(code, everybodys, tmp_path) == "50257 False\n"
    assert not list((everybodys / "data-gym-cache").iterdir())
    assert len(list((everybodys / "home" / ".cache" / "shardkit" / "tiktoken").iterdir())) == 1
