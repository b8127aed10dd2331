"""What the user's name for a source stands for: its files, in order, or one clear line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from source_data import texts_of
from texts import write_parquet

from shardkit.errors import ShardkitWarning, SourceError, UsageError
from shardkit.sources.listing import natural_key
from shardkit.sources.open import open_source

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


def write(folder: Path, **files: int) -> None:
    """Files of so many bytes; in their names `_` stands for a dot."""
    for name, size in files.items():
        (folder / name.replace("_", ".")).write_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("files", "read", "named"),
    [
        ({"a_parquet": 9, "LICENSE_txt": 3, "requirements_txt": 2}, ["a.parquet"], "LICENSE.txt, requirements.txt"),
        ({"a_txt": 5, "b_txt": 5, "index_jsonl": 9}, ["a.txt", "b.txt"], "index.jsonl"),
        ({"a_jsonl": 1, "b_jsonl_gz": 1, "c_jsonl_zst": 1}, ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"], None),
        ({"p1_jsonl_gz": 9, "p2_json_gz": 9, "p3_jsonl_xz": 9}, ["p1.jsonl.gz", "p3.jsonl.xz"], "p2.json.gz"),
        ({"a_txt": 4, "b_jsonl": 4}, ["b.jsonl"], "a.txt"),
        ({"a_txt": 1, "README_md": 9, "x_npy": 9}, ["a.txt"], "README.md, x.npy"),
        ({"a_txt": 9} | {f"{n}_md": 1 for n in range(8)}, ["a.txt"], "0.md, 1.md, 2.md, 3.md, 4.md and 3 more"),
    ],
)
def test_a_folder_gives_one_kind_of_file_and_names_the_others(
    tmp_path: Path, files: dict[str, int], read: list[str], named: str | None
) -> None:
    write(tmp_path, **files)
    kind = read[0].split(".")[1]
    words = rf"only its {kind} files are read, not {re.escape(named or '')}; a glob, or a list of paths"
    for place in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.warns(ShardkitWarning, match=words) if named else contextlib.nullcontext():
            assert names_of(place) == read


def test_hidden_files_are_no_part_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", ".gitattributes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names_of(tmp_path) == ["a.txt"]


def test_a_glob_or_a_list_of_paths_reads_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jsonl").write_text('{"text": "y"}')
    assert texts_of(f"{tmp_path}/*") == ["x", "y"]
    assert texts_of([tmp_path / "b.jsonl", tmp_path / "a.txt"]) == ["y", "x"]


def test_what_only_seems_to_be_a_file_is_named_and_links_that_loop_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("x")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "dead.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.warns(ShardkitWarning, match="not dead.txt, deep/loop, pipe.txt; "):
        assert names_of(tmp_path) == ["deep/a.txt"]
    with pytest.warns(ShardkitWarning, match="only whole files are read, not .*/dead.txt, .*/pipe.txt; "):
        assert names_of(f"{tmp_path}/**/*.txt") == ["a.txt"]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.txt").write_text("x")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # as for a user without the right to read it; the tests may run as root
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"cannot list .*/shut: Permission denied"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.jsonl.zst", "b.arrow", "b.feather"])
def test_a_file_without_a_byte_of_a_format_that_has_some_is_a_broken_upload(tmp_path: Path, name: str) -> None:
    if name.startswith("b.jsonl"):
        (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / name).touch()
    for source in (str(tmp_path), str(tmp_path / name), [tmp_path / name], f"file://{tmp_path}", f"{tmp_path}/*"):
        with pytest.raises(SourceError, match=rf"{re.escape(name)} has no bytes, and even an empty .* file has some"):
            open_source(source)


# lists -------------------------------------------------------------------------------------------------------------


def test_a_list_of_paths_means_the_files_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.txt", "a/10.txt", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = ["b/2.txt", "a/10.txt", "a/3.txt"]
    monkeypatch.chdir(tmp_path)
    for source in (names, tuple(names), [Path(name) for name in names], [tmp_path / name for name in names]):
        opened = open_source(source)
        assert [file.path for file in opened.files] == names
        assert opened.info.id == tmp_path.name
        assert texts_of(source) == names
    assert names_of_list([Path("a"), Path("b")]) == ["a/3.txt", "a/10.txt", "b/2.txt"]
    assert names_of_list(["a/*.txt"]) == ["3.txt", "10.txt"]


def names_of_list(source: Any) -> list[str]:
    return [file.path for file in open_source(source).files]


@pytest.mark.parametrize(
    "texts",
    [["a.txt", "see a.txt for more"], ["one", "two"], ["a.txt\nb.txt"], [], [""], ["no ending"], ("x", None)],
    ids=repr,
)
def test_a_list_of_texts_stays_texts_whatever_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert texts_of(texts) == [text or "" for text in texts]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (["a.txt", "gone.txt"], SourceError, "no such file or folder: gone.txt"),
        ([Path("a.txt"), "a text"], UsageError, "cannot tell what source 'a text' is"),
        ([Path("a.txt"), 3], UsageError, "a list of paths holds a int: expected paths only"),
        (["a text", Path("a.txt")], SourceError, "document 1 is a PosixPath: expected text"),
    ],
)
def test_a_list_that_is_neither_files_nor_texts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, error: type[Exception], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(error, match=words):
        texts_of(source)


# names -------------------------------------------------------------------------------------------------------------


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
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(SourceError, match=r"holds no files to read: expected \.parquet"):
        open_source(str(tmp_path))
    for name in ("a.doc", "*.doc"):
        with pytest.raises(SourceError, match=r"a\.doc has a name that says no known format"):
            open_source(str(tmp_path / name))


def test_a_file_name_that_no_manifest_could_hold_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["none/", "none.jsonl", "none.jsonl/", "./none", "./none/", "a/b.txt/"])
def test_a_path_that_is_not_there_is_the_sources_fault_with_a_slash_at_its_end_too(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="no such file or folder: "):
        open_source(name)


def test_an_option_that_changes_nothing_for_a_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    write_parquet(tmp_path / "a.parquet", ["text"])
    options = {"name": "x", "split": "test", "revision": "main", "text_field": "body"}
    with pytest.warns(ShardkitWarning) as caught:
        open_source(tmp_path / "a.txt", **options)
    assert [str(warning.message) for warning in caught] == [
        *(f"{name}= changes nothing: a.txt is no Hub dataset" for name in ("name", "split", "revision")),
        "text_field= changes nothing: a.txt is plain text",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(tmp_path / "a.parquet", text_field="body")
        open_source(["text"], text_field="body")
