"""Over a server with the Hub's limits of requests everything ends right, and nothing is sent while a limit holds."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cache_data import opened
from hub_data import make_dataset, tree_of
from hub_limits import HubLimits
from hub_server import HubServer
from texts import documents, write_parquet

from shardkit import pull, push, rate_limits, tokenize
from shardkit.bars import TransferBar
from shardkit.errors import HubError
from shardkit.rate_limits import LIMITS
from shardkit.remote import hub_client
from shardkit.remote.hub_client import SilentError, while_bytes_come

REPO = "alice/demo"
ROOT = Path(__file__).parents[2]
OPEN = """
import json, sys
from shardkit.sources.open import open_source
print(json.dumps([file.path for file in open_source(sys.argv[1]).files]))
"""


def assert_obeyed(limits: HubLimits, threads: int) -> None:
    """That a limit was met, and that each of `threads` at most once a window: then it left the server alone."""
    assert limits.refused
    assert max(limits.refused.values()) <= threads


def test_a_push_and_a_pull_wait_for_their_limits_say_so_and_end_right(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rate_limits, "_TOLD_SECONDS", 0.5)
    make_dataset(tmp_path / "a", shards=8)
    hub.limits = HubLimits(api=6, once_spent=True)
    with TransferBar("push") as bar:
        push(tmp_path / "a", REPO, workers=3, progress=bar)
    assert_obeyed(hub.limits, 4)  # one commits
    assert "the Hub's limit of requests (429): waiting 2 s" in capsys.readouterr().err.splitlines()
    hub.limits = HubLimits(resolvers=5, once_spent=True)
    with TransferBar("pull") as bar:
        pull(REPO, tmp_path / "b", workers=3, progress=bar)
    assert_obeyed(hub.limits, 3)
    assert "the Hub's limit of requests (429): waiting 2 s" in capsys.readouterr().err.splitlines()
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_tokenize_push_waits_for_its_limit_and_ends_right(hub: HubServer, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "a.parquet", documents(40), rows=10)
    hub.limits = HubLimits(api=8, once_spent=True)
    manifest = tokenize(
        corpus, tmp_path / "out", tokenizer="bytes", shard_tokens=30_000, prefix="p", workers=1, push=REPO
    )
    assert_obeyed(hub.limits, 3)
    hub.limits = None
    assert pull(REPO, tmp_path / "b") == manifest


def test_streaming_waits_for_its_limit_and_its_reader_is_told(
    served: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=6)
    served.seed_repo(REPO, {path.name: path for path in (tmp_path / "a").iterdir()})
    served.limits = HubLimits(resolvers=4, seconds=2.0, once_spent=True)
    with caplog.at_level(logging.WARNING, logger="shardkit"):
        cache = opened(tmp_path / "cache")
        for shard in manifest.splits["train"]:
            cache.want([shard.file])
            cache.wait(shard.file)
            assert (cache.directory / shard.file).read_bytes() == (tmp_path / "a" / shard.file).read_bytes()
        cache.close()
    assert_obeyed(served.limits, 1)  # one shard is asked for at a time
    told = {record.getMessage() for record in caplog.records}
    assert any("the Hub's limit of requests (429): waiting" in line for line in told), told


def test_a_hub_source_is_opened_over_a_limit(hub: HubServer) -> None:
    names = [f"data/part-{number}.jsonl" for number in range(3)]
    hub.seed_repo("alice/texts", dict.fromkeys(names, b'{"text": "x"}\n'))
    hub.limits = HubLimits(api=5, resolvers=2, once_spent=True)
    done = subprocess.run(
        [sys.executable, "-c", OPEN, "alice/texts"],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == names
    assert_obeyed(hub.limits, 1)


def test_a_limit_is_no_silence_of_a_download_by_xet(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "XET_SILENT_SECONDS", 0.05)

    def transfer(bar: type) -> str:
        time.sleep(0.5)  # without a byte
        return "done"

    with pytest.raises(SilentError):
        while_bytes_come(transfer, threading.Event())
    LIMITS.hold("hf://", 500, "a limit")
    assert while_bytes_come(transfer, threading.Event()) == "done"


def test_a_minute_of_refusals_is_survived_by_everything_that_transfers(served: HubServer, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "a", shards=3)
    minute = {"code": 503, "times": 7}  # 1 + 2 + ... + 64 seconds, were they not thousandths
    served.fault("status", "POST", "/repos/create", **minute)
    served.fault("status", "POST", "/commit/", **minute)
    push(tmp_path / "a", REPO)
    for path in ("/tree/", r"/resolve/.*val_000000", "/_cdn/.*train_000001"):
        served.fault("status", "GET", path, **minute)
    assert pull(REPO, tmp_path / "b", workers=1) == made
    for path in ("/tree/", "/resolve/.*train_000001"):
        served.fault("status", "GET", path, **minute)
    cache = opened(tmp_path / "cache")
    cache.want([made.splits["train"][0].file])
    cache.wait(made.splits["train"][0].file)
    cache.close()
    assert all(fault.fired == 7 for fault in served.faults)


def test_a_limit_that_never_ends_is_given_up_after_the_longest_wait_of_one_call(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MOST_WAIT_SECONDS", 2.5)
    for_ever = hub.fault("status", ".*", "/api/datasets/", code=429, retry_after=1, times=None)
    with pytest.raises(HubError, match="answered 429"):
        pull(REPO, tmp_path / "a")
    assert for_ever.fired == 2  # of 2 s each, as its header says; not as often again for each try of the call
