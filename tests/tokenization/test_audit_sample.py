"""Which documents a worker audits: about one in so many of a source, however it is cut into chunks and pieces."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from source_data import job_of

from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.text_files import TEXT_PIECE_BYTES
from shardkit.tokenization import worker
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.worker import ChunkEncoder

STRIDE = 10


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were audited so far."""
    seen: list[str] = []
    audit = Tokenizer.audit

    def note(self: Tokenizer, text: str, ids: Any, where: str) -> None:
        seen.append(text)
        audit(self, text, ids, where)

    monkeypatch.setattr(Tokenizer, "audit", note)
    return seen


def encode(path: Path, *, chunk_bytes: int = 8 << 20, cuts: bool = True) -> int:
    """How many documents were audited, as the results say."""
    source = open_source(str(path))
    encoder = ChunkEncoder(dataclasses.replace(job_of("gpt2", source.options), audit_stride=STRIDE))
    encoder.tokenizer.cuts = cuts
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=chunk_bytes)
    return sum(result.audited for chunk in chunks for result in encoder.encode(chunk))


def test_of_many_files_of_one_document_one_in_so_many_is_audited(tmp_path: Path, audited: list[str]) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text(f"Document number {number}.")
    assert encode(tmp_path) == len(audited)
    assert 15 < len(audited) < 60
    first = list(audited)
    audited.clear()
    encode(tmp_path)
    assert audited == first


def test_of_few_documents_the_first_that_has_text_is_audited(tmp_path: Path, audited: list[str]) -> None:
    for number, text in enumerate(["", "two", "three"]):
        (tmp_path / f"{number}.txt").write_text(text)
    encode(tmp_path)
    assert "two" in audited


def test_no_long_stretch_goes_without_an_audit_and_none_of_a_long_document_is_long(
    tmp_path: Path, audited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MUCH", 2_000)
    monkeypatch.setattr(worker, "_AUDITED", 100)
    for number in range(20):
        (tmp_path / f"{number:02}.txt").write_text(f"Document {number} " + "has words. " * 300)
    assert encode(tmp_path) == len(audited) == 20
    assert all(50 < len(text) <= 100 for text in audited)


@pytest.mark.parametrize("character", ["a", "é", "語", "😀"])
def test_a_piece_of_a_text_file_has_much_text_in_any_script(character: str) -> None:
    assert TEXT_PIECE_BYTES // len(character.encode()) > worker._MUCH


def test_a_long_document_that_cannot_be_cut_is_passed_over_for_others(
    tmp_path: Path, audited: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LONG", 50)
    monkeypatch.setattr(worker, "_MUCH", 100)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{"row " * 10 * (n % 5)}"}}\n' for n in range(1000)))
    (tmp_path / "b.jsonl").write_text('{"text": "' + "word " * 100 + '"}\n')
    encode(tmp_path / "a.jsonl", cuts=False)
    encode(tmp_path, cuts=False)
    assert audited
    assert max(map(len, audited)) <= 50
    encode(tmp_path / "b.jsonl", cuts=False)
    assert len(audited[-1]) == 500  # there was no other


def test_the_sample_is_of_the_rows_of_a_file(tmp_path: Path, audited: list[str]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(1000)))
    encode(tmp_path / "a.jsonl")
    assert len(audited) == 1000 // STRIDE
    audited.clear()
    encode(tmp_path / "a.jsonl", chunk_bytes=500)
    assert 60 < len(audited) < 160
