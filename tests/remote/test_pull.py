"""pull: whole, in part, again, over damage, of bare repos, and without a manifest that lies."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hub_data import make_dataset, tree_of
from hub_server import HubServer

from shardkit import network
from shardkit.cli import main
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.dataset.shards import open_shard
from shardkit.errors import DiskFull, HubError, ManifestError, OutputError, ShardkitWarning, UsageError
from shardkit.remote import download
from shardkit.remote.download import FETCHES
from shardkit.remote.hub_client import Download
from shardkit.remote.listing import Selection
from shardkit.remote.pull import pull, pull_checked
from shardkit.remote.push import push

REPO = "alice/demo"
CDN = "/_cdn/"


def test_pulling_twice_transfers_no_shard(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    stamp = (tmp_path / "b" / MANIFEST_NAME).stat().st_mtime_ns
    hub.reset_log()
    pull(REPO, tmp_path / "b")
    assert hub.bytes_sent(CDN) == 0
    assert (tmp_path / "b" / MANIFEST_NAME).stat().st_mtime_ns == stamp


def test_a_part_is_a_dataset_of_its_own_and_the_rest_is_fetched_later(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=6)
    push(tmp_path / "a", REPO)
    hub.reset_log()
    assert [s.index for s in pull(REPO, tmp_path / "b", split="val").shards] == [0]
    assert [s.index for s in pull(REPO, tmp_path / "b", shards=(2, 4)).shards] == [0, 2, 3]
    Manifest.load(tmp_path / "b").check_files(tmp_path / "b")
    assert [s.index for s in pull(REPO, tmp_path / "c", split="train", shards=(0, 3)).shards] == [1, 2]
    shutil.rmtree(tmp_path / "c")
    assert pull(REPO, tmp_path / "b") == manifest
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    sent = sum(s.bytes for s in manifest.shards) + sum(s.bytes for s in manifest.shards[1:3])
    assert hub.bytes_sent(CDN) == sent


def test_a_part_that_chooses_nothing_says_what_there_is(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    with pytest.raises(UsageError, match=r"it has val \(0:1\), train \(1:4\)"):
        pull(REPO, tmp_path / "b", split="test")


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "grow"])
def test_only_a_damaged_file_is_fetched_again(hub: HubServer, tmp_path: Path, damage: str) -> None:
    manifest = make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    path = tmp_path / "b" / manifest.shards[1].file
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": content[:-1] + b"\0", "cut": content[:99], "grow": content + b"x"}[damage])
    hub.reset_log()
    pull(REPO, tmp_path / "b")
    assert hub.bytes_sent(CDN) == manifest.shards[1].bytes
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_while_a_damaged_file_is_missing_the_folder_does_not_look_whole(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    pull(REPO, tmp_path / "b")
    (tmp_path / "b" / manifest.shards[1].file).write_bytes(b"x")
    hub.fault("status", "GET", CDN, code=404, times=None)
    with pytest.raises(HubError):
        pull(REPO, tmp_path / "b")
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()


def test_a_connection_that_breaks_after_the_last_byte_is_no_end(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    broken: list[str] = []

    def download(self: Download) -> str:
        found = call(self)
        if self._url not in broken:
            broken.append(self._url)
            raise ConnectionError("reset")
        return found

    call = Download.__call__
    monkeypatch.setattr(Download, "__call__", download)
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    assert len(broken) > 4


def test_a_copy_that_stays_damaged_is_fetched_three_times_and_never_kept(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=2)
    push(tmp_path / "a", REPO)
    hub.fault("corrupt", "GET", f"{CDN}.*train", times=None)
    hub.reset_log()
    with pytest.raises(HubError, match="arrived 3 times with other bytes"):
        pull(REPO, tmp_path / "b")
    assert hub.count("GET", f"{CDN}.*train") == FETCHES
    assert not (tmp_path / "b" / manifest.shards[1].file).exists()
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()


def test_a_repo_that_is_not_what_its_manifest_says_is_found_before_any_download(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    hub.seed_repo(REPO, {manifest.shards[1].file: b"y" * 1000})
    hub.reset_log()
    with pytest.raises(HubError, match="its owner must push it again"):
        pull(REPO, tmp_path / "b")
    assert hub.bytes_sent(CDN) == 0


def test_a_folder_with_another_dataset_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", seed=1)
    push(tmp_path / "a", REPO)
    before = tree_of(tmp_path / "b")
    with pytest.raises(OutputError, match="holds another dataset"):
        pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == before
    (tmp_path / "b" / MANIFEST_NAME).unlink()
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_free_space_is_checked_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    hub.reset_log()
    monkeypatch.setattr(download, "free_bytes", lambda path: 1000)
    with pytest.raises(DiskFull, match=r"21\.5 kB are to come, 1\.0 kB are free"):
        pull(REPO, tmp_path / "b")
    assert hub.bytes_sent(CDN) == 0


def test_two_pulls_into_one_folder_do_not_meet(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    held = hub.fault("hold", "GET", CDN)
    first = threading.Thread(target=pull, args=(REPO, tmp_path / "b"))
    first.start()
    assert held.reached.wait(60)
    with pytest.raises(OutputError, match="another pull"):
        pull(REPO, tmp_path / "b")
    held.gate.set()
    first.join()
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")


def test_the_default_folder_is_the_repos_name(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    monkeypatch.chdir(tmp_path)
    pull(REPO)
    assert tree_of(tmp_path / "demo") == tree_of(tmp_path / "a")


def test_a_moving_branch_is_read_at_one_commit(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    hub.reset_log()
    pull(REPO, tmp_path / "b")
    assert all(hub.commits(REPO)[0].oid in r.target for r in hub.requests("GET|HEAD", "/resolve/"))


# -- bare repos --------------------------------------------------------------------------------------------------------


def test_bare_npy_shards_are_pulled_with_a_warning_and_a_manifest_made_here(hub: HubServer, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "a", prefix="edufineweb")
    hub.seed_repo(REPO, {f"data/{p.name}": p for p in (tmp_path / "a").glob("*.npy")} | {"README.md": b"hello"})
    with pytest.warns(UserWarning, match=r"nobody says what should be in it"):
        manifest = pull(REPO, tmp_path / "b")
    assert [(s.file, s.sha256) for s in manifest.shards] == [(s.file, s.sha256) for s in made.shards]
    assert manifest == Manifest.load(tmp_path / "b")
    assert manifest.source is not None
    assert manifest.source.revision == hub.commits(REPO)[0].oid
    hub.reset_log()
    with pytest.warns(UserWarning, match="made here"):
        pull(REPO, tmp_path / "b")
    assert hub.bytes_sent(CDN) == 0
    with pytest.warns(UserWarning, match="made here"):
        assert [s.split for s in pull(REPO, tmp_path / "c", split="val").shards] == ["val"]


def test_whether_files_were_verified_is_said_of_what_somebody_vouched_for(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "bare")
    (tmp_path / "bare" / MANIFEST_NAME).unlink()
    hub.seed_repo(REPO, {p.name: p for p in (tmp_path / "bare").glob("*.npy")})  # LFS: the Hub knows each SHA-256
    push(tmp_path / "a", "alice/whole")
    shutil.copytree(tmp_path / "bare", tmp_path / "unhashed")
    Manifest.from_shards(tmp_path / "bare").save(tmp_path / "unhashed")
    for repo, verified, words in (
        ("alice/whole", True, ""),
        (REPO, True, "the manifest is made here"),
        (str(tmp_path / "bare"), False, "4 of 4 files have no SHA-256 to be checked against"),
        (str(tmp_path / "unhashed"), False, ""),
    ):
        for _ in range(2):  # the second time everything is in the folder already
            with warnings.catch_warnings(record=True) as caught:
                result = CliRunner().invoke(main, ["pull", repo, str(tmp_path / f"of-{Path(repo).name}"), "--json"])
            assert result.exit_code == 0, result.output
            assert json.loads(result.stdout.splitlines()[-1])["verified"] is verified, repo
            assert [words in str(warning.message) for warning in caught] == ([True] if words else [])


def test_bare_shards_that_were_pushed_again_are_verified_by_their_new_manifest(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "a" / MANIFEST_NAME).unlink()
    with pytest.warns(ShardkitWarning, match="have no SHA-256"):
        pull(str(tmp_path / "a"), tmp_path / "b")
    push(tmp_path / "b", REPO)
    assert pull_checked(REPO, tmp_path / "c", revision=None, selection=Selection(None, None), progress=None).verified


def test_other_shards_in_the_folder_are_not_listed(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", shards=7, seed=1)
    (tmp_path / "b" / MANIFEST_NAME).unlink()
    hub.seed_repo(REPO, {p.name: p for p in (tmp_path / "a").glob("*.npy")})
    with pytest.warns(UserWarning, match="made here"):
        manifest = pull(REPO, tmp_path / "b")
    assert [s.index for s in manifest.shards] == [0, 1, 2, 3]
    assert {n: tree_of(tmp_path / "b")[n] for n in tree_of(tmp_path / "a") if n != MANIFEST_NAME} == {
        n: c for n, c in tree_of(tmp_path / "a").items() if n != MANIFEST_NAME
    }


def test_a_gap_between_bare_shards_is_refused_unless_it_is_meant(hub: HubServer, tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "a", shards=9)
    names = [shard.file for shard in made.shards if shard.index not in (2, 3, 6)]
    hub.seed_repo(REPO, {name: tmp_path / "a" / name for name in names})
    said = r"has shards 0 to 8, but lacks 2, 3, 6: .*shards=.* allow_gaps=True"
    for chosen in ({}, {"shards": (0, 100)}):
        with pytest.raises(ManifestError, match=said):
            pull(REPO, tmp_path / "b", **chosen)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="has shards 1 to 8, but lacks 2, 3, 6"):
        pull(REPO, tmp_path / "b", split="train")
    assert not list((tmp_path / "b").glob("*.npy"))  # before anything is fetched
    with pytest.warns(ShardkitWarning, match="made here"):
        assert [shard.index for shard in pull(REPO, tmp_path / "part", shards=(4, 6)).shards] == [4, 5]
    result = CliRunner().invoke(main, ["pull", REPO, str(tmp_path / "c")])
    assert (result.exit_code, "--allow-gaps" in result.output) == (1, True)
    with pytest.warns(ShardkitWarning, match="made here"):
        assert [shard.file for shard in pull(REPO, tmp_path / "d", allow_gaps=True).shards] == names
    with pytest.warns(ShardkitWarning, match="made here"):
        result = CliRunner().invoke(main, ["pull", REPO, str(tmp_path / "c"), "--allow-gaps"])
    assert result.exit_code == 0, result.output
    assert Manifest.load(tmp_path / "c") == Manifest.load(tmp_path / "d")


def test_a_gap_as_wide_as_a_name_can_say_is_refused_at_once(hub: HubServer, tmp_path: Path) -> None:
    hub.seed_repo(REPO, {"x_val_000000.npy": b"a", "x_train_999999999999999999.npy": b"b"})
    with pytest.raises(ManifestError, match="lacks 1, 2, 3, 4, 5 and more"):
        pull(REPO, tmp_path / "b")


def llmc_bin(tokens: np.ndarray) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240520, 1, len(tokens))
    return header.tobytes() + tokens.astype("<u2").tobytes()


def test_llmc_bin_shards_become_npy_shards(hub: HubServer, tmp_path: Path) -> None:
    tokens = {n: np.random.default_rng(n).integers(0, 50257, 5000 + n, dtype=np.uint16) for n in range(3)}
    names = ["fineweb_val_000000", "fineweb_train_000001", "fineweb_train_000002"]
    hub.seed_repo(REPO, {f"{name}.bin": llmc_bin(tokens[n]) for n, name in enumerate(names)})
    with pytest.warns(UserWarning, match="made here"):
        manifest = pull(REPO, tmp_path / "b")
    assert [s.file for s in manifest.shards] == [f"{name}.npy" for name in names]
    for n, name in enumerate(names):
        assert np.array_equal(open_shard(tmp_path / "b" / f"{name}.npy"), tokens[n])
    assert sorted(tree_of(tmp_path / "b")) == sorted([*(f"{name}.npy" for name in names), MANIFEST_NAME])
    hub.reset_log()
    with pytest.warns(UserWarning, match="made here"):
        assert pull(REPO, tmp_path / "b") == manifest
    assert hub.bytes_sent(CDN) == 0
    (tmp_path / "b" / f"{names[1]}.npy").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="made here"):
        assert pull(REPO, tmp_path / "b") == manifest
    assert np.array_equal(open_shard(tmp_path / "b" / f"{names[1]}.npy"), tokens[1])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x_val_000000.bin", b"z" * 5000, "no llm.c header"),
        ("x_val_000000.bin", llmc_bin(np.zeros(100))[:-1], "its header says 100 tokens"),
        ("x_val_000000.npy", b"raw tokens", "no .npy header"),
    ],
)
def test_bare_files_that_are_no_shards_are_refused(
    hub: HubServer, tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    hub.seed_repo(REPO, {name: content})
    with pytest.warns(UserWarning, match="made here"), pytest.raises(HubError, match=expected):
        pull(REPO, tmp_path / "b")
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()


def test_a_repo_without_shards_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.seed_repo(REPO, {"data.parquet": b"x"})
    with pytest.raises(HubError, match="is not a dataset that shardkit made"):
        pull(REPO, tmp_path / "b")


def test_a_manifest_that_points_outside_the_folder_is_refused(hub: HubServer, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a", shards=2)
    evil = dataclasses.replace(manifest.shards[0], file="../x_val_000000.npy")
    text = dataclasses.replace(manifest, shards=(evil,)).to_json()
    hub.seed_repo(REPO, {MANIFEST_NAME: text.encode(), "../x_val_000000.npy": b"y"})
    with pytest.raises(Exception, match="names a shard"):
        pull(REPO, tmp_path / "b")


def test_a_folder_under_a_shards_name_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    (tmp_path / "b" / "demo_train_000001.npy" / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot write .*demo_train_000001\.npy: Is a directory"):
        pull(REPO, tmp_path / "b")
    assert (tmp_path / "b" / "demo_train_000001.npy" / "mine").is_dir()
    assert not (tmp_path / "b" / MANIFEST_NAME).exists()


def test_a_link_in_the_place_of_incoming_files_is_not_followed(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").touch()
    (tmp_path / "b" / ".shardkit").mkdir(parents=True)
    (tmp_path / "b" / ".shardkit" / "incoming").symlink_to(tmp_path / "elsewhere")
    pull(REPO, tmp_path / "b")
    assert tree_of(tmp_path / "b") == tree_of(tmp_path / "a")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_working_folder_is_one_line(hub: HubServer, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    push(tmp_path / "a", REPO)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".shardkit").touch()
    with pytest.raises(OutputError, match=r"cannot write .*\.shardkit"):
        pull(REPO, tmp_path / "b")


def test_overwrite_replaces_another_dataset_and_nothing_else(tmp_path: Path) -> None:
    wanted = make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", shards=6, seed=1)
    make_dataset(tmp_path / "b", shards=6, seed=1, prefix="more")  # its manifest names these alone
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="or `shardkit pull --overwrite` to replace what is there"):
        pull(str(tmp_path / "a"), tmp_path / "b")
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert "notes.txt" in names
    assert not any(name.startswith("more_") for name in names)
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted


def test_overwrite_fetches_no_shard_that_is_right_and_replaces_a_damaged_manifest(tmp_path: Path) -> None:
    wanted = make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b")
    path = tmp_path / "b" / MANIFEST_NAME
    path.write_text(path.read_text()[:300])
    before = (tmp_path / "b" / wanted.shards[0].file).stat().st_ino
    assert pull(str(tmp_path / "a"), tmp_path / "b", overwrite=True) == wanted
    assert (tmp_path / "b" / wanted.shards[0].file).stat().st_ino == before
