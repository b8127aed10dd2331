"""Files that are read front to back, each by a worker from its beginning to its end: what the main process makes of
them, byte for byte, wherever a run stops."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from reference import folder_bytes, shard_bytes
from source_data import packed
from texts import documents

from shardkit import Manifest, tokenize
from shardkit.errors import OutputError, SourceError
from shardkit.sources.chunk_sizes import ChunkSizes
from shardkit.sources.source import Chunk, InputFile
from shardkit.tokenization import waiting_pieces
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.waiting_pieces import WaitingPiece, WaitingPieces
from shardkit.tokenization.worker import EncodedChunk

TEXTS = [text or "" for text in documents(330)[:330]]
SHARD_TOKENS = 60_000
ARE_WHOLE = ChunkSizes.are_whole


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files of every kind that no two workers can share, in the order of `TEXTS`; one is empty."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        texts = TEXTS[55 * number : 55 * number + 55]
        rows = [{"text": text, "n": place} for place, text in enumerate(texts)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        name, data = [
            ("a.jsonl.gz", lines),
            ("b.json", json.dumps(rows).encode()),
            ("c.jsonl.zst", lines),
            ("d.csv", "".join(['"text"\n', *('"' + text.replace('"', '""') + '"\n' for text in texts)]).encode()),
            ("e.jsonl.xz", lzma.compress(lines)),
            ("f.arrow", b""),
        ][number]
        (folder / name).write_bytes(packed(name, data))
    with pa.ipc.new_file(folder / "f.arrow", pa.schema([("text", pa.string())])) as file:
        for begin in range(275, 330, 10):
            file.write_batch(pa.record_batch({"text": pa.array(TEXTS[begin : begin + 10])}))
    (folder / "ab.jsonl.gz").write_bytes(packed("ab.jsonl.gz", b""))
    return folder


def run(corpus: Path, out: Path, **options: Any) -> Manifest:
    fixed = {"tokenizer": "bytes", "shard_tokens": SHARD_TOKENS, "chunk_bytes": 1 << 13, "prefix": "p", "workers": 2}
    sources = sorted(str(path) for path in corpus.iterdir())
    return tokenize(sources, out, **{**fixed, "progress": False, **options})  # type: ignore[arg-type]


def asked_whether_whole(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, bool]]:
    """Of each file from now on: from how many workers on it would be given out whole, and whether it is."""
    asked: list[tuple[int | None, bool]] = []

    def watched(sizes: ChunkSizes, size: int, left: int) -> bool:
        asked.append((sizes.whole_from, ARE_WHOLE(sizes, size, left)))
        return asked[-1][1]

    monkeypatch.setattr(ChunkSizes, "are_whole", watched)
    return asked


def the_same_both_ways(monkeypatch: pytest.MonkeyPatch, corpus: Path, out: Path, **options: Any) -> Manifest:
    """The manifest, which is the same whether files are given out whole or not, as is the journal."""
    made = []
    for number, whole_from in enumerate((1, 99)):
        monkeypatch.setattr(LocalRunner, "whole_files_from", whole_from)
        given = asked_whether_whole(monkeypatch)
        made.append(run(corpus, out / str(number), **options))
        assert any(answer for _, answer in given) == (whole_from == 1)
    assert made[0] == made[1]
    journals = [(out / name / ".shardkit" / "journal.jsonl").read_bytes() for name in ("0", "1")]
    assert journals[0] == journals[1]
    return made[0]


def test_the_dataset_its_manifest_and_its_journal_are_those_of_files_that_the_main_process_reads(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = the_same_both_ways(monkeypatch, corpus, tmp_path)
    assert folder_bytes(tmp_path / "0") == shard_bytes(TEXTS, SHARD_TOKENS, "p", tokenizer="bytes")
    assert manifest.documents == len(TEXTS)


@pytest.mark.parametrize(
    "options",
    [{"max_docs": 140}, {"max_tokens": 150_000}, {"filter": lambda text: len(text) % 3 > 0}, {"sample": 0.4}],
)
def test_limits_and_filters_give_the_same_dataset_whoever_reads_the_files(
    options: dict[str, Any], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_same_both_ways(monkeypatch, corpus, tmp_path, **options)


@pytest.mark.parametrize("first", [1, 99])
def test_a_run_that_stopped_goes_on_with_the_files_read_by_others(
    first: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(now: TokenizeProgress) -> None:
        if now.shards >= 3:
            raise SystemError("stopped")

    monkeypatch.setattr(LocalRunner, "whole_files_from", first)
    with pytest.raises(SystemError):
        run(corpus, tmp_path / "out", progress=stop)
    assert list((tmp_path / "out").glob("*.npy"))
    monkeypatch.setattr(LocalRunner, "whole_files_from", 100 - first)
    run(corpus, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == shard_bytes(TEXTS, SHARD_TOKENS, "p", tokenizer="bytes")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("c.jsonl.zst", lambda data: packed("x.zst", b'{"text": "a"}\n{"text": 7}\n'), r"c\.jsonl\.zst, line 2: .*"),
        ("a.jsonl.gz", lambda data: data[: len(data) // 2], r"a\.jsonl\.gz.*"),
        ("b.json", lambda data: data[:-30], r"b\.json.*"),
        ("d.csv", lambda data: b"other" + data[6:], r"d\.csv.*"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_alike_and_what_was_before_it_stays(
    name: str, change: Any, said: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus / name).write_bytes(change((corpus / name).read_bytes()))
    messages, shards = [], []
    for number, whole_from in enumerate((1, 99)):
        monkeypatch.setattr(LocalRunner, "whole_files_from", whole_from)
        with pytest.raises(SourceError, match=said) as caught:
            run(corpus, tmp_path / str(number), shard_tokens=10_000)
        messages.append(str(caught.value))
        shards.append(folder_bytes(tmp_path / str(number)))
    assert messages[0] == messages[1]
    assert shards[0] == shards[1]


def test_a_file_is_given_out_whole_where_there_are_many_workers_and_as_many_more_of_its_size() -> None:
    sizes = ChunkSizes(least=8, workers=6, unread=100, whole_from=5)
    assert sizes.are_whole(100, 600)
    assert not sizes.are_whole(100, 599)  # the last of what a limit leaves
    assert not ChunkSizes(least=8, workers=4, whole_from=5).are_whole(100, 10_000)
    assert not ChunkSizes(least=8, workers=64).are_whole(1, 10_000)
    assert not ChunkSizes(least=8, whole_from=5).are_whole(1, 10_000)


@pytest.mark.parametrize("options", [{}, {"filter": lambda text: len(text) % 3 > 0}, {"max_docs": 140}])
def test_what_is_known_of_the_documents_of_waiting_files_lies_on_the_disk(
    options: dict[str, Any], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_pieces, "_SMALL_BYTES", 0)
    on_disk: set[str] = set()
    put = WaitingPieces.put

    def watched(self: WaitingPieces, piece: EncodedChunk) -> WaitingPiece:
        waiting = put(self, piece)
        for name in waiting.arrays:
            left = getattr(waiting.piece, name)
            assert (left.size, left.base) == (0, None)
        on_disk.update(waiting.arrays)
        return waiting

    monkeypatch.setattr(WaitingPieces, "put", watched)
    the_same_both_ways(monkeypatch, corpus, tmp_path, **options)
    assert on_disk == {"eot_positions", *(["document_rows"] if "filter" in options else [])}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("tmp")]


def test_where_there_is_no_such_disk_it_waits_in_memory_and_what_comes_back_changed_is_one_line(
    tmp_path: Path,
) -> None:
    def piece() -> EncodedChunk:
        chunk = Chunk(file=0, start=0, stop=1, weight=1, input=InputFile(path="a", url="a", bytes=1, format="txt"))
        return EncodedChunk(chunk=chunk, eot_positions=np.arange(9_000), skipped=np.arange(2_000).reshape(-1, 2))

    gone, there = WaitingPieces(str(tmp_path / "gone")), WaitingPieces(str(tmp_path))
    for pieces, arrays in ((gone, []), (there, ["eot_positions", "skipped"])):
        waiting = pieces.put(piece())
        assert list(waiting.arrays) == arrays
        back = pieces.take(waiting)
        assert np.array_equal(back.eot_positions, piece().eot_positions)
        assert np.array_equal(back.skipped, piece().skipped)
    waiting = there.put(piece())
    waiting.arrays["eot_positions"].file._file.truncate(10)
    with pytest.raises(OutputError, match="waited on the disk"):
        there.take(waiting)


def test_with_max_disk_or_skip_duplicates_no_file_is_given_out_whole(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRunner, "whole_files_from", 1)
    asked = asked_whether_whole(monkeypatch)
    run(corpus, tmp_path / "a", skip_duplicates=True)
    run(corpus, tmp_path / "b", push=str(tmp_path / "far"), max_disk=1 << 20)
    assert set(asked) == {(None, False)}
