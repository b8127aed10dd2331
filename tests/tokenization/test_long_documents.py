"""Documents of many pieces: the stream is that of the whole, wherever a run stops or a limit ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference import folder_bytes
from source_data import job_of
from texts import documents

from shardkit import tokenize
from shardkit.errors import SourceError
from shardkit.sources import parquet, text_files, texts
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.tokenization import cutting
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.worker import ChunkEncoder, EncodedChunk

SIZE = text_files.TEXT_PIECE_BYTES * 9 // 4
OPTIONS: dict[str, Any] = {"tokenizer": "bytes", "shard_tokens": 1_250_000, "val_shards": 0, "workers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two text files of three pieces each, which differ everywhere, and a short one between."""
    folder = tmp_path_factory.mktemp("long")
    for name, seed in (("a", 1), ("c", 2)):
        (folder / f"{name}.txt").write_bytes(np.random.default_rng(seed).integers(32, 127, SIZE, np.uint8).tobytes())
    (folder / "b.txt").write_text("between")
    return folder


def stream_of(folder: Path) -> np.ndarray:
    parts = [np.frombuffer((folder / f"{name}.txt").read_bytes(), np.uint8) for name in "abc"]
    return np.concatenate([np.concatenate([[256], part]).astype("<u2") for part in parts])


def made(out: Path) -> np.ndarray:
    return np.concatenate([np.frombuffer(data[128:], "<u2") for _, data in sorted(folder_bytes(out).items())])


def test_a_run_over_long_documents_that_was_stopped_ends_with_the_stream_of_the_whole(
    folder: Path, tmp_path: Path
) -> None:
    def stop(progress: Any) -> None:
        if progress.shards >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(str(folder), tmp_path / "out", progress=stop, **OPTIONS)
    manifest = tokenize(str(folder), tmp_path / "out", **OPTIONS)
    assert np.array_equal(made(tmp_path / "out"), stream_of(folder))
    assert manifest.source is not None
    figures = [(file.rows, file.documents, file.tokens) for file in manifest.source.files]
    assert figures == [(1, 1, SIZE + 1), (1, 1, 8), (1, 1, SIZE + 1)]


@pytest.mark.parametrize("tokens", [text_files.TEXT_PIECE_BYTES + 1, text_files.TEXT_PIECE_BYTES + 100, SIZE + 2])
def test_a_limit_in_a_long_document_ends_the_stream_there(folder: Path, tmp_path: Path, tokens: int) -> None:
    manifest = tokenize(str(folder), tmp_path / "out", max_tokens=tokens, **OPTIONS)
    assert np.array_equal(made(tmp_path / "out"), stream_of(folder)[:tokens])
    assert manifest.source is not None
    documents = 2 if tokens > SIZE + 1 else 1
    assert [sum(file.documents for file in manifest.source.files), manifest.documents] == [documents, documents]
    assert sum(file.rows for file in manifest.source.files) == documents


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_number_of_documents_takes_long_ones_whole(folder: Path, tmp_path: Path, count: int) -> None:
    manifest = tokenize(str(folder), tmp_path / "out", max_docs=count, **OPTIONS)
    ends = [SIZE + 1, SIZE + 9, 2 * SIZE + 10]
    assert np.array_equal(made(tmp_path / "out"), stream_of(folder)[: ends[count - 1]])
    assert manifest.documents == count


@pytest.mark.parametrize("limit", [{"max_tokens": 20_000_000}, {"max_docs": 1}])
def test_a_run_that_was_killed_at_its_limit_ends_with_the_same_manifest(
    folder: Path, tmp_path: Path, limit: dict[str, int]
) -> None:
    options = {**OPTIONS, "shard_tokens": SIZE + 1 if "max_docs" in limit else 5_000_000, **limit}
    tokenize(str(folder), tmp_path / "out", **options)
    whole = (tmp_path / "out" / "manifest.json").read_bytes()
    (tmp_path / "out" / "manifest.json").unlink()
    tokenize(str(folder), tmp_path / "out", **options)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == whole


def encoded(path: Path, name: str = "gpt2", **job: Any) -> list[EncodedChunk]:
    source = open_source(str(path))
    encoder = ChunkEncoder(job_of(name, source.options, **job))
    return [piece for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 20) for piece in encoder.encode(chunk)]


@pytest.mark.parametrize("piece_bytes", [100, 1000, 9000])
def test_a_text_file_in_pieces_has_the_ids_of_the_whole_and_one_eot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    text = "\n".join(text or "" for text in documents(40))
    (tmp_path / "a.txt").write_text(text, newline="")
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", piece_bytes)
    found = encoded(tmp_path / "a.txt")
    assert all(piece.error is None and piece.bad_row is None for piece in found), found
    assert len(found) > 3
    whole = [50256, *Tokenizer("gpt2", encoder="tiktoken").encode_ordinary(text)]
    assert np.concatenate([piece.tokens for piece in found]).tolist() == whole
    assert [piece.eot_positions.tolist() for piece in found] == [[0]] + [[]] * (len(found) - 1)
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert [sum(piece.rows for piece in found), found[0].rows] == [1, 1]
    assert sum(piece.chunk.weight for piece in found) == len(text.encode())
    assert sum(piece.audited for piece in found) > 1


def test_a_transform_gets_a_long_document_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dill

    (tmp_path / "a.txt").write_text("word " * 2000)
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 1000)
    (piece,) = encoded(tmp_path / "a.txt", "bytes", transform=dill.dumps(lambda text: str(len(text))))
    assert piece.tokens.tolist() == [256, *b"10000"]


def test_a_document_that_cannot_be_cut_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "TEXT_PIECE_BYTES", 1000)
    monkeypatch.setattr(cutting, "LONGEST_RUN", 5000)
    monkeypatch.setattr(cutting, "PART_CHARACTERS", 500)
    (tmp_path / "a.txt").write_text("a word and then " + "x" * 20_000)
    (*_, failed) = encoded(tmp_path / "a.txt")
    assert isinstance(failed.error, SourceError)
    assert "a document of more than 5,000 characters (it has no place to be cut for gpt2): split" in str(failed.error)
    (tmp_path / "b.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * 20_000 + '"}\n')
    (failed,) = encoded(tmp_path / "b.jsonl")
    assert failed.bad_row is not None
    assert failed.bad_row[0] == 1
    assert "20,000 characters without a space or mark" in failed.bad_row[1]


def test_a_word_that_is_too_long_is_named_by_its_line_and_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one"}\n{"text": "' + "x" * (cutting.LONGEST_RUN + 1) + '"}\n{"text": "two"}\n'
    )
    options: dict[str, Any] = {"shard_tokens": 4, "val_shards": 0, "workers": 1}
    with pytest.raises(SourceError, match=r"a\.jsonl, line 2: 8,388,609 characters .* with skip_bad_rows=True"):
        tokenize(str(tmp_path / "a.jsonl"), tmp_path / "out", **options)
    with pytest.warns(UserWarning, match=r"skipped a\.jsonl, line 2"):
        manifest = tokenize(str(tmp_path / "a.jsonl"), tmp_path / "skipped", skip_bad_rows=True, **options)
    assert manifest.source is not None
    assert manifest.source.files[0].skipped_rows == (1,)
    assert manifest.documents == 2


def test_a_bad_row_is_named_by_its_place_in_the_chunk_whichever_piece_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [*(b"0123456789" for _ in range(50)), b"\xff", b"end"]
    column = unchecked(values)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    monkeypatch.setattr(texts, "PIECE_BYTES", 100)
    *good, failed = encoded(tmp_path / "a.parquet", "bytes")
    assert failed.bad_row is not None
    assert len(good) > 2
    assert sum(piece.rows for piece in good) + failed.bad_row[0] == 50
    assert [piece.last for piece in (*good, failed)] == [False] * len(good) + [True]


def unchecked(values: list[bytes]) -> pa.Array:
    """A column of strings of which nobody has asked whether they are UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def test_a_run_goes_on_where_an_earlier_version_cut_a_giant_row_group_into_longer_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: Any) -> None:
        if progress.shards >= 3:
            raise KeyboardInterrupt

    random = np.random.default_rng(0)
    rows = [random.bytes(int(size)).hex() for size in random.lognormal(5, 1.5, 400)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    options: dict[str, Any] = {**OPTIONS, "shard_tokens": 3000, "workers": 1, "chunk_bytes": 4000}
    tokenize(str(tmp_path / "a.parquet"), tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(parquet, "texts_in", lambda file, batch, *_: iter([batch.column("text").dictionary_decode()]))
        with pytest.raises(KeyboardInterrupt):
            tokenize(str(tmp_path / "a.parquet"), tmp_path / "out", progress=stop, **options)
    tokenize(str(tmp_path / "a.parquet"), tmp_path / "out", **options)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "whole" / "manifest.json").read_bytes()
