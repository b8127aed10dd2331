"""`tokenize --push`: through a small disk, killed anywhere, moved to an empty machine: the remote ends the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from reference import shard_bytes
from texts import documents, write_parquet

from shardkit import Manifest, pull, tokenize
from shardkit.errors import DiskFull, HubError, UsageError

REPO = "alice/tokens"
SHARD_TOKENS = 5_000
SHARD_BYTES = 2 * SHARD_TOKENS + 128


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    return documents(500)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str | None]) -> Path:
    return write_parquet(tmp_path_factory.mktemp("delivery") / "a.parquet", texts, rows=10)


def remote_shards(hub: Any, repo: str = REPO) -> dict[str, bytes]:
    return {name: hub.file_bytes(repo, name) for name in hub.files(repo) if name.endswith(".npy")}


def test_shards_go_up_as_they_are_made_and_leave_the_disk(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    manifest = tokenize(
        corpus, tmp_path / "out", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=90_000, chunk_bytes=1 << 14
    )
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")
    assert not list((tmp_path / "out").glob("*.npy"))
    assert not (tmp_path / "out" / "manifest.json").exists()  # no shards here: nothing that looks finished
    assert pull(REPO, tmp_path / "pulled") == manifest
    assert not any(name.startswith(".shardkit") for name in hub.files(REPO))


def test_without_a_disk_bound_the_shards_stay_here_too(hub: Any, corpus: Path, tmp_path: Path) -> None:
    manifest = tokenize(corpus, tmp_path / "out", shard_tokens=50_000, prefix="p", push=REPO)
    assert Manifest.load(tmp_path / "out") == manifest
    assert set(remote_shards(hub)) == {shard.file for shard in manifest.shards}


def test_a_finished_run_called_again_anywhere_sends_nothing(hub: Any, corpus: Path, tmp_path: Path) -> None:
    first = tokenize(corpus, tmp_path / "a", shard_tokens=50_000, prefix="p", push=REPO, max_disk=10**6)
    hub.reset_log()
    assert tokenize(corpus, tmp_path / "a", shard_tokens=50_000, prefix="p", push=REPO, max_disk=10**6) == first
    assert tokenize(corpus, tmp_path / "b", shard_tokens=50_000, prefix="p", push=REPO, max_disk=10**6) == first
    assert hub.count("PUT", "_lfs") == 0
    with pytest.raises(HubError, match="holds another finished dataset"):
        tokenize(corpus, tmp_path / "c", shard_tokens=40_000, prefix="p", push=REPO, max_disk=10**6)


def test_a_repo_that_holds_another_unfinished_run_is_refused(hub: Any, corpus: Path, tmp_path: Path) -> None:
    hub.fault("status", "PUT", "_lfs", nth=4, times=None, code=400)
    with pytest.raises(HubError):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=90_000)
    hub.faults.clear()
    with pytest.raises(Exception, match="another run"):
        tokenize(corpus, tmp_path / "b", shard_tokens=SHARD_TOKENS + 1, prefix="p", push=REPO, max_disk=90_000)


def test_a_bound_too_small_for_two_shards_says_so(hub: Any, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"no room for two shards of 10\.1 kB: give more"):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=15_000)
    with pytest.raises(UsageError, match="give --push REPO too"):
        tokenize(corpus, tmp_path / "a", shard_tokens=SHARD_TOKENS, max_disk=15_000)


def start(corpus: Path, out: Path, endpoint: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_write", "PYTHONPATH": str(Path(__file__).parents[2])
    }  # fmt: skip
    command = [
        sys.executable, "-m", "shardkit", "tokenize", str(corpus), "--out", str(out), "--prefix", "p", "--shard-tokens",
        str(SHARD_TOKENS), "--push", REPO, "--max-disk", "90kB", "--workers", "1", "--encoder", "tiktoken",
    ]  # fmt: skip
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def bytes_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # it has just been deleted
    return total


@pytest.mark.parametrize("seed", range(3))
def test_killed_anywhere_and_moved_to_an_empty_machine_the_remote_ends_the_same_within_the_bound(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path, seed: int
) -> None:
    moments = random.Random(seed)
    hub.fault("slow", "PUT", "_lfs", seconds=0.05, times=None)  # the remote is slower than the tokenizer
    most = 0
    for machine in range(4):
        out = tmp_path / str(machine)
        process = start(corpus, out, hub.endpoint)
        deadline = time.monotonic() + (moments.uniform(1.5, 5.0) if machine < 3 else 90)
        while process.poll() is None and time.monotonic() < deadline:
            most = max(most, bytes_on_disk(out))
            time.sleep(0.005)
        if machine < 3:
            process.kill()
        _, stderr = process.communicate()
        assert "Traceback" not in stderr, stderr
    assert process.returncode == 0, stderr
    assert most <= 90_000
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")
    assert pull(REPO, tmp_path / "pulled").documents == len(texts)


def test_a_local_run_may_be_pushed_when_it_goes_on(
    hub: Any, corpus: Path, texts: list[str | None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, progress=_stop_after(5))
    made = len(list(out.glob("*.npy")))
    assert made > 0
    hub.fault("status", "PUT", "_lfs", nth=2, times=None, code=400)  # the first shard arrives, the second does not
    with pytest.raises(HubError):
        tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, push=REPO)
    journal = hub.file_bytes(REPO, ".shardkit/journal.jsonl").decode()
    assert all(name in hub.files(REPO) for name in shard_bytes(texts, SHARD_TOKENS, "p") if name in journal)
    hub.faults.clear()
    tokenize(corpus, out, shard_tokens=SHARD_TOKENS, prefix="p", chunk_bytes=1 << 14, push=REPO)
    assert remote_shards(hub) == shard_bytes(texts, SHARD_TOKENS, "p")


def _stop_after(shards: int) -> Any:
    def progress(now: Any) -> None:
        if now.shards >= shards:
            raise KeyboardInterrupt

    return progress
