"""The tokenizing benchmark and the kill soak run, tiny: every contestant makes the same number of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from reference import stream
from texts import documents, write_parquet

from benchmarks import bench_tokenize, soak_memory, soak_tokenize


def test_every_contestant_runs_and_makes_the_references_tokens(tmp_path: Path) -> None:
    texts = documents(60)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_parquet(corpus / "a.parquet", [text or "" for text in texts], rows=20)
    results = {name: bench_tokenize.measure(name, corpus, 2, 5000) for name in bench_tokenize.CONTESTANTS}
    assert {result["tokens"] for name, result in results.items() if name != "parquet"} == {len(stream(texts))}
    assert all(result["seconds"] > 0 and result["peak_bytes"] > 0 for result in results.values())


def test_the_table_states_ratios_against_the_reference_and_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {name: [{"tokens": 10.0, "seconds": 2.0, "peak_bytes": 1e6}] for name in ("reference", "limit")}
    runs["shardkit"] = [{"tokens": 10.0, "seconds": 1.0, "peak_bytes": 1e6}]
    rows = bench_tokenize._table(runs)
    assert [(row["x_reference"], row["share_of_limit"]) for row in rows] == [(1, 1), (1, 1), (2, 2)]
    assert "shardkit" in capsys.readouterr().out


def test_the_soak_kills_and_compares(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", documents(100), rows=10)
    options = ["--shard-tokens", "2000", "--encoder", "tiktoken", "--workers", "1", "--prefix", "p"]
    killed, finished, wrong = soak_tokenize.soak(str(tmp_path / "a.parquet"), 2, 0, options)
    assert killed == 2
    assert finished >= 1
    assert wrong == 0


def test_the_memory_soak_makes_words_that_never_repeat_and_measures_them() -> None:
    words = " ".join(soak_memory.documents(2500)).split()
    assert len(set(words)) == len(words) == 2500
    tokens, early, most = soak_memory.soak(2500, 1)
    assert tokens > 2500
    assert 10_000_000 < early <= most
