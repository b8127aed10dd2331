"""Several datasets in one repo on the Hub, each in a folder of its own: none touches the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_data import opened
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit import Manifest, ShardLoader
from shardkit.errors import HubError
from shardkit.remote.address import open_remote, place_below
from shardkit.remote.pull import pull
from shardkit.remote.push import push

REPO = "alice/sets"


def two_sets(tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Datasets in the folders `a` and `b`, pushed to two folders of one repo."""
    made = [make_dataset(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    push(tmp_path / "a", f"{REPO}/small/one")
    push(tmp_path / "b", f"https://huggingface.co/datasets/{REPO}/tree/main/two")
    return made[0], made[1]


def test_each_folder_is_a_place_of_its_own(hub: HubServer, tmp_path: Path) -> None:
    one, two = two_sets(tmp_path)
    expected = {f"small/one/{name}" for name in [*tree_of(tmp_path / "a"), "README.md"]}
    expected |= {f"two/{name}" for name in [*tree_of(tmp_path / "b"), "README.md"]}
    assert set(hub.files(REPO)) == {".gitattributes", *expected}
    assert push(tmp_path / "a", f"{REPO}/small/one").sent_files == 0
    with pytest.raises(HubError, match=r"sets/two .*another dataset|another dataset"):
        push(tmp_path / "a", f"{REPO}/two")
    push(tmp_path / "a", f"{REPO}/two", overwrite=True)
    for number, place in enumerate(
        [f"hf://datasets/{REPO}@main/two", f"{hub.endpoint}/datasets/{REPO}/tree/main/small/one"]
    ):
        assert pull(place, tmp_path / f"pulled{number}") == one
        assert tree_of(tmp_path / f"pulled{number}") == tree_of(tmp_path / "a")
    assert two != one
    with pytest.raises(HubError, match=f"hf://datasets/{REPO}/three holds nothing: check the name"):
        pull(f"{REPO}/three", tmp_path / "none")


def test_a_pull_takes_the_folder_s_name_and_a_repair_sends_what_is_wrong_in_it(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    pull(f"{REPO}/small/one")
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "a")
    shard = one.shards[1]
    blob = hub.repo(REPO).blob(shard.sha256)
    blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    assert push(tmp_path / "a", f"{REPO}/small/one", repair=True).sent_files == 1
    assert blob.read_bytes() == (tmp_path / "a" / shard.file).read_bytes()


def test_a_loader_reads_a_folder_of_a_repo_as_it_reads_the_folder_here(
    served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_sets(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARDKIT_CACHE", str(tmp_path / "caches"))

    def batches(source: str | Path) -> np.ndarray:
        with ShardLoader(source, batch_size=2, seq_len=16, device="cpu", shuffle=False) as loader:
            return np.concatenate([loader.next_batch().inputs.numpy() for _ in range(4)])

    expected = batches(tmp_path / "b")
    for place in (f"{REPO}/two", f"https://huggingface.co/datasets/{REPO}/tree/main/two"):
        assert np.array_equal(batches(place), expected)
    cache = opened(tmp_path / "cache", f"{REPO}/small/one")
    assert cache.manifest == Manifest.load(tmp_path / "a")
    cache.close()


def test_a_place_of_each_kind_says_which_folders_are_in_a_folder_of_it(repo: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", shards=2)
    push(tmp_path / "set", place_below(repo, "parts/0-of-2"))
    assert open_remote(repo).subfolders("others") == {}
    push(tmp_path / "set", place_below(repo, "parts/1-of-2"))
    assert sorted(open_remote(repo).subfolders("parts")) == ["0-of-2", "1-of-2"]
    assert open_remote(place_below(repo, "parts")).subfolders("0-of-2/none") == {}
