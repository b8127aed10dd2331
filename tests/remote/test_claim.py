"""Two pushes to one place: one whole dataset is there in the end, and no push reports another one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit import tokenize
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import HubError, ShardkitError
from shardkit.remote.address import open_remote
from shardkit.remote.bucket import BucketRemote
from shardkit.remote.claim import claim_for, mark, step_aside
from shardkit.remote.hub import HubRemote
from shardkit.remote.interface import CLAIM_FILE
from shardkit.remote.pull import pull
from shardkit.remote.push import push
from shardkit.remote.storage import FsspecRemote
from shardkit.remote.uploader import Uploader


def at_the_first(
    monkeypatch: pytest.MonkeyPatch, method: str, action: Callable[[], Any], when: Callable[..., bool] = lambda *_: True
) -> None:
    """Run `action` at the first call of any remote's `method` whose arguments `when` approves of, before its work."""
    done: list[bool] = []
    for kind in (HubRemote, BucketRemote, FsspecRemote):
        real = getattr(kind, method)

        def call(self: Any, *arguments: Any, real: Any = real) -> Any:
            if not done and when(*arguments):
                done.append(True)
                action()
            return real(self, *arguments)

        monkeypatch.setattr(kind, method, call)


def holds(repo: str, folder: Path, into: Path) -> bool:
    """Whether a pull from `repo` gives the dataset in `folder`."""
    pull(repo, into)
    return tree_of(into) == tree_of(folder)


def test_a_push_that_looked_before_another_began_and_ended_does_not_replace_it(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    at_the_first(monkeypatch, "claim", lambda: push(tmp_path / "a", repo))
    with pytest.raises(HubError, match="holds another dataset"):
        push(tmp_path / "b", repo)
    assert holds(repo, tmp_path / "a", tmp_path / "c")
    assert CLAIM_FILE not in open_remote(repo).files()


def test_a_place_where_another_dataset_is_on_its_way_is_refused_and_left_alone(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    refused: list[str] = []

    def another() -> None:
        try:
            push(tmp_path / "b", repo)
        except HubError as error:
            refused.append(str(error))

    at_the_first(monkeypatch, "upload", another)  # nothing but the claim is there then
    push(tmp_path / "a", repo)
    assert "another dataset is on its way" in refused[0]
    assert holds(repo, tmp_path / "a", tmp_path / "c")


def push_at_once(monkeypatch: pytest.MonkeyPatch, repo: str, folders: list[Path]) -> list[str]:
    """Push each folder in a thread of its own, all claiming the place in the same moment; the errors, "" for none."""
    together = threading.Barrier(len(folders))
    for kind in (HubRemote, BucketRemote, FsspecRemote):
        real, thread = kind.claim, threading.local()

        def claim(self: Any, *arguments: Any, real: Any = real, thread: Any = thread) -> Any:
            if not hasattr(thread, "waited"):
                thread.waited = together.wait(60)
            return real(self, *arguments)

        monkeypatch.setattr(kind, "claim", claim)

    def run(folder: Path) -> str:
        try:
            push(folder, repo)
        except ShardkitError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(folders)) as threads:
        return list(threads.map(run, folders))


def test_of_three_that_begin_at_once_one_ends_well_and_its_dataset_is_there(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders):
        make_dataset(folder, seed=seed)
    errors = push_at_once(monkeypatch, repo, folders)
    (winner,) = (folder for folder, error in zip(folders, errors, strict=True) if not error)
    assert sum("another dataset" in error for error in errors) == 2, errors
    assert holds(repo, winner, tmp_path / "pulled")


def test_three_that_push_the_same_at_once_all_end_well(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    assert push_at_once(monkeypatch, repo, [tmp_path / "a"] * 3) == ["", "", ""]
    assert holds(repo, tmp_path / "a", tmp_path / "pulled")


MOMENTS: dict[str, tuple[str, Callable[..., bool]]] = {
    "an upload": ("upload", lambda path, shard: shard.index == 1),
    "a shard's commit": ("commit", lambda shards, small, message: bool(shards)),
    "the last commit": ("commit", lambda shards, small, message: small.get(MANIFEST_NAME) is not None),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_push_that_is_replaced_with_overwrite_ends_with_an_error_and_changes_nothing_more(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    method, when = MOMENTS[moment]
    at_the_first(monkeypatch, method, lambda: push(tmp_path / "b", repo, overwrite=True), when)
    with pytest.raises(HubError, match="not ours any more"):
        push(tmp_path / "a", repo, workers=1)
    assert holds(repo, tmp_path / "b", tmp_path / "c")
    assert CLAIM_FILE not in open_remote(repo).files()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_push_of_the_same_dataset_that_was_completed_meanwhile_ends_well(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    make_dataset(tmp_path / "a")
    method, when = MOMENTS[moment]
    at_the_first(monkeypatch, method, lambda: push(tmp_path / "a", repo), when)
    push(tmp_path / "a", repo, workers=1)
    assert holds(repo, tmp_path / "a", tmp_path / "c")
    assert not any(name.startswith(".shardkit") for name in open_remote(repo).files())


def test_while_a_dataset_is_replaced_a_reader_finds_the_old_the_new_or_an_unfinished_one(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", repo)
    seen: list[str] = []

    def look() -> None:
        reader = open_remote(repo)
        files = reader.files()
        if MANIFEST_NAME not in files:
            assert CLAIM_FILE in files
            seen.append("unfinished")
            return
        manifest = Manifest.from_json(reader.read(MANIFEST_NAME).decode())
        assert all(files[shard.file].size == shard.bytes for shard in manifest.shards)
        (folder,) = (name for name in ("a", "b") if Manifest.load(tmp_path / name) == manifest)
        seen.append(folder)

    for kind, methods in (
        (HubRemote, ["_send_commit"]),
        (BucketRemote, ["_write"]),
        (FsspecRemote, ["_write", "_delete", "_create", "upload"]),
    ):
        for method in methods:
            real = getattr(kind, method)

            def call(self: Any, *arguments: Any, real: Any = real) -> Any:
                result = real(self, *arguments)
                look()
                return result

            monkeypatch.setattr(kind, method, call)
    push(tmp_path / "b", repo, overwrite=True)
    order = [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]
    assert order in (["a", "unfinished", "b"], ["unfinished", "b"]), seen


# -- tokenize --push ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", ["hub", "folder"], indirect=True)
@pytest.mark.parametrize("moment", ["claim", "upload"])
def test_a_second_run_is_refused_before_it_makes_a_shard(
    repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"some words of {name} " * 400)
    options: dict[str, Any] = {"shard_tokens": 400, "workers": 1, "tokenizer": "bytes", "prefix": "p", "push": repo}
    first, second = ("b", "a") if moment == "claim" else ("a", "b")
    refused: list[str] = []

    def run(name: str) -> None:
        try:
            tokenize(tmp_path / f"{name}.txt", tmp_path / name, **options)
        except HubError as error:
            refused.append(f"{name}: {error}")

    at_the_first(monkeypatch, moment, lambda: run(second))
    run(first)
    assert len(refused) == 1
    assert refused[0].startswith("b: ")
    assert "another run" in refused[0] or "another dataset" in refused[0]
    assert pull(repo, tmp_path / "c") == Manifest.load(tmp_path / "a")
    assert not list((tmp_path / "b").glob("*.npy"))


@pytest.mark.parametrize("at_remote", [False, True])
def test_a_shard_is_deleted_here_only_while_the_remote_is_ours(repo: str, tmp_path: Path, *, at_remote: bool) -> None:
    manifest = make_dataset(tmp_path / "a")
    shard, remote = manifest.shards[0], open_remote(repo)
    path = tmp_path / "a" / shard.file
    remote.create(private=False)
    claim_for(remote, mark(run="a"), lambda files, held: {})
    if at_remote:
        remote.upload(path, shard)
        remote.commit([shard], {}, "Add")
    listed = remote.files()
    other = open_remote(repo)
    claim_for(other, mark(run="b"), lambda files, held: {})  # which an --overwrite does
    with Uploader(remote, listed, delete_local=True) as uploader:
        uploader.submit(path, shard)
        with pytest.raises(HubError, match="not ours any more"):
            uploader.flush()
    assert path.exists()


# -- on the Hub --------------------------------------------------------------------------------------------------------


def test_a_commit_by_somebody_else_that_leaves_the_dataset_alone_stops_no_push(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    real = HubRemote._send_commit

    def send(self: Any, *arguments: Any) -> Any:
        if (before := hub.count("POST", "/commit/")) % 2 == 0:  # each commit is sent twice
            hub.seed_repo("alice/demo", {"x.txt": b"%d" % before})
        return real(self, *arguments)

    monkeypatch.setattr(HubRemote, "_send_commit", send)
    push(tmp_path / "a", "alice/demo")
    assert hub.count("POST", "/commit/", status=412) == 3
    assert hub.file_bytes("alice/demo", "x.txt") == b"4"
    assert holds("alice/demo", tmp_path / "a", tmp_path / "c")


def test_a_run_of_an_earlier_version_that_left_no_mark_goes_on(hub: HubServer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_tokens": 400, "workers": 1, "tokenizer": "bytes", "prefix": "p"}
    hub.fault("status", "PUT", "_lfs", nth=2, times=None, code=400)
    with pytest.raises(HubError):
        tokenize(["some words " * 400], tmp_path / "a", push="alice/demo", **options)
    hub.faults.clear()
    repo = hub.repo("alice/demo")
    files = dict(repo.resolve("main").files)
    del files[CLAIM_FILE]
    repo.commit("main", "as it was", "", "alice", files)
    manifest = tokenize(["some words " * 400], tmp_path / "a", push="alice/demo", **options)
    assert pull("alice/demo", tmp_path / "c") == manifest


def test_who_finds_others_first_again_and_again_waits_longer_up_to_half_a_minute() -> None:
    remote, waits = FsspecRemote("./far"), list[float]()
    remote.stopping.wait = lambda seconds=None: bool(waits.append(seconds))  # type: ignore[method-assign, func-returns-value, arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.random", lambda: 1.0)
        patch.setattr("shardkit.network.FIRST_WAIT_SECONDS", 1.0)
        for times in range(8):
            step_aside(remote, times)
    assert waits == [1, 2, 4, 8, 16, 32, 32, 32]


def test_a_listing_of_a_folder_that_is_completed_meanwhile_shows_the_claim_or_the_manifest(tmp_path: Path) -> None:
    remote = open_remote(str(tmp_path))
    assert isinstance(remote, FsspecRemote)
    (tmp_path / CLAIM_FILE).parent.mkdir()
    (tmp_path / CLAIM_FILE).write_bytes(b"{}")
    list_folder = remote._fs.find

    def find(*of: Any, **how: Any) -> Any:
        found = list_folder(*of, **how)
        (tmp_path / MANIFEST_NAME).write_text("{}")
        (tmp_path / CLAIM_FILE).unlink(missing_ok=True)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote._fs, "find", find)
        assert remote.files().keys() & {MANIFEST_NAME, CLAIM_FILE}
