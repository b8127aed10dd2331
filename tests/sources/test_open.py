"""What the user's name for a source stands for: its files, in order, or one clear line."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from source_data import texts_of

from shardkit.errors import SourceError, UsageError
from shardkit.sources.open import natural_key, open_source

# files -------------------------------------------------------------------------------------------------------------


def names_of(source: Path | str) -> list[str]:
    return [file.path for file in open_source(str(source)).files]


def test_files_are_in_natural_order_and_ties_are_broken_by_name(tmp_path: Path) -> None:
    names = ["a1.txt", "a01.txt", "a2.txt", "a10.txt", "b/1.txt", "1²2.txt", "ü.txt", "sp ace.txt", "new\nline.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = names_of(tmp_path)
    assert sorted(found) == sorted(names)
    assert found == sorted(names, key=natural_key)
    assert [n for n in found if n.startswith("a")] == ["a01.txt", "a1.txt", "a2.txt", "a10.txt"]
    assert texts_of(tmp_path) == found


def test_hidden_and_unknown_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", "README.md", "x_train_000000.npy", "manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names_of(tmp_path) == ["a.txt"]


def test_links_that_loop_are_followed_once_by_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("x")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "dead.txt").symlink_to(tmp_path / "nowhere")
    assert names_of(tmp_path) == ["deep/a.txt"]
    assert names_of(f"{tmp_path}/**/*.txt") == ["a.txt"]


def test_the_same_folder_has_one_identity_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "corpus")
    for name in (".", "../corpus", "./", str(tmp_path / "corpus"), str(tmp_path / "corpus") + "/"):
        source = open_source(name)
        assert (source.info.id, [f.path for f in source.files]) == ("corpus", ["a.txt"])
    assert open_source(Path("a.txt")).info == open_source(str(tmp_path / "corpus" / "a.txt")).info


@pytest.mark.parametrize(
    "name", ["none.parquet", "none/", "./none", "/none", "none/*.txt", "~none", "x" * 300 + ".txt"]
)
def test_a_path_that_is_not_there_is_one_clear_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SourceError, UsageError), match=r"no such (file or folder|local path)"):
        open_source(name)


def test_a_folder_or_file_of_no_known_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(SourceError, match=r"holds no files to read: expected \.parquet"):
        open_source(str(tmp_path))
    for name in ("a.csv", "*.csv"):
        with pytest.raises(SourceError, match=r"a\.csv has a name that says no known format"):
            open_source(str(tmp_path / name))


def test_a_file_name_that_no_manifest_could_hold_is_refused_at_the_door(tmp_path: Path) -> None:
    with contextlib.suppress(OSError):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
        with pytest.raises(SourceError, match="a file name that is not UTF-8"):
            open_source(str(tmp_path))


def test_fsspec_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"{number}.txt").write_text(str(number))
    assert texts_of(f"file://{tmp_path}") == ["1", "9", "10"]
    assert texts_of(f"file://{tmp_path}/1*.txt") == ["1", "10"]


def test_a_word_that_is_no_source_says_what_one_is() -> None:
    with pytest.raises(UsageError, match=r"cannot tell what source 'nonsense' is"):
        open_source("nonsense")
