"""A byte order mark before a text is no part of it, and UTF-16 is named as what it is."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from source_data import packed, texts_of

from shardkit.sources import text_files
from shardkit.sources.texts import BadRow

MARK = codecs.BOM_UTF8


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 1 << 20])
@pytest.mark.parametrize("text", ["", "a", "日本 text", "\ufeff twice", "in the \ufeff middle"])
def test_a_text_file_begins_after_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, piece_bytes: int
) -> None:
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", piece_bytes)
    (tmp_path / "a.txt").write_bytes(MARK + text.encode())
    assert texts_of(tmp_path / "a.txt") == [text]


@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_so_does_the_first_text_of_a_separated_file_and_no_other(tmp_path: Path, chunk_bytes: int) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + b"one\n" + MARK + b"two\n")
    assert texts_of(tmp_path / "a.txt", separator="\n", chunk_bytes=chunk_bytes) == ["one", "\ufefftwo"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_so_does_a_file_of_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(packed(name, MARK + b'{"text": "a"}\n{"text": "b"}\n'))
    assert texts_of(tmp_path / name) == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "b.txt", "a.jsonl", "a.jsonl.gz"])
def test_a_file_in_utf16_is_named_as_such_with_what_converts_it(tmp_path: Path, name: str, encoding: str) -> None:
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    data = mark + (json.dumps({"text": "a"}) + "\n").encode(encoding)
    (tmp_path / name).write_bytes(packed(name, data))
    separator = "\n" if name == "b.txt" else None
    with pytest.raises(BadRow, match=r"UTF-16, and not UTF-8 \(iconv -f UTF-16 -t UTF-8"):
        texts_of(tmp_path / name, separator=separator)
