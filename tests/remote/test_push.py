"""push and what tokenize --push needs, through the real client against a real server, with everything that can fail."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_data import journal_at, make_dataset, open_uploader, tree_of
from hub_server import Fault, HubServer
from huggingface_hub import HfApi

from shardkit import network, tokenize
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.errors import AuthError, HubError, ManifestError, ShardError, ShardkitWarning, UsageError
from shardkit.remote.address import open_remote
from shardkit.remote.pull import pull
from shardkit.remote.push import publish, push

REPO = "alice/demo"
ROOT = Path(__file__).parents[2]
SOAK_RUNS = int(os.environ.get("SHARDKIT_SOAK_RUNS", "25"))  # 200 for a release
LFS = "/_lfs/"


def test_a_pushed_dataset_is_pulled_back_byte_identical(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    result = push(tmp_path / "a", REPO)
    assert (result.sent_files, result.skipped_files) == (4, 0)
    assert result.sent_bytes == sum(s.bytes for s in manifest.shards) == hub.bytes_received(LFS)
    assert result.revision == hub.commits(REPO)[0].oid
    assert pull(REPO, tmp_path / "b") == manifest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_the_manifest_and_the_card_come_in_the_last_commit(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=10)
    push(tmp_path / "a", REPO)
    last, *earlier = hub.commits(REPO)
    assert MANIFEST_NAME in last.files
    assert "README.md" in last.files
    assert not any(MANIFEST_NAME in commit.files for commit in earlier)
    assert not any(name.startswith(".shardkit/") for name in last.files)
    assert len(hub.commits(REPO)) == 4  # initial, claim, shards, the end


def test_pushing_twice_sends_nothing_and_makes_no_commit(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    commits = len(hub.commits(REPO))
    hub.reset_log()
    assert push(tmp_path / "a", REPO).sent_bytes == 0
    assert hub.bytes_received(LFS) == 0
    assert len(hub.commits(REPO)) == commits


def test_nothing_is_hashed_twice(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.lfs

    make_dataset(tmp_path / "a")

    def refuse(file: Any) -> bytes:
        raise AssertionError(f"the client hashed {file.name} again")

    monkeypatch.setattr(huggingface_hub.lfs, "sha_fileobj", refuse)
    push(tmp_path / "a", REPO)


def test_shards_that_somebody_uploaded_by_hand_are_not_sent_again(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.seed_repo(REPO, {p.name: p for p in (tmp_path / "a").glob("*.npy")})
    assert push(tmp_path / "a", REPO).sent_files == 0
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_shard_that_does_not_verify_is_not_pushed(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    path = tmp_path / "a" / manifest.shards[2].file
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=f"{manifest.shards[2].file} has SHA-256 .* damaged"):
        push(tmp_path / "a", REPO)
    assert MANIFEST_NAME not in hub.files(REPO)
    assert manifest.shards[2].file not in hub.files(REPO)
    path.write_bytes(damaged[:-2])
    with pytest.raises(ShardError, match=r"has [\d,]+ bytes, expected"):
        push(tmp_path / "a", REPO)


def test_a_dataset_without_hashes_is_not_pushed(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    shards = tuple(dataclasses.replace(s, sha256="", edges="0" * 64) for s in manifest.shards)
    dataclasses.replace(manifest, shards=shards).save(tmp_path / "a")
    with pytest.raises(ManifestError, match="cannot be verified"):
        push(tmp_path / "a", REPO)
    assert hub.log == []


def test_another_dataset_is_refused_and_replaced_with_overwrite(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=5)
    make_dataset(tmp_path / "b", shards=3, seed=1)
    push(tmp_path / "a", REPO)
    before = hub.commits(REPO)[0].oid
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "b", REPO)
    assert hub.commits(REPO)[0].oid == before
    push(tmp_path / "b", REPO, overwrite=True)
    assert {n for n in hub.files(REPO) if n.endswith(".npy")} == {p.name for p in (tmp_path / "b").glob("*.npy")}
    pull(REPO, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "b")


def test_while_another_dataset_is_replaced_nothing_there_looks_whole(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", REPO)
    hub.fault("status", "PUT", LFS, code=403, times=None)
    with pytest.raises(HubError):
        push(tmp_path / "b", REPO, overwrite=True)
    with pytest.raises(HubError, match="unfinished"):
        pull(REPO, tmp_path / "c")
    hub.faults.clear()
    push(tmp_path / "b", REPO, overwrite=True)
    pull(REPO, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "b")


def test_a_branch_and_a_tag_hold_the_dataset(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", REPO, tag="v1")
    push(tmp_path / "b", REPO, revision="try")
    pull(REPO, tmp_path / "main")
    pull(REPO, tmp_path / "v1", revision="v1")
    pull(f"hf://datasets/{REPO}@try", tmp_path / "try")
    assert tree_of(tmp_path / "main") == tree_of(tmp_path / "v1") == tree_of(tmp_path / "a")
    assert tree_of(tmp_path / "try") == tree_of(tmp_path / "b")
    push(tmp_path / "a", REPO, tag="v1")  # the same commit: no complaint
    with pytest.raises(HubError, match="tag 'v1' on another commit"):
        push(tmp_path / "b", REPO, revision="try", tag="v1")


def test_private_makes_a_private_repo_and_refuses_a_public_one(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO, private=True)
    assert hub.repo(REPO).private
    push(tmp_path / "a", REPO, private=True)
    push(tmp_path / "a", "alice/open")
    with pytest.raises(HubError, match="is public"):
        push(tmp_path / "a", "alice/open", private=True)


def test_a_card_edited_by_hand_survives(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=2)
    push(tmp_path / "a", REPO)
    card = hub.file_bytes(REPO, "README.md").decode()
    edited = card.replace("license: unknown  # set it to the licence of the source text", "license: odc-by")
    edited = edited.replace("# demo\n", "# My tokens\n\nPlease cite me.\n") + "\n## Notes\n\nMine.\n"
    hub.seed_repo(REPO, {"README.md": edited.encode()})
    make_dataset(tmp_path / "b", shards=3)
    push(tmp_path / "b", REPO, overwrite=True)
    after = hub.file_bytes(REPO, "README.md").decode()
    for kept in ("license: odc-by", "# My tokens", "Please cite me.", "\n## Notes\n\nMine.\n"):
        assert kept in after
    assert "in 3 plain" in after
    assert "in 2 plain" not in after


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "repo", "expected"),
    [
        (None, REPO, "cannot create: .* needs a token and there is none: make one with write access"),
        ("hf_nobody_has_this_one", REPO, "does not accept the token"),
        ("hf_read", REPO, "read-only"),
        ("hf_other", REPO, "not your repo"),
        ("hf_write", "bob/secret", "not your repo|may not see"),
        ("hf_write\n", REPO, ""),
        ("hf_bad token", REPO, "token"),
    ],
)
def test_an_unusable_token_is_one_line_with_the_fix_and_never_shown(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, repo: str, expected: str
) -> None:
    make_dataset(tmp_path / "a")
    hub.create_repo("bob/secret", private=True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    try:
        push(tmp_path / "a", repo)
    except AuthError as error:
        text = str(error)
        assert "\n" not in text
        assert "hf auth login" in text or "check" in text
        assert token is None or token.strip() not in text
        assert __import__("re").search(expected, text), text
    else:
        assert token == "hf_write\n"  # the client strips what a file's last line leaves


@pytest.mark.parametrize(
    ("repo", "token", "revision", "expected"),
    [
        ("alice/nothing", "hf_write", None, "does not exist, or your token may not see it"),
        ("alice/nothing", None, None, "does not exist, or is private and there is no token"),
        ("bob/gated", "hf_write", None, "is gated: accept its conditions"),
        ("bob/secret", "hf_write", None, "may not see it"),
        ("bob/open", "hf_write", "nowhere", "no such revision"),
        ("bob/open", "hf_wrong_token_value", None, "does not accept the token|may not see it"),
    ],
)
def test_a_repo_that_cannot_be_read_is_one_line_with_the_fix(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    token: str | None,
    revision: str | None,
    expected: str,
) -> None:
    for name in ("open", "gated", "secret"):
        hub.create_repo(f"bob/{name}", private=name == "secret")
        hub.seed_repo(f"bob/{name}", {MANIFEST_NAME: b"{}"})
    hub.repo("bob/gated").gated = True
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=expected) as caught:
        pull(repo, tmp_path / "b", revision=revision)
    assert "\n" not in str(caught.value)
    assert token is None or token not in str(caught.value)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("action", "method", "path", "options"),
    [
        ("status", "POST", "/repos/create", {"code": 503}),
        ("status", "GET", "/api/datasets", {"code": 500, "times": 2}),
        ("status", "POST", "/preupload/", {"code": 429, "retry_after": 0}),
        ("status", "POST", "/objects/batch", {"code": 503}),
        ("status", "PUT", LFS, {"code": 503, "times": 3}),
        ("drop", "PUT", LFS, {"times": 2}),
        ("drop_midway", "PUT", LFS, {"times": 2}),
        ("lost_answer", "PUT", LFS, {}),
        ("status", "PUT", LFS, {"code": 403}),  # the address had run out
        ("status", "POST", "/commit/", {"code": 503}),
        ("drop", "POST", "/commit/", {}),
        ("lost_answer", "POST", "/commit/", {"times": 2}),
        ("status", "POST", "/validate-yaml", {"code": 503}),
        ("status", "HEAD|GET", "/resolve/", {"code": 503, "times": 2}),
        ("drop_midway", "GET", "/_cdn/", {"times": 3}),
        ("drop_midway", "GET", "/_cdn/", {"times": 3, "reset": False}),
        ("truncate", "GET", "/_cdn/", {"times": 2}),
        ("corrupt", "GET", "/_cdn/", {"times": 2}),
        ("status", "GET", "/_cdn/", {"code": 503, "times": 2}),
        ("status", "GET", "/_cdn/", {"code": 429, "retry_after": 0}),
    ],
)
def test_one_fault_is_survived_without_a_word(
    hub: HubServer, tmp_path: Path, action: Any, method: str, path: str, options: dict[str, Any]
) -> None:
    make_dataset(tmp_path / "a")
    fault = hub.fault(action, method, path, **options)
    push(tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    assert fault.fired >= 1
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    assert {n for n in hub.files(REPO) if n.startswith(".shardkit")} == set()


def test_a_lost_commit_answer_makes_no_second_commit(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.fault("lost_answer", "POST", "/commit/", times=None, probability=0.5, seed=3)
    push(tmp_path / "a", REPO)
    assert len(hub.commits(REPO)) == 4  # initial, claim, shards, the end


def test_a_permanent_failure_ends_in_one_clear_line_and_the_next_push_finishes(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.fault("status", "PUT", LFS, code=503, times=None)
    with pytest.raises(HubError, match="run the same command later, it goes on") as caught:
        push(tmp_path / "a", REPO)
    assert "\n" not in str(caught.value)
    assert "503" in str(caught.value)
    hub.faults.clear()
    push(tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_retry_after_is_honoured(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.fault("status", "POST", "/repos/create", code=429, retry_after=1)
    start = time.monotonic()
    push(tmp_path / "a", REPO)
    assert time.monotonic() - start >= 1.0


def test_a_wait_of_an_hour_is_not_waited_for(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.fault("status", "POST", "/repos/create", code=429, retry_after=3600, times=None)
    with pytest.raises(HubError, match="asks to wait 3601 s"):
        push(tmp_path / "a", REPO)


def test_a_server_that_does_not_answer_is_one_clear_line(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.stop()
    with pytest.raises(HubError, match="does not answer") as caught:
        push(tmp_path / "a", REPO)
    assert "\n" not in str(caught.value)


def test_a_stalled_server_does_not_hang_a_push(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardkit import hub_session

    monkeypatch.setattr(hub_session, "STALL_SECONDS", 0.2)
    monkeypatch.setattr(network, "TRIES", 1)
    __import__("huggingface_hub").close_session()
    make_dataset(tmp_path / "a")
    hub.pause()
    with pytest.raises(HubError, match="does not answer"):
        push(tmp_path / "a", REPO)
    hub.resume()
    __import__("huggingface_hub").close_session()


def test_a_file_that_the_repo_ignores_is_found_missing_before_the_manifest(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    remote = open_remote(REPO)
    remote.create(private=False)
    manifest = make_dataset(tmp_path / "a")
    with pytest.raises(HubError, match=f"{manifest.shards[0].file} is not there after the push"):
        publish(remote, manifest, b"")
    assert MANIFEST_NAME not in hub.files(REPO)


@pytest.mark.parametrize("seed", range(SOAK_RUNS))
def test_random_faults_end_verified_or_in_a_state_that_the_same_command_finishes(
    hub: HubServer, tmp_path: Path, seed: int
) -> None:
    make_dataset(tmp_path / "a", shards=5, seed=seed)
    rng = random.Random(seed)
    for code, options in ((429, {"retry_after": 0}), (500, {}), (503, {})):
        hub.random_faults(seed * 10 + code, rng.choice([0.02, 0.1]), ["status"], code=code, **options)
    hub.random_faults(seed, rng.choice([0.05, 0.2]), ["drop", "lost_answer", "drop_midway", "truncate", "corrupt"])
    hub.random_faults(seed, 0.1, ["slow"], seconds=0.01)

    said: list[str] = []

    def until_done(action: Any) -> None:
        for attempt in range(12):
            if attempt == 10:
                hub.faults.clear()
            try:
                return action()
            except HubError as error:
                said.append(str(error))
        raise AssertionError("not even without faults")

    until_done(lambda: push(tmp_path / "a", REPO, workers=3))
    assert hub.file_bytes(REPO, MANIFEST_NAME) == (tmp_path / "a" / MANIFEST_NAME).read_bytes()
    for name in (p.name for p in (tmp_path / "a").glob("*.npy")):
        assert hub.file_bytes(REPO, name) == (tmp_path / "a" / name).read_bytes()
    until_done(lambda: pull(REPO, tmp_path / "b", workers=3))
    assert not any("\n" in text or "hf_write" in text for text in said)
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def _while_held(hub: HubServer, fault: Fault, push_it: Callable[[], Any], then: Callable[[], Any]) -> Any:
    """Do `then` while the server holds the request of `push_it` that `fault` matches; what `push_it` returned."""
    with ThreadPoolExecutor(1) as thread:
        pushed = thread.submit(push_it)
        assert fault.reached.wait(60)
        then()
        fault.gate.set()
        return pushed.result()


def test_many_shards_are_asked_about_and_committed_in_one_call(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=60, tokens=300)
    push(tmp_path / "a", REPO)
    assert hub.count("PUT", LFS) == 60
    assert hub.count("POST", "/preupload/") == 3  # for the claim, the shards, and the end
    assert hub.count("POST", "/objects/batch") == 2  # before and after the upload
    assert hub.count("POST", "/objects/verify") == 0
    assert hub.count("POST", "/commit/") == 3


def test_a_commit_of_many_shards_that_another_commit_forestalls_is_made_again_and_nothing_sent_twice(
    hub: HubServer, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "a", shards=20)
    hold = hub.fault("hold", "POST", "/commit/", nth=2)
    _while_held(
        hub, hold, lambda: push(tmp_path / "a", REPO), lambda: hub.seed_repo(REPO, {"notes.txt": b"somebody else's"})
    )
    assert hub.count("POST", "/commit/", 412) == 1
    assert hub.count("PUT", LFS) == 20
    assert hub.file_bytes(REPO, "notes.txt") == b"somebody else's"
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_an_object_that_did_not_arrive_whole_is_found_before_the_commit_and_sent_again(
    hub: HubServer, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=6)
    hold = hub.fault("hold", "POST", "/objects/batch", nth=2)
    _while_held(
        hub, hold, lambda: push(tmp_path / "a", REPO), lambda: hub.repo(REPO).blob(manifest.shards[3].sha256).unlink()
    )
    assert hub.count("PUT", LFS) == 7
    assert hub.count("POST", "/objects/verify") == 1
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


# -- killed ------------------------------------------------------------------------------------------------------------

RUN = """
import sys
from shardkit.remote.pull import pull
from shardkit.remote.push import push
{}(sys.argv[1], sys.argv[2], workers=2)
"""


def _start(hub: HubServer, what: str, first: Path | str, second: Path | str) -> subprocess.Popen[bytes]:
    env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", RUN.format(what), str(first), str(second)], env=env, cwd=ROOT)


def _kill_at_request(hub: HubServer, process: subprocess.Popen[bytes], fault: Fault) -> None:
    """SIGKILL while the server holds the request that `fault` matches: the process cannot have ended before."""
    assert fault.reached.wait(60)
    process.kill()
    process.wait()
    fault.gate.set()
    hub.faults.remove(fault)


def test_a_push_killed_at_any_moment_finishes_and_sends_again_only_what_was_in_flight(
    hub: HubServer, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=12, tokens=200_000)
    total, largest = sum(s.bytes for s in manifest.shards), max(s.bytes for s in manifest.shards)
    moments = [(".*", "", 1), (".*", "", 6), ("PUT", LFS, 3), ("PUT", LFS, 4), ("POST", "/commit/", 1)]
    for method, path, nth in moments:
        fault = hub.fault("hold", method, path, nth=nth)
        _kill_at_request(hub, _start(hub, "push", tmp_path / "a", REPO), fault)
        assert ("datasets", REPO) not in hub.repos or MANIFEST_NAME not in hub.files(REPO)
    assert hub.bytes_received(LFS) <= total + 2 * 2 * largest  # two kills with two uploads in flight
    assert manifest.shards[0].file not in hub.files(REPO)  # all are there, and in no commit
    hub.reset_log()
    assert _start(hub, "push", tmp_path / "a", REPO).wait() == 0
    assert hub.bytes_received(LFS) == 0
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_pull_killed_at_any_moment_finishes_and_fetches_again_only_what_was_in_flight(
    hub: HubServer, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=12, tokens=200_000)
    total, largest = sum(s.bytes for s in manifest.shards), max(s.bytes for s in manifest.shards)
    push(tmp_path / "a", REPO)
    hub.reset_log()
    moments = (2, 4, 6, 8, 9)
    for moment in moments:
        fault = hub.fault("hold", nth=moment)
        _kill_at_request(hub, _start(hub, "pull", REPO, tmp_path / "b"), fault)
        assert not (tmp_path / "b" / MANIFEST_NAME).exists()
    assert _start(hub, "pull", REPO, tmp_path / "b").wait() == 0
    assert hub.bytes_sent("/_cdn/") <= total + len(moments) * 2 * largest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


# -- tokenize --push ---------------------------------------------------------------------------------------------------


def test_a_fresh_machine_finds_the_journal_and_every_shard_that_it_names(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=6)
    assert journal_at(REPO) is None
    with open_uploader(REPO, b"head\n", max_bytes=10**9) as uploader:
        journal = b"head\n"
        for shard in manifest.shards[:4]:
            journal += shard.file.encode() + b"\n"
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: journal}.copy)
        uploader.flush()
        assert uploader.pending_bytes == 0
    assert not any((tmp_path / "a" / s.file).exists() for s in manifest.shards[:4])
    left = journal_at(REPO)
    assert left == journal
    with pytest.raises(HubError, match="unfinished"):
        pull(REPO, tmp_path / "b")
    with open_uploader(REPO, left, max_bytes=10**9) as uploader:
        assert [uploader.has(s) for s in manifest.shards] == [True] * 4 + [False] * 2
        for shard in manifest.shards[4:]:
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: journal}.copy)
        uploader.flush()
        publish(uploader.remote, manifest, (tmp_path / "a" / MANIFEST_NAME).read_bytes())
    assert not any(name.startswith(".shardkit") for name in hub.files(REPO))
    assert pull(REPO, tmp_path / "b") == manifest


def test_tokenize_push_refuses_a_repo_with_other_shards(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    hub.seed_repo(REPO, {manifest.shards[1].file: tmp_path / "a" / manifest.shards[1].file})
    with pytest.raises(HubError, match="holds another dataset"):
        tokenize("sample", tmp_path / "out", push=REPO, workers=1)


def test_every_commit_holds_every_shard_that_its_journal_names(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=20)
    hub.random_faults(7, 0.2, ["status"], code=503)
    with open_uploader(REPO, b"") as uploader:
        uploader.remote.commit_files = 4
        names = b""
        for shard in manifest.shards:
            names += shard.file.encode() + b"\n"
            uploader.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: names}.copy)
        uploader.flush()
    seen = 0
    for commit in hub.commits(REPO):
        if ".shardkit/journal.jsonl" in commit.files:
            path = hub.repo(REPO).blob(commit.files[".shardkit/journal.jsonl"].sha256)
            named = path.read_text().split()
            seen += len(named)
            assert set(named) <= commit.files.keys()
    assert seen > 20


# -- elsewhere ---------------------------------------------------------------------------------------------------------


def test_a_hub_only_option_is_refused_elsewhere(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    for options in ({"private": True}, {"revision": "x"}, {"tag": "x"}):
        with pytest.raises(UsageError, match=r"Hub repo"):
            push(tmp_path / "a", str(tmp_path / "far"), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="folder to push itself"):
        push(tmp_path / "a", f"file://{tmp_path}/a")


def test_a_failed_push_names_no_secret_even_in_its_traceback(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    secret = "hf_" + "a1B2" * 9
    env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": secret, "PYTHONPATH": str(ROOT)}
    for token in (secret, f"{secret} x", f"{secret}\\nX: y"):
        done = subprocess.run(
            [sys.executable, "-c", RUN.format("push"), str(tmp_path / "a"), REPO],
            env=env | {"HF_TOKEN": token},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "AuthError" in done.stderr
        assert secret not in done.stderr + done.stdout


def test_three_pushes_of_one_dataset_at_once_all_end_well(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=10)
    together = [_start(hub, "push", tmp_path / "a", REPO) for _ in range(3)]
    assert [process.wait() for process in together] == [0, 0, 0]
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    assert not any(name.startswith(".shardkit") for name in hub.files(REPO))


def test_overwrite_leaves_what_is_no_part_of_a_dataset(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=5)
    make_dataset(tmp_path / "b", shards=3, seed=1)
    push(tmp_path / "a", REPO)
    HfApi().upload_file(path_or_fileobj=b"weights", path_in_repo="pytorch_model.bin", repo_id=REPO, repo_type="dataset")
    push(tmp_path / "b", REPO, overwrite=True)
    assert "pytorch_model.bin" in hub.files(REPO)
    push(tmp_path / "a", str(tmp_path / "folder"))
    (tmp_path / "folder" / "embeddings.npy").write_bytes(b"of the user")
    push(tmp_path / "b", str(tmp_path / "folder"), overwrite=True)
    assert (tmp_path / "folder" / "embeddings.npy").read_bytes() == b"of the user"
    assert not (tmp_path / "folder" / "demo_train_000004.npy").exists()


def test_a_push_beside_a_corpus_is_warned_of_once(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    hub.seed_repo(REPO, {"data/train-00000.parquet": b"PAR1", "requirements.txt": b"x"})
    expected = r"holds a corpus \(1 file .*data/train-00000\.parquet first\).*apart"
    with pytest.warns(ShardkitWarning, match=expected) as said:
        push(tmp_path / "a", REPO)
    assert [warning.category for warning in said].count(ShardkitWarning) == 1
    push(tmp_path / "a", REPO)  # without a word: the dataset is there


@pytest.mark.parametrize("address", ["https://host/x", "http://host/x"])
def test_an_address_that_can_only_be_read_is_refused_before_it_is_asked(address: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    with pytest.raises(UsageError, match=r"can only be read: push to user/name \(the Hub\), a folder"):
        push(tmp_path / "a", address)
