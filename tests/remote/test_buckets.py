"""Buckets of the Hub as places: the real client and the real `hf_xet` against the test Hub's buckets.

What all places have in common is tested in `test_claim.py`, `test_repair.py` and `test_places.py`, for buckets too.
This process has Xet off for downloads, which then come by HTTP; processes that the tests start have it on.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer
from test_xet import environment, killed, run, start  # noqa: F401 (`environment` is a fixture)

from shardkit import tokenize
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import AuthError, HubError, UsageError
from shardkit.remote import bucket
from shardkit.remote.address import open_remote
from shardkit.remote.bucket import BucketRemote
from shardkit.remote.bucket_client import BucketClient
from shardkit.remote.pull import pull
from shardkit.remote.push import push
from shardkit.remote.uploader import Uploader

BUCKET = "alice/tokens"
PLACE = f"hf://buckets/{BUCKET}/sets/demo"


@pytest.mark.parametrize("place", [f"hf://buckets/{BUCKET}", PLACE])
def test_a_pushed_dataset_is_pulled_back_byte_identical(hub: HubServer, tmp_path: Path, place: str) -> None:
    manifest = make_dataset(tmp_path / "a")
    assert push(tmp_path / "a", place).sent_files == 4
    assert push(tmp_path / "a", place).sent_files == 0
    assert pull(place, tmp_path / "b") == manifest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    folder = "sets/demo/" if place == PLACE else ""
    assert {*hub.buckets[BUCKET].files} == {folder + name for name in [*tree_of(tmp_path / "a"), "README.md"]}
    assert f"shardkit pull {place} data" in hub.bucket_bytes(BUCKET, f"{folder}README.md").decode()


def test_datasets_beside_and_below_another_are_none_of_its_files(hub: HubServer, tmp_path: Path) -> None:
    for seed, folder in enumerate(("demo", "demo2", "demo/more")):
        make_dataset(tmp_path / folder.replace("/", "-"), shards=2, seed=seed)
        push(tmp_path / folder.replace("/", "-"), f"hf://buckets/{BUCKET}/{folder}")
    assert {*open_remote(f"hf://buckets/{BUCKET}/demo").files()} == {*tree_of(tmp_path / "demo"), "README.md"}
    assert push(tmp_path / "demo", f"hf://buckets/{BUCKET}/demo").sent_files == 0


def test_it_goes_and_comes_by_xet_in_few_calls_of_the_hub(
    hub: HubServer,
    tmp_path: Path,
    environment: dict[str, str],  # noqa: F811
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=16, tokens=500)
    run(environment, "push", tmp_path / "a", PLACE)
    assert hub.count("GET", "/api/.*xet-write-token") == 1
    assert hub.count("POST", "/batch") <= 12
    assert hub.count(".*", "^/api/") <= 40  # for a few shards as for many
    assert hub.count("GET", "/resolve/") == 0
    hub.reset_log()
    assert "verified: yes" in run(environment, "pull", PLACE, tmp_path / "b")
    assert hub.count("GET", "/_xorb/") >= len(manifest.shards)
    assert hub.count(".*", "^/api/") == 2  # one page of the listing, one token
    assert hub.count("GET", "/resolve/") == 1  # of the manifest alone
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_push_that_is_killed_goes_on_and_sends_nothing_again_that_was_acknowledged(
    hub: HubServer,
    tmp_path: Path,
    environment: dict[str, str],  # noqa: F811
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=7, tokens=20_000)
    program = "import sys; from shardkit.remote.bucket import BucketRemote; BucketRemote.commit_files = 3\n"
    program += "from shardkit.remote.push import push; push(sys.argv[1], sys.argv[2], workers=1)"
    fault = hub.fault("hold", "POST", "/_cas/v1/xorbs/", nth=7)  # the claim came first
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path / "a", PLACE], env=environment)
    killed(process, fault, hub)
    there = {name for name in hub.buckets[BUCKET].files if name.endswith(".npy")}
    assert len(there) >= 3
    assert f"sets/demo/{MANIFEST_NAME}" not in hub.buckets[BUCKET].files
    with pytest.raises(HubError, match="unfinished"):
        pull(PLACE, tmp_path / "b")
    result = push(tmp_path / "a", PLACE)
    assert result.skipped_files >= 3
    assert result.sent_files == len(manifest.shards) - result.skipped_files
    pull(PLACE, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_tokenize_goes_through_a_small_disk_and_on_from_the_bucket_on_an_empty_machine(
    hub: HubServer, tmp_path: Path
) -> None:
    source = tmp_path / "text.txt"
    source.write_text("some words and more of them " * 1200)
    options: dict[str, Any] = {"shard_tokens": 4000, "workers": 1, "tokenizer": "bytes", "prefix": "p", "push": PLACE}
    whole = tokenize(source, tmp_path / "whole", **{**options, "push": None})
    real, count = BucketRemote.upload, 0

    def upload(self: BucketRemote, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise HubError("the machine is lost")
        real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BucketRemote, "upload", upload)
        with pytest.raises(HubError, match="the machine is lost"):
            tokenize(source, tmp_path / "first", max_disk=70_000, **options)
    assert not open_remote(PLACE).files().keys() & {MANIFEST_NAME}
    hub.reset_log()
    assert tokenize(source, tmp_path / "second", max_disk=70_000, **options) == whole
    assert not list((tmp_path / "second").glob("*.npy"))
    pull(PLACE, tmp_path / "pulled")
    assert Manifest.load(tmp_path / "pulled") == whole
    for shard in whole.shards:
        assert (tmp_path / "pulled" / shard.file).read_bytes() == (tmp_path / "whole" / shard.file).read_bytes()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_wrong_bytes_are_fetched_again_and_never_get_a_final_name(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", PLACE)
    fault = hub.fault("corrupt", "GET", r"/_bucket/.*\.npy")
    pull(PLACE, tmp_path / "b")
    assert fault.fired == 1
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    hub.fault("corrupt", "GET", r"/_bucket/.*\.npy", times=None)
    with pytest.raises(HubError, match="arrived 3 times with other bytes"):
        pull(PLACE, tmp_path / "c")
    assert not list((tmp_path / "c").glob("*.npy"))


def test_a_shard_that_another_replaced_during_the_push_is_found_before_the_manifest(
    hub: HubServer, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "a")
    other = BucketRemote(PLACE)
    other.create(private=False)
    ((xet_hash, _),) = other._bucket.send([bytes(manifest.shards[1].bytes)])
    real = bucket.still_ours

    def still_ours(remote: Any, ours: bytes | None, shards: Any, small: Any) -> bool:
        if MANIFEST_NAME in small:
            other._bucket.change({other._path(manifest.shards[1].file): xet_hash})
            remote.files()
        return real(remote, ours, shards, small)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, "still_ours", still_ours)
        with pytest.raises(HubError, match=f"{manifest.shards[1].file} has other bytes than were sent"):
            push(tmp_path / "a", PLACE)
    assert push(tmp_path / "a", PLACE).sent_files == 1
    pull(PLACE, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_what_the_store_has_lost_is_sent_again_by_repair(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=2, tokens=50_000)
    push(tmp_path / "a", PLACE)
    stored = hub.xet.files[hub.buckets[BUCKET].files[f"sets/demo/{manifest.shards[0].file}"].xet_hash]
    hub.xet.xorb(stored.terms[0].xorb).unlink()
    assert push(tmp_path / "a", PLACE).sent_files == 0
    assert push(tmp_path / "a", PLACE, repair=True).sent_files == 1  # though the client remembers that it sent it
    pull(PLACE, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_a_file_that_goes_between_the_listing_and_its_reading_is_no_failure(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a", shards=2)
    push(tmp_path / "a", PLACE)
    remote = open_remote(PLACE)
    hub.fault("hold", "GET", "/resolve/sets/demo/manifest.json")
    (fault,) = hub.faults
    looked: list[object] = []
    thread = threading.Thread(target=lambda: looked.append(remote.files()))
    thread.start()
    assert fault.reached.wait(60)
    gone = hub.buckets[BUCKET].files.pop(f"sets/demo/{MANIFEST_NAME}")
    fault.gate.set()
    thread.join(60)
    assert gone is not None
    (files,) = looked
    assert isinstance(files, dict)
    assert MANIFEST_NAME not in files
    assert len(files) == 3


def test_a_ticket_that_a_killed_push_left_is_waited_out(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "TICKET_SECONDS", 0.5)
    make_dataset(tmp_path / "a", shards=2)
    dead = BucketRemote(PLACE)
    dead.create(private=False)
    taken = dead._in_turn(b"another dataset")
    taken.__enter__()
    ticket = next(iter(hub.buckets[BUCKET].files))
    push(tmp_path / "a", PLACE)
    assert ticket not in hub.buckets[BUCKET].files


def test_a_bucket_that_others_want_to_claim_all_the_time_is_given_up(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "TICKET_SECONDS", 0.02)
    make_dataset(tmp_path / "a", shards=2)
    numbers, look = itertools.count(), BucketClient.files

    def files(self: BucketClient, folder: str) -> dict[str, Any]:
        there = hub.buckets[BUCKET].files
        if there:  # a ticket of ours at least: another's comes before each look at them
            there[f"sets/demo/.shardkit/turn-{'a' * 16}-{next(numbers):08x}.json"] = next(iter(there.values()))
        return look(self, folder)

    monkeypatch.setattr(BucketClient, "files", files)
    with pytest.raises(HubError, match="is being written by others all the time"):
        push(tmp_path / "a", PLACE)
    assert next(numbers) > 1


def test_a_line_of_a_batch_that_fails_is_tried_again_and_then_said(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_dataset(tmp_path / "a", shards=2)
    remote = open_remote(PLACE)
    remote.create(private=False)
    assert isinstance(remote, BucketRemote)
    remote._call("delete", lambda: remote._bucket.change({}, ["sets/demo/not there"]))
    hub.fault("status", "POST", "/batch", code=503, times=1)
    push(tmp_path / "a", PLACE)
    hub.xet.files.clear()
    with Uploader(remote, {}) as uploader:
        remote._mark = None
        monkeypatch.setattr(BucketRemote, "upload", lambda self, path, shard: self._sent.update({shard.file: "0" * 64}))
        uploader.submit(tmp_path / "a" / manifest.shards[1].file, manifest.shards[1])
        with pytest.raises(HubError, match="cannot add .* Xet hash not found"):
            uploader.flush()


@pytest.mark.parametrize(
    ("place", "options", "says"),
    [
        (PLACE, {"revision": "v1"}, "has no revisions"),
        (PLACE, {"tag": "v1"}, "leave tag='v1' out"),
        (f"{PLACE}@v1", {}, "is no bucket: write hf://buckets/user/name"),
        ("hf://buckets/alice", {}, "is no bucket: write hf://buckets/user/name"),
        ("hf://buckets/alice/tokens/../x", {}, "is no bucket: write hf://buckets/user/name"),
        ("hf://buckets/alice/tokens//x", {}, "is no bucket: write hf://buckets/user/name"),
        ("hf://buckets/alice/tokens/x?token=5ecret", {}, "is no bucket: write hf://buckets/user/name"),
    ],
)
def test_what_a_bucket_has_not_is_refused_in_one_line(
    tmp_path: Path, place: str, options: dict[str, Any], says: str
) -> None:
    make_dataset(tmp_path / "a", shards=1)
    with pytest.raises(UsageError, match=says) as caught:
        push(tmp_path / "a", place, **options)
    assert "\n" not in str(caught.value)
    assert "5ecret" not in str(caught.value)


def test_a_bucket_that_is_not_there_or_not_ours_is_one_clear_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a", shards=1)
    with pytest.raises(AuthError, match="hf://buckets/alice/none does not exist, or your token may not see it"):
        pull("hf://buckets/alice/none", tmp_path / "b")
    push(tmp_path / "a", PLACE, private=True)
    assert hub.buckets[BUCKET].private
    hub.create_bucket("alice/open")
    with pytest.raises(HubError, match="exists and is public: push without private=True"):
        push(tmp_path / "a", "hf://buckets/alice/open", private=True)
    for token, says in (("hf_other", "your token may not see it"), ("hf_read", "does not allow it .*read-only token")):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AuthError, match=says) as caught:
            push(tmp_path / "a", f"{PLACE}2") if token == "hf_read" else pull(PLACE, tmp_path / "b")
        assert token not in str(caught.value)
        assert "\n" not in str(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(AuthError, match="does not exist, or is private and there is no token"):
        pull(PLACE, tmp_path / "b")


def test_a_folder_of_a_bucket_that_holds_nothing_is_one_clear_line(hub: HubServer, tmp_path: Path) -> None:
    hub.create_bucket(BUCKET)
    with pytest.raises(HubError, match=f"{PLACE} holds nothing"):
        pull(PLACE, tmp_path / "b")
