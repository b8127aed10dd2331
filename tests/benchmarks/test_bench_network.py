"""The network benchmark runs, tiny, and its table is made of what the server and the summaries say."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks import network_data
from benchmarks.bench_network import main
from benchmarks.network_runs import Server, traffic


@pytest.fixture(autouse=True)
def little_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_data, "PROSE_BYTES", 100_000)


def test_a_cell_is_measured_and_its_bytes_are_the_local_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--files", "2", "--file-mb", "0.5", "--rounds", "1", "--latency", "1", "--rate", "100", "--workers", "1"]
    [row] = main([*tiny, "--parts", "cells", "--data", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    assert row["identical"]
    assert row["ratio"] == pytest.approx(row["remote"] / max(row["download"], row["local"]))
    assert row["of_both"] == pytest.approx(row["remote"] / row["both"])
    assert min(row["download"], row["local"], row["remote"], row["bytes_per_needed"]) > 0
    assert row["requests_per_100_mb"]["content"] > 0
    assert row["peak_mb"]["remote"] > 10
    assert "parquet" in capsys.readouterr().out


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda pid: ())(0)) < 2, reason="wants Linux and two cores")
def test_a_server_apart_has_a_core_that_nothing_else_runs_on(tmp_path: Path) -> None:
    cores = os.sched_getaffinity(0)
    with Server(tmp_path, apart=True) as server:
        assert os.sched_getaffinity(server.pid) == {min(cores)}
        assert os.sched_getaffinity(0) == cores - {min(cores)}
        server.control("DELETE", "log")
    assert os.sched_getaffinity(0) == cores


def test_the_files_are_like_the_real_ones_and_made_once(tmp_path: Path) -> None:
    for name in network_data.MAKERS:
        place = network_data.make(tmp_path, name, 2, 30_000)
        assert all(path.stat().st_size > 0 for path in place.iterdir())
        assert len(list(place.iterdir())) == 2
        before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
        assert network_data.make(tmp_path, name, 2, 30_000) == place
        assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before
    parquet = pq.ParquetFile(network_data.make(tmp_path, "parquet", 2, 30_000) / "000.parquet")
    assert parquet.schema_arrow.names[:4] == ["text", "id", "dump", "url"]
    assert parquet.metadata.row_group(0).num_rows == 1000
    wide = network_data.make(tmp_path, "wide", 2, 30_000)
    assert 0 < network_data.text_column_bytes(wide) < sum(path.stat().st_size for path in wide.iterdir()) / 8


def test_made_up_words_never_come_again() -> None:
    text = " ".join("abcdefghij" * 30)
    made = [" ".join(network_data.with_new_words([text] * 40, seed)) for seed in (1, 2)]
    words = [word for each in made for word in each.split() if len(word) > 1]
    assert len(set(words)) == len(words) >= 2 * 40 * 2
    assert len(made[0].split()) == 40 * 300


def test_long_text_is_written_by_a_command(tmp_path: Path) -> None:
    folder = network_data.main(["--out", str(tmp_path), "--megabytes", "0.5"])
    assert [path.name for path in folder.iterdir()] == ["000.parquet"]
    assert pq.ParquetFile(folder / "000.parquet").metadata.num_rows >= 1000


def test_the_log_tells_what_a_run_asked_for() -> None:
    times = [("/api/datasets/a/b", 1.0, 1.1), ("/datasets/a/b/resolve/main/x", 1.1, 1.2)]
    times += [("/_cdn/x", 2.0, 4.0), ("/_cdn/x", 3.0, 5.0), ("/_cdn/y", 4.5, 6.0)]
    line = {"method": "GET", "status": 206, "bytes_out": 10}
    log = [{**line, "target": target, "began": began, "ended": ended} for target, began, ended in times]
    log[1]["status"] = 302
    seen = traffic(log)
    assert (seen["first"], seen["bytes"], seen["connections"]) == (2.0, 30, 2)
    assert seen["requests"] == {"resolve": 1, "api": 1, "content": 3, "cas": 0}
