"""A place that lists the right files and serves wrong bytes: found by whoever pulls, put right by its owner."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import HubError
from shardkit.remote.address import open_remote
from shardkit.remote.bucket import BucketRemote
from shardkit.remote.hub import HubRemote
from shardkit.remote.pull import pull
from shardkit.remote.push import push
from shardkit.remote.storage import FsspecRemote


def damage(repo: str, manifest: Manifest, number: int, request: pytest.FixtureRequest) -> None:
    """Flip a byte of a shard in the store of a place, behind its listing."""
    shard, remote = manifest.shards[number], open_remote(repo)
    if isinstance(remote, HubRemote):
        blob = request.getfixturevalue("hub").repo(repo).blob(shard.sha256)
        blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    elif isinstance(remote, BucketRemote):
        place = remote._path(shard.file)
        ((xet_hash, _),) = remote._bucket.send([remote._bucket.read(place)[:-1] + b"\0"])
        remote._bucket.change({place: xet_hash})
    elif isinstance(remote, FsspecRemote):
        place = f"{remote._root}/{shard.file}"
        remote._fs.pipe_file(place, remote._fs.cat_file(place)[:-1] + b"\0")


def test_what_is_served_wrong_is_sent_anew_by_repair_alone(
    repo: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=5)
    push(tmp_path / "a", repo)
    for number in (1, 3):
        damage(repo, manifest, number, request)
    with pytest.raises(HubError, match=r"pull again later; .* its owner mends it with `shardkit push --repair`"):
        pull(repo, tmp_path / "b")
    assert push(tmp_path / "a", repo).sent_files == 0  # by the listing all is well
    seen: list[tuple[str, int, int]] = []
    result = push(tmp_path / "a", repo, repair=True, progress=lambda *step: seen.append(step))
    assert (result.sent_files, result.skipped_files) == (2, 3)
    assert {file for file, done, total in seen if done == total} >= {manifest.shards[4].file}
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    assert not any(name.startswith(".shardkit") for name in open_remote(repo).files())


def test_what_is_listed_and_not_served_at_all_is_sent_anew(hub: HubServer, tmp_path: Path) -> None:
    manifest, repo = make_dataset(tmp_path / "a"), "alice/demo"
    push(tmp_path / "a", repo)
    hub.repo(repo).blob(manifest.shards[2].sha256).unlink()
    with pytest.raises(HubError):
        pull(repo, tmp_path / "b")
    assert push(tmp_path / "a", repo, repair=True).sent_files == 1
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_repair_of_what_is_right_changes_nothing_and_of_nothing_is_a_push(
    repo: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    assert push(tmp_path / "a", repo, repair=True).sent_files == 4
    assert push(tmp_path / "a", repo, repair=True).sent_files == 0
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "b", repo, repair=True)
    pull(repo, tmp_path / "c")
    assert tree_of(tmp_path / "c") == tree_of(tmp_path / "a")


def test_a_repair_that_is_cut_short_leaves_nothing_that_looks_whole_and_goes_on(
    hub: HubServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    manifest, repo = make_dataset(tmp_path / "a"), "alice/demo"
    push(tmp_path / "a", repo)
    damage(repo, manifest, 2, request)
    hub.fault("status", "PUT", "/_lfs/", code=400, times=None)
    with pytest.raises(HubError):
        push(tmp_path / "a", repo, repair=True)
    assert MANIFEST_NAME not in hub.files(repo)
    hub.faults.clear()
    push(tmp_path / "a", repo, repair=True)
    pull(repo, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_fault_on_the_way_that_passes_is_not_taken_for_damage(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", "alice/demo")
    fault = hub.fault("corrupt", "GET", "/_cdn/", times=2)
    assert push(tmp_path / "a", "alice/demo", repair=True).sent_files == 0
    assert fault.fired == 2
