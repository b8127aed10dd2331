"""Push and pull the way that users go, by Xet: the real `hf_xet`, in processes of their own, against the test Hub.

The client reads whether Xet is off when it is imported, and the tests' own process has it off.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.remote.download import FETCHES
from shardkit.remote.pull import pull

REPO = "alice/demo"
ROOT = Path(__file__).parents[2]
XORBS = "/_cas/v1/xorbs/"


@pytest.fixture
def environment(hub: HubServer, tmp_path: Path) -> dict[str, str]:
    """For processes that talk to the test Hub by Xet, each test with a cache of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path / "hf")}
    return inherited | ours | {"PYTHONPATH": str(ROOT)}


def start(environment: dict[str, str], *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shardkit", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(environment: dict[str, str], *arguments: str | Path) -> str:
    """Run shardkit to its good end; returns its stdout."""
    process = start(environment, *arguments)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout


def test_a_dataset_goes_up_and_comes_back_by_xet(hub: HubServer, tmp_path: Path, environment: dict[str, str]) -> None:
    manifest = make_dataset(tmp_path / "a", tokens=100_000)
    run(environment, "push", tmp_path / "a", REPO)
    assert hub.count("POST", "/objects/batch") == 0
    assert hub.bytes_received(XORBS) > 0.9 * sum(shard.bytes for shard in manifest.shards)
    for shard in manifest.shards:
        assert hub.file_bytes(REPO, shard.file) == (tmp_path / "a" / shard.file).read_bytes()
    assert "verified: yes" in run(environment, "pull", REPO, tmp_path / "b")
    assert hub.bytes_sent("/_cdn/") == 0
    assert hub.count("GET", "/_xorb/") > 0
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_what_went_up_by_xet_is_not_sent_again(hub: HubServer, tmp_path: Path, environment: dict[str, str]) -> None:
    make_dataset(tmp_path / "a")
    run(environment, "push", tmp_path / "a", REPO)
    commits = len(hub.commits(REPO))
    hub.reset_log()
    assert "sent files: 0" in run(environment, "push", tmp_path / "a", REPO)
    assert hub.bytes_received("/_cas/") == 0
    assert len(hub.commits(REPO)) == commits


def test_a_client_without_xet_gets_the_same_bytes(hub: HubServer, tmp_path: Path, environment: dict[str, str]) -> None:
    make_dataset(tmp_path / "a")
    run(environment, "push", tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    assert hub.bytes_sent("/_xorb/") == 0
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_wrong_bytes_that_xet_lets_pass_are_noticed_and_fetched_again(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_dataset(tmp_path / "a", shards=2, tokens=100_000)
    run(environment, "push", tmp_path / "a", REPO)
    hub.reset_log()
    fault = hub.fault("corrupt", "GET", "/_xorb/")
    run(environment, "pull", REPO, tmp_path / "b")
    assert fault.fired == 1
    assert hub.count("GET", "/_xorb/") == 3
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_bytes_that_stay_wrong_never_get_a_final_name(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_dataset(tmp_path / "a", shards=2, tokens=100_000)
    run(environment, "push", tmp_path / "a", REPO)
    hub.fault("corrupt", "GET", "/_xorb/", times=None)
    process = start(environment, "pull", REPO, tmp_path / "b")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"arrived {FETCHES} times with other bytes than promised" in stderr
    assert not list((tmp_path / "b").glob("*.npy"))
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()


def test_bytes_that_the_store_lost_are_sent_again_by_repair(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=2, tokens=100_000)
    run(environment, "push", tmp_path / "a", REPO)
    (term,) = hub.xet.by_sha256[manifest.shards[1].sha256].terms
    xorb = hub.xet.xorb(term.xorb)
    content = bytearray(xorb.read_bytes())
    content[len(content) // 4] ^= 1
    xorb.write_bytes(content)
    assert "sent files: 0" in run(environment, "push", tmp_path / "a", REPO)
    assert "sent files: 1" in run(environment, "push", "--repair", tmp_path / "a", REPO)
    run(environment, "pull", REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


IMPATIENT = """
import sys
from shardkit.cli import run
from shardkit.remote import hub_client

hub_client.XET_SILENT_SECONDS = 0.5
sys.argv[0] = "shardkit"
run()
"""


@pytest.mark.parametrize("silent", ["/_xorb/", "/_cas/v1/reconstructions/", "/xet-read-token/"])
def test_a_download_by_xet_that_falls_silent_goes_on_by_http(
    hub: HubServer, tmp_path: Path, environment: dict[str, str], silent: str
) -> None:
    make_dataset(tmp_path / "a", tokens=50_000)
    run(environment, "push", tmp_path / "a", REPO)
    fault = hub.fault("hold", "GET", silent, times=None)
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "pull", REPO, str(tmp_path / "b"), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    fault.gate.set()
    assert done.returncode == 0, done.stderr
    assert fault.fired >= 1
    # What the client does in a thread that was given up may begin a file there after the pull's end.
    shutil.rmtree(tmp_path / "b" / ".shardkit" / "incoming", ignore_errors=True)
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_where_the_client_finds_no_file_locks_a_download_goes_on_by_http(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_dataset(tmp_path / "a")
    run(environment, "push", tmp_path / "a", REPO)
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "support" / "hasty"), environment["PYTHONPATH"]])
    without = environment | {"WITHOUT_LOCKS": "ENOLCK", "PYTHONPATH": paths}
    assert "verified: yes" in run(without, "pull", REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


@pytest.mark.parametrize(("path", "nth", "sent"), [(XORBS, 3, 11), ("/commit/", 2, 12)])
def test_a_push_by_xet_that_is_killed_sends_again_only_what_was_in_flight(
    hub: HubServer, tmp_path: Path, environment: dict[str, str], path: str, nth: int, sent: int
) -> None:
    make_dataset(tmp_path / "a", shards=12, tokens=50_000)
    fault = hub.fault("hold", "POST", path, nth=nth)
    process = start(environment, "push", tmp_path / "a", REPO)
    assert fault.reached.wait(60)
    wait_until(lambda: len(list((tmp_path / "hf").rglob("shard-cache/*.mdb"))) == sent)  # the client's own notes
    killed(process, fault, hub)
    assert MANIFEST_NAME not in hub.files(REPO)
    assert len(hub.xet.files) == sent
    hub.reset_log()
    run(environment, "push", tmp_path / "a", REPO)
    assert hub.count("POST", XORBS) == 12 - sent
    run(environment, "pull", REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


SENT_BY_ANOTHER = """
import sys
from pathlib import Path
from shardkit import Manifest
from shardkit.remote.address import open_remote

manifest = Manifest.load(sys.argv[1])
driver, node = open_remote(sys.argv[2]), open_remote(sys.argv[2])
driver.create(private=False)
driver.files()
for shard in manifest.shards:
    driver.received(shard, node.upload(Path(sys.argv[1], shard.file), shard))
driver.commit(manifest.shards, {}, "Add them")
"""


def test_what_another_process_sent_by_xet_is_committed_without_its_bytes(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    manifest = make_dataset(tmp_path / "a")
    words = [sys.executable, "-c", SENT_BY_ANOTHER, str(tmp_path / "a"), REPO]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert hub.count("POST", "/objects/batch") == 0
    for shard in manifest.shards:
        assert hub.file_bytes(REPO, shard.file) == (tmp_path / "a" / shard.file).read_bytes()


def test_a_xet_token_is_asked_for_once_and_again_when_it_has_run_out(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_dataset(tmp_path / "a", shards=6)
    run(environment, "push", tmp_path / "a", REPO)
    assert hub.count("GET", "/xet-write-token/") == 1
    hub.xet.expires = 1
    run(environment, "push", tmp_path / "a", "alice/other")
    assert hub.count("GET", "/alice/other/xet-write-token/") >= 6


def test_a_pull_by_xet_that_is_killed_fetches_only_what_it_has_not(
    hub: HubServer, tmp_path: Path, environment: dict[str, str]
) -> None:
    make_dataset(tmp_path / "a", shards=12, tokens=50_000)
    run(environment, "push", tmp_path / "a", REPO)
    fault = hub.fault("hold", "GET", "/_xorb/", nth=11)  # eight files come at a time
    killed(start(environment, "pull", REPO, tmp_path / "b"), fault, hub)
    here = len(list((tmp_path / "b").glob("*.npy")))
    assert here >= 1
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()
    hub.reset_log()
    run(environment, "pull", REPO, tmp_path / "b")
    assert hub.count("GET", "/_xorb/") == 12 - here
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_store_that_refuses_is_one_clear_line(hub: HubServer, tmp_path: Path, environment: dict[str, str]) -> None:
    make_dataset(tmp_path / "a", shards=2)
    hub.fault("status", "GET", "/xet-write-token/", code=403, times=None)
    process = start(environment, "push", tmp_path / "a", REPO)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert [line for line in stderr.splitlines() if line.startswith("error: ")], stderr
    assert "Traceback" not in stderr
    assert "hf_write" not in stderr


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what happens in another process."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def killed(process: subprocess.Popen[str], fault: Any, hub: HubServer) -> None:
    assert fault.reached.wait(60)
    process.kill()
    process.communicate()
    fault.gate.set()
    hub.wait_for_quiet()
