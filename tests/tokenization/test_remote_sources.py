"""A source behind a network gives the shards of the local files, by few requests, through whatever the network does."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, point_client

from shardkit import Manifest, tokenize
from shardkit.look.run_summary import run_summary
from shardkit.sources import chunk_bytes
from shardkit.sources.open import open_source
from shardkit.sources.read_ahead import AHEAD_BYTES
from shardkit.sources.source import Chunk, Fetched, InputFile
from shardkit.tokenization import local_runner, training
from shardkit.tokenization.characters import character_vocabulary
from shardkit.tokenization.chunk_feed import WaitingFeed
from shardkit.tokenization.local_runner import LocalRunner
from shardkit.tokenization.run_progress import TokenizeProgress
from shardkit.tokenization.spawning import Worker
from shardkit.tokenization.training import train_tokenizer

FILES = 3
REPO = "alice/texts"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of some 3 MB each, in row groups of 100 KB, with text that does not compress."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(FILES):
        texts = [os.urandom(1000).hex() for _ in range(1500)]
        table = pa.table({"id": [str(n) for n in range(1500)], "text": texts})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=50, use_dictionary=False)
    return folder


@pytest.fixture(scope="module")
def expected(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return tokenize(str(files), tmp_path_factory.mktemp("local"), **OPTIONS)


@pytest.fixture
def hub(files: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.seed_repo(REPO, {path.name: path for path in sorted(files.iterdir())})
        yield server


OPTIONS = {"tokenizer": "bytes", "shard_tokens": 1_000_000, "prefix": "p", "chunk_bytes": 1 << 18, "workers": 2}
COMMAND = [
    *(sys.executable, "-m", "shardkit", "tokenize", REPO, "--tokenizer", "bytes", "--shard-tokens", "1000000"),
    *("--prefix", "p", "--workers", "2", "--out"),
]


def start(hub: HubServer, out: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen([*COMMAND, str(out)], env=environment, text=True, stderr=subprocess.PIPE)


def test_where_chunks_bring_more_than_may_be_held_a_worker_has_one_at_a_time(
    hub: HubServer, expected: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    point_client(monkeypatch, hub.endpoint)
    had: list[int] = []
    idle = LocalRunner._idle

    def note(self: LocalRunner, *arguments: Any) -> Worker | None:
        if (worker := idle(self, *arguments)) is not None:
            had.append(len(worker.tasks))
        return worker

    monkeypatch.setattr(LocalRunner, "_idle", note)
    for most, tasks in ((local_runner.AHEAD_BYTES, {0, 1}), (1, {0})):
        monkeypatch.setattr(local_runner, "AHEAD_BYTES", most)
        manifest = tokenize(f"{hub.endpoint}/datasets/{REPO}/resolve/main/*.parquet", tmp_path / str(most), **OPTIONS)
        assert hashes(manifest) == hashes(expected)
        assert set(had) == tasks
        had.clear()


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_vocabulary_of_a_remote_source_is_the_local_files_and_fetches_what_it_is_made_of(
    hub: HubServer, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(training, "_CHUNK_BYTES", 1 << 18)
    monkeypatch.setattr(chunk_bytes, "_GAP_BYTES", 1 << 12)  # as far below a chunk as they are there
    monkeypatch.setattr(chunk_bytes, "_LINE_END_BYTES", 1 << 14)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    point_client(monkeypatch, hub.endpoint)
    repo, local = f"alice/{kind}", tmp_path / kind
    local.mkdir()
    for path in sorted(files.iterdir()):
        table = pq.read_table(path).slice(0, 1000 if kind == "parquet" else 500)
        if kind == "parquet":
            pq.write_table(table, local / path.name, row_group_size=50, use_dictionary=False)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
            (local / f"{path.stem}.jsonl").write_text(lines)
    hub.seed_repo(repo, {path.name: path for path in sorted(local.iterdir())})
    url, size = f"{hub.endpoint}/datasets/{repo}/resolve/main/*.{kind}", sum(p.stat().st_size for p in local.iterdir())
    sent: list[int] = []
    for number, max_bytes in enumerate((size // 4, 1 << 40)):
        hub.reset_log()
        there, here = (
            train_tokenizer(source, tmp_path / f"{place} {number}", vocab_size=300, max_bytes=max_bytes)
            for place, source in (("there", url), ("here", local))
        )
        assert (there.sha256, there.documents, there.held_out) == (here.sha256, here.documents, here.held_out)
        sent.append(hub.bytes_sent())
    assert sent[0] < sent[1] * 3 // 4  # both with the footers, which are long beside such files
    characters = character_vocabulary(open_source(url))
    assert characters.info.ranks_sha256 == character_vocabulary(open_source(local)).info.ranks_sha256


def test_no_more_chunks_wait_than_may_be_held() -> None:
    asked = 0

    def chunks() -> Iterator[Chunk]:
        nonlocal asked
        file = InputFile(path="a", url="a", bytes=1, format="jsonl")
        for number in range(12):
            asked += 1
            fetched = Fetched(pieces=((0, memoryview(bytes(1)) if number < 6 else bytes(AHEAD_BYTES // 2)),))
            yield Chunk(file=0, start=number, stop=number, weight=0, input=file, fetched=fetched)

    feed = WaitingFeed(chunks(), 4)
    for number in range(12):
        select.select([feed.signal], [], [])
        ahead = asked - number
        assert ahead <= (5 if number <= 6 else 3)  # those that wait, and the one that finds no room
        assert (chunk := feed.next()) is not None
        assert chunk.start == number
    select.select([feed.signal], [], [])
    assert feed.next() is None
    assert feed.over
    feed.close()


def hashes(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.shards]


def test_a_hub_dataset_is_read_by_one_resolve_a_file_and_few_requests(
    hub: HubServer, expected: Manifest, tmp_path: Path
) -> None:
    hub.reset_log()
    run = start(hub, tmp_path)
    assert run.communicate(timeout=240)[1] is not None
    assert run.returncode == 0
    assert hashes(Manifest.load(tmp_path)) == hashes(expected)
    kinds = Counter(
        (request.method, found[0])
        for request in hub.log
        if (found := re.search(r"/resolve/|/_cdn/", request.target)) and ".parquet" in request.target
    )
    assert kinds["HEAD", "/resolve/"] == FILES
    assert kinds["GET", "/resolve/"] == 0
    assert kinds["GET", "/_cdn/"] <= 5 * FILES  # for 90 row groups


def test_where_workers_share_no_memory_the_bytes_are_sent_to_them(
    hub: HubServer, expected: Manifest, tmp_path: Path
) -> None:
    code = f"import os, sys; del os.memfd_create; sys.argv = {['shardkit', *COMMAND[3:], str(tmp_path)]!r}\n"
    code += "from shardkit.cli import run; run()"
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, text=True, stderr=subprocess.PIPE, timeout=240)
    assert done.returncode == 0, done.stderr
    assert hashes(Manifest.load(tmp_path)) == hashes(expected)


def test_addresses_that_run_out_stalls_cuts_and_refusals_change_no_byte(
    hub: HubServer, expected: Manifest, tmp_path: Path
) -> None:
    faults = [
        hub.fault("expire", "GET", "/_cdn/", uses=2, times=3),
        hub.fault("drop_midway", "GET", "/_cdn/", nth=3, at=0.4),
        hub.fault("corrupt", "GET", r"/_cdn/.*1\.parquet", at=0.98),  # in the footer
        hub.fault("status", "GET", "/_cdn/", nth=5, code=503),
        hub.fault("drop", "HEAD", "/resolve/", nth=2),
    ]
    run = start(hub, tmp_path)
    errors = run.communicate(timeout=240)[1]
    assert run.returncode == 0, errors
    assert hashes(Manifest.load(tmp_path)) == hashes(expected)
    assert [fault.action for fault in faults if not fault.fired] == []


def test_killed_while_it_reads_the_same_command_goes_on_and_fetches_little_twice(
    hub: HubServer, expected: Manifest, tmp_path: Path
) -> None:
    hub.reset_log()
    wall = hub.fault("hold", "GET", r"/_cdn/.*2\.parquet", nth=2)
    run = start(hub, tmp_path)
    assert wall.reached.wait(timeout=240)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    wall.gate.set()
    again = start(hub, tmp_path)
    errors = again.communicate(timeout=240)[1]
    assert again.returncode == 0, errors
    assert hashes(Manifest.load(tmp_path)) == hashes(expected)


def test_a_run_says_what_came_over_the_network_and_what_it_waited_for(
    hub: HubServer, files: Path, tmp_path: Path
) -> None:
    sha256 = hub.files(REPO)["0.parquet"].sha256
    seen: list[TokenizeProgress] = []
    source = f"{hub.cdn}/_cdn/datasets/{REPO}/{sha256}/0.parquet"
    manifest = tokenize(source, tmp_path, **OPTIONS, progress=seen.append)
    size = (files / "0.parquet").stat().st_size
    assert size * 0.9 < seen[-1].network_bytes < size * 1.1 + (2 << 20)
    summary = run_summary(manifest, seen[-1], 1.0)
    assert summary["network_bytes"] == seen[-1].network_bytes
    assert summary["network_mb_per_second"] > 0
    assert 0 <= summary["waited_share"] <= 1
    assert re.match(r"(network|processor)-bound: \d+ MB/s", summary["bound"])
