"""`pull --overwrite`: another dataset gives way once it is known what comes in its place, and nothing else does."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit import files
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.errors import DiskFull, HubError, ManifestError, OutputError, ShardkitError, UsageError
from shardkit.remote import download
from shardkit.remote.pull import pull
from shardkit.remote.push import push

REPO = "alice/demo"
CDN = "/_cdn/"
bare = pytest.mark.filterwarnings("ignore:.*the manifest is made here")


def a_dataset(hub: HubServer, made: Path) -> None:
    push(made, REPO)


def one_that_lacks_a_shard(hub: HubServer, made: Path) -> None:
    hub.seed_repo(REPO, {path.name: path for path in made.iterdir() if "000002" not in path.name})


def bare_shards(hub: HubServer, made: Path) -> None:
    hub.seed_repo(REPO, {path.name: path for path in made.glob("*.npy")})


def bare_shards_with_a_gap(hub: HubServer, made: Path) -> None:
    hub.seed_repo(REPO, {path.name: path for path in made.glob("*.npy") if "000002" not in path.name})


def no_shards(hub: HubServer, made: Path) -> None:
    hub.seed_repo(REPO, {"data.parquet": b"x"})


@bare
@pytest.mark.parametrize(
    ("there", "options", "error", "said"),
    [
        (a_dataset, {"split": "test"}, UsageError, "has no shard that"),
        (one_that_lacks_a_shard, {}, HubError, "is not there"),
        (a_dataset, {}, DiskFull, "no room"),
        (bare_shards, {"split": "test"}, UsageError, "has no shard that"),
        (bare_shards_with_a_gap, {}, ManifestError, "lacks 2"),
        (bare_shards, {}, DiskFull, "no room"),
        (no_shards, {}, HubError, "is not a dataset that shardkit made"),
    ],
)
def test_a_pull_that_is_refused_costs_nothing(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: Callable[[HubServer, Path], None],
    options: dict[str, Any],
    error: type[ShardkitError],
    said: str,
) -> None:
    make_dataset(tmp_path / "a", shards=6)
    make_dataset(tmp_path / "b", seed=1)
    (tmp_path / "b" / JOURNAL_FILE).parent.mkdir()
    (tmp_path / "b" / JOURNAL_FILE).write_text("of the run that made it")
    before = tree_of(tmp_path / "b")
    there(hub, tmp_path / "a")
    monkeypatch.setattr(download, "free_bytes", lambda path: 0 if error is DiskFull else 10**9)
    with pytest.raises(error, match=said):
        pull(REPO, tmp_path / "b", overwrite=True, **options)
    assert tree_of(tmp_path / "b") == before


def test_the_room_of_what_is_replaced_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    monkeypatch.setattr(download, "free_bytes", lambda path: 0)
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_the_journal_of_the_run_that_made_the_dataset_goes_with_it_and_stays_beside_its_own(tmp_path: Path) -> None:
    wanted = make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    (tmp_path / "b" / JOURNAL_FILE).parent.mkdir()
    (tmp_path / "b" / JOURNAL_FILE).write_text("of the run that made it")
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    (tmp_path / "b" / JOURNAL_FILE).parent.mkdir()
    (tmp_path / "b" / JOURNAL_FILE).write_text("of this one")
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted
    assert (tmp_path / "b" / JOURNAL_FILE).exists()


# -- bare repos --------------------------------------------------------------------------------------------------------


def llmc_bin(tokens: np.ndarray) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240520, 1, len(tokens))
    return header.tobytes() + tokens.astype("<u2").tobytes()


@bare
@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_pulling_the_same_bare_repo_twice_fetches_no_shard_again(hub: HubServer, tmp_path: Path, kind: str) -> None:
    if kind == "npy":
        make_dataset(tmp_path / "a")
        bare_shards(hub, tmp_path / "a")
    else:
        hub.seed_repo(
            REPO, {f"x_{split}_00000{n}.bin": llmc_bin(np.arange(99)) for n, split in enumerate(["val", "train"])}
        )
    pulled = pull(REPO, tmp_path / "b", overwrite=True)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    hub.reset_log()
    assert pull(REPO, tmp_path / "b", overwrite=True) == pulled
    assert hub.bytes_sent(CDN) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()} == stamps


@bare
def test_of_another_bare_repo_only_shards_with_a_hash_can_be_right(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "other", shards=5, seed=1)
    for name in ("a", "other"):
        (tmp_path / name / MANIFEST_NAME).unlink()
    pull(str(tmp_path / "other"), tmp_path / "b")
    pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True)  # the same names and sizes, and nobody knows a hash
    shards = {path.name: path.read_bytes() for path in (tmp_path / "b").glob("*.npy")}
    assert shards == tree_of(tmp_path / "a")
    bare_shards(hub, tmp_path / "a")
    assert pull(REPO, tmp_path / "b", overwrite=True).shards == Manifest.load(tmp_path / "b").shards
    assert hub.bytes_sent(CDN) == 0


@bare
def test_bin_files_of_the_same_names_and_sizes_at_another_place_are_fetched(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("other", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x_val_000000.bin").write_bytes(llmc_bin(np.arange(first, first + 99)))
    other = pull(str(tmp_path / "other"), tmp_path / "b")
    wanted = pull(str(tmp_path / "a"), tmp_path / "c")
    assert wanted.shards != other.shards
    assert pull(str(tmp_path / "a"), tmp_path / "b").shards == wanted.shards


# -- manifests that cannot be read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{}", '{"name": "my web page", "icons": []}', "mine", ""])
def test_a_manifest_that_shardkit_did_not_write_is_neither_removed_nor_replaced(tmp_path: Path, content: str) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / MANIFEST_NAME).write_text(content)
    with pytest.raises(OutputError, match=r"manifest\.json is none that shardkit wrote.*move it away"):
        pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True)
    assert tree_of(tmp_path / "b") == {MANIFEST_NAME: content.encode()}


def test_a_manifest_that_cannot_be_read_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    before = tree_of(tmp_path / "b")

    def read_from_a_bad_disk(path: str, flags: int) -> int:
        if Path(path) == tmp_path / "b" / MANIFEST_NAME:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return open_plain(path, flags)

    open_plain = files._open_plain
    with monkeypatch.context() as patch:
        patch.setattr(files, "_open_plain", read_from_a_bad_disk)
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=r"cannot read .*manifest\.json: Input/output error"):
                pull(str(tmp_path / "a"), tmp_path / "b", overwrite=overwrite)
    assert tree_of(tmp_path / "b") == before


def test_a_folder_in_the_place_of_the_manifest_is_one_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "b" / MANIFEST_NAME).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot read .*manifest\.json: .*see to that file first"):
        pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True)


def test_a_damaged_manifest_of_shardkits_stays_until_the_new_one_comes(hub: HubServer, tmp_path: Path) -> None:
    wanted = make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    text = (tmp_path / "b" / MANIFEST_NAME).read_text()
    for damaged in (text[:300], text.replace("[", "{"), dataclasses.replace(wanted, format_version=9).to_json()):
        (tmp_path / "b" / MANIFEST_NAME).write_text(damaged)
        with pytest.raises(UsageError, match="has no shard"):
            pull(REPO, tmp_path / "b", split="test", overwrite=True)
        assert (tmp_path / "b" / MANIFEST_NAME).read_text() == damaged
        hub.reset_log()
        assert pull(REPO, tmp_path / "b", overwrite=True) == wanted
        assert hub.bytes_sent(CDN) == 0
        assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
