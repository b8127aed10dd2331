"""A storage quota that is full in the middle of `tokenize --push --max-disk`: nothing is lost, and it goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_data import make_dataset
from reference import shard_bytes
from texts import documents, write_parquet

from shardkit import push, tokenize
from shardkit.errors import HubError
from shardkit.network import as_hub_error
from shardkit.remote.hub_uploads import LfsRefusedError

REPO = "alice/tokens"
SHARD_TOKENS = 5_000
FULL = "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"
SAYS = rf"storage quota is full \({FULL}\): make room.*it goes on; what has not arrived stays"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source, and the shards that it becomes."""
    texts = documents(200)
    path = write_parquet(tmp_path_factory.mktemp("delivery") / "a.parquet", texts, rows=10)
    return path, shard_bytes(texts, SHARD_TOKENS, "p")


def shards_at(hub: Any) -> dict[str, bytes]:
    return {name: hub.file_bytes(REPO, name) for name in hub.files(REPO) if name.endswith(".npy")}


def check_nothing_is_lost(hub: Any, out: Path, expected: dict[str, bytes]) -> None:
    journal, there = (out / ".shardkit" / "journal.jsonl").read_text(), shards_at(hub)
    made = [name for name in expected if name in journal]
    assert made
    for name in made:
        assert (there[name] if name in there else (out / name).read_bytes()) == expected[name]


@pytest.mark.parametrize(("path", "nth"), [("/objects/batch", 5), ("/commit/", 3)])
def test_a_full_quota_deletes_nothing_that_is_not_there_and_the_same_call_goes_on_later(
    hub: Any, corpus: tuple[Path, dict[str, bytes]], tmp_path: Path, path: str, nth: int
) -> None:
    source, expected = corpus
    assert len(expected) > 8

    def run() -> None:
        tokenize(source, tmp_path / "out", shard_tokens=SHARD_TOKENS, prefix="p", push=REPO, max_disk=60_000, workers=1)

    hub.fault("status", "POST", path, nth=nth, times=None, code=403, message=FULL)
    with pytest.raises(HubError, match=SAYS) as caught:
        run()
    assert "\n" not in str(caught.value)
    check_nothing_is_lost(hub, tmp_path / "out", expected)
    hub.faults.clear()
    run()
    assert shards_at(hub) == expected


@pytest.mark.parametrize(("path", "code"), [("/preupload/", 403), ("/commit/", 400)])
def test_a_push_says_the_same_and_sends_nothing_again_that_arrived(
    hub: Any, tmp_path: Path, path: str, code: int
) -> None:
    manifest = make_dataset(tmp_path / "a")
    hub.fault("status", "POST", path, nth=2, times=None, code=code, message=FULL)
    with pytest.raises(HubError, match=SAYS):
        push(tmp_path / "a", REPO)
    hub.faults.clear()
    push(tmp_path / "a", REPO)
    assert hub.bytes_received("/_lfs/") == sum(shard.bytes for shard in manifest.shards)


def test_a_full_quota_that_the_xet_token_call_tells_is_the_same(
    hub: Any, corpus: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    (source, expected), out = corpus, tmp_path / "out"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "shardkit", "tokenize", source, "--out", out, "--prefix", "p", "--workers", "1"]
    command += ["--shard-tokens", SHARD_TOKENS, "--push", REPO, "--max-disk", "90kB"]
    hub.fault("status", "GET", "/xet-write-token/", times=None, code=403, message=FULL)
    refused = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert FULL in refused.stderr
    assert "Traceback" not in refused.stderr
    check_nothing_is_lost(hub, out, expected)
    hub.faults.clear()
    subprocess.run(list(map(str, command)), env=environment, check=True, capture_output=True)
    assert shards_at(hub) == expected


def test_a_full_quota_that_the_hub_tells_of_one_object_of_a_batch_is_the_same() -> None:
    error, wait = as_hub_error(LfsRefusedError(403, FULL), REPO, "upload x.npy")
    assert wait is None
    assert re.search(SAYS, str(error))
