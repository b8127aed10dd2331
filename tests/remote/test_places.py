"""The two kinds of remote: what REPO may be, and folders and S3 with the same guarantees as the Hub."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_data import make_dataset, open_uploader, tree_of

from shardkit import network
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.errors import AuthError, HubError, UsageError
from shardkit.remote.address import open_remote
from shardkit.remote.hub import HubRemote
from shardkit.remote.pull import pull
from shardkit.remote.push import publish, push
from shardkit.remote.storage import LEDGER_NAME, FsspecRemote
from shardkit.tokenization.live_push import fetch_journal

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("user/name", "hf://datasets/user/name"),
        ("user/my.data-set_2", "hf://datasets/user/my.data-set_2"),
        ("hf://datasets/user/name", "hf://datasets/user/name"),
        ("hf://datasets/user/name@v1", "hf://datasets/user/name@v1"),
    ],
)
def test_hub_names(repo: str, expected: str) -> None:
    remote = open_remote(repo)
    assert isinstance(remote, HubRemote)
    assert remote.name == expected


def test_paths_and_urls_are_fsspecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for repo in ("./x", "../" + tmp_path.name + "/x", f"{tmp_path}/x", "~/x", f"file://{tmp_path}/x"):
        remote = open_remote(repo)
        assert isinstance(remote, FsspecRemote)
        assert remote.local_folder == tmp_path.resolve() / "x"
    assert isinstance(open_remote("s3://bucket/x"), FsspecRemote)
    assert isinstance(open_remote("memory://x"), FsspecRemote)


@pytest.mark.parametrize(
    "repo", ["", "name", "a/b/c", "user/", "hf://user/name", "hf://buckets/user/name", "hf://datasets/x", "nowhere://x"]
)
def test_what_is_neither_is_refused_with_what_to_write(repo: str) -> None:
    with pytest.raises(UsageError, match=r"user/name"):
        open_remote(repo)


def test_two_revisions_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="give one"):
        open_remote("hf://datasets/user/name@v1", revision="v2")


# -- a folder and S3, the same tests -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: str
) -> Iterator[tuple[str, Any]]:
    """A REPO that is not the Hub's, and its fsspec filesystem."""
    import fsspec

    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    if request.param == "folder":
        yield f"file://{tmp_path}/far", fsspec.filesystem("file")
        return
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    bucket = f"b{abs(hash(str(tmp_path))) % 10**12}"
    fs.mkdir(bucket)
    yield f"s3://{bucket}/sets/demo", fs
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_pushed_dataset_is_pulled_back_byte_identical(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    assert push(tmp_path / "a", repo).sent_files == 4
    assert push(tmp_path / "a", repo).sent_files == 0
    assert pull(repo, tmp_path / "b") == manifest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    fs.invalidate_cache()
    names = {Path(name).name for name in fs.find(repo)}
    assert names == {*tree_of(tmp_path / "a"), "README.md"}


def test_an_unfinished_push_goes_on_and_is_not_taken_for_a_dataset(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    lost = (tmp_path / "a" / manifest.shards[3].file).rename(tmp_path / "lost")
    (tmp_path / "a" / manifest.shards[3].file).write_bytes(lost.read_bytes()[:-1] + b"\0")
    with pytest.raises(Exception, match="is damaged"):
        push(tmp_path / "a", repo)
    with pytest.raises(HubError, match="unfinished"):
        pull(repo, tmp_path / "b")
    lost.rename(tmp_path / "a" / manifest.shards[3].file)
    fs.invalidate_cache()
    acknowledged = json.loads(fs.cat_file(f"{repo}/{LEDGER_NAME}")) if fs.exists(f"{repo}/{LEDGER_NAME}") else {}
    assert push(tmp_path / "a", repo).skipped_files == len(acknowledged)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


@pytest.mark.parametrize("garbage", [b"", b"{", b"[1]", b'{"demo_val_000000.npy": 3}', b"\xff"])
def test_a_ledger_that_cannot_be_read_costs_a_second_upload_and_no_more(tmp_path: Path, garbage: bytes) -> None:
    make_dataset(tmp_path / "a")
    repo = str(tmp_path / "far")
    with open_uploader(repo, b"head\n") as outbox:
        shard = make_dataset(tmp_path / "a").shards[0]
        outbox.submit(tmp_path / "a" / shard.file, shard)
        outbox.flush()
    (tmp_path / "far" / LEDGER_NAME).write_bytes(garbage)
    (tmp_path / "far" / ".shardkit" / "journal.jsonl").unlink()
    assert push(tmp_path / "a", repo, overwrite=True).sent_files == 4
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_another_dataset_is_refused_and_replaced_with_overwrite(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    make_dataset(tmp_path / "a", shards=5)
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", repo)
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "b", repo)
    push(tmp_path / "b", repo, overwrite=True)
    pull(repo, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "b")


def test_bytes_damaged_at_the_remote_are_found_and_mended_by_overwrite(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    manifest = make_dataset(tmp_path / "a")
    push(tmp_path / "a", repo)
    target = f"{repo}/{manifest.shards[1].file}"
    fs.pipe_file(target, fs.cat_file(target)[:-1] + b"\0")
    with pytest.raises(HubError, match=r"arrived 3 times with other bytes .* --overwrite"):
        pull(repo, tmp_path / "b")
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()
    push(tmp_path / "a", repo, overwrite=True)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_tokenize_push_goes_on_from_the_journal(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    manifest = make_dataset(tmp_path / "a")
    assert fetch_journal(repo).journal is None
    with open_uploader(repo, b"head\n", max_bytes=10**9) as outbox:
        for shard in manifest.shards[:2]:
            outbox.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: b"head\n" + shard.file.encode()})
        outbox.flush()
    left = fetch_journal(repo)
    assert left.journal == b"head\n" + manifest.shards[1].file.encode()
    with open_uploader(repo, left.journal, max_bytes=10**9) as outbox:
        assert [outbox.has(s) for s in manifest.shards] == [True, True, False, False]
        for shard in manifest.shards[2:]:
            outbox.submit(tmp_path / "a" / shard.file, shard, {JOURNAL_FILE: left.journal})
        outbox.flush()
        publish(outbox.remote, manifest, (tmp_path / "a" / MANIFEST_NAME).read_bytes())
    assert sorted(tree_of(tmp_path / "a")) == [MANIFEST_NAME]
    assert pull(repo, tmp_path / "b") == manifest


def test_a_repo_that_is_not_there_is_one_clear_line(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, _ = place
    with pytest.raises(HubError, match=r"holds nothing|no such") as caught:
        pull(repo, tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_a_push_killed_at_any_moment_finishes(place: tuple[str, Any], tmp_path: Path) -> None:
    repo, fs = place
    make_dataset(tmp_path / "a", shards=8, tokens=300_000)
    command = [
        sys.executable,
        "-c",
        f"from shardkit.remote.push import push; push({str(tmp_path / 'a')!r}, {repo!r}, workers=2)",
    ]
    env, rng, kills = os.environ | {"PYTHONPATH": str(ROOT)}, random.Random(repo), 0
    for shards_there in (0, 2, 5):
        process = subprocess.Popen(command, env=env, cwd=ROOT)
        while process.poll() is None:
            fs.invalidate_cache()
            if fs.exists(repo) and len(fs.glob(f"{repo}/*.npy")) >= shards_there:
                time.sleep(rng.random() * 0.01)
                break
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    push(tmp_path / "a", repo)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_or_not_ours_is_one_clear_line(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    make_dataset(tmp_path / "a")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(HubError, match="no such file or folder") as caught:
        push(tmp_path / "a", "s3://no-such-bucket-here/x")
    assert "\n" not in str(caught.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(AuthError, match="credentials"):
        push(tmp_path / "a", "s3://no-such-bucket-here/x")
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "far").write_text("not a folder")
    with pytest.raises(HubError, match="in the way"):
        push(tmp_path / "a", str(tmp_path / "far"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_one_clear_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "far").mkdir(mode=0o500)
    with pytest.raises(AuthError, match="does not allow it"):
        push(tmp_path / "a", str(tmp_path / "far" / "x"))


def test_bare_shards_in_a_folder_are_not_overwritten(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "far")
    (tmp_path / "far" / MANIFEST_NAME).unlink()
    before = tree_of(tmp_path / "far")
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "a", str(tmp_path / "far"))
    assert {name: before[name] for name in before} == {
        n: c for n, c in tree_of(tmp_path / "far").items() if n in before
    }
