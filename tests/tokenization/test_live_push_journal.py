"""The journal that travels with `tokenize --push`: a line whose checksum does not match counts at neither end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from reference import folder_bytes
from run_data import change_line, make

from shardkit import Manifest
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.errors import OutputError
from shardkit.remote.address import open_remote
from shardkit.remote.listing import published_so_far
from shardkit.tokenization.pushed_run import fetch_journal


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A place to which the run in `tmp_path / "a"` pushed, until it ended early."""
    far = tmp_path / "far"

    def progress(now: Any) -> None:
        while now.shards > 4:
            if (far / JOURNAL_FILE).read_bytes().count(b"\n") > 4:
                raise EOFError  # unlike a Ctrl-C it waits for uploads in progress
            time.sleep(0.005)

    with pytest.raises(EOFError):
        make(tmp_path / "a", push=str(far), progress=progress)
    return far


def one_token_later(record: dict[str, Any]) -> None:
    record["next"]["skip_tokens"] += 1


def check_ends_the_same(far: Path, out: Path, tmp_path: Path) -> None:
    manifest = make(out, push=str(far))
    assert manifest == make(tmp_path / "whole")
    assert folder_bytes(out) == folder_bytes(far) == folder_bytes(tmp_path / "whole")
    assert Manifest.load(out) == manifest == Manifest.load(far)


@pytest.mark.parametrize("line", [1, 3])
def test_a_changed_line_in_the_remotes_journal_is_made_again_elsewhere_and_never_believed(
    far: Path, tmp_path: Path, line: int
) -> None:
    change_line(far, line, one_token_later)
    assert len((fetch_journal(str(far)).journal or b"").splitlines()) == line
    check_ends_the_same(far, tmp_path / "b", tmp_path)


def test_a_changed_line_in_this_folders_journal_is_replaced_from_the_remote(far: Path, tmp_path: Path) -> None:
    change_line(tmp_path / "a", 2, one_token_later)
    check_ends_the_same(far, tmp_path / "a", tmp_path)


def test_a_damaged_journal_at_the_remote_is_replaced_by_this_folders(far: Path, tmp_path: Path) -> None:
    change_line(far, 2, one_token_later)
    check_ends_the_same(far, tmp_path / "a", tmp_path)


@pytest.mark.filterwarnings("ignore:.*is damaged from line 4 on")
def test_journals_that_are_damaged_at_both_ends_are_made_again_from_the_better_one(far: Path, tmp_path: Path) -> None:
    change_line(far, 2, one_token_later)
    change_line(tmp_path / "a", 3, one_token_later)
    check_ends_the_same(far, tmp_path / "a", tmp_path)


def test_a_remotes_journal_of_which_nothing_holds_is_refused_by_runs_and_by_readers(far: Path, tmp_path: Path) -> None:
    change_line(far, 0, lambda head: head["identity"].update({"val shards": 2}))
    with pytest.raises(OutputError, match=r"far/.shardkit/journal.jsonl is damaged .*: start again in another repo"):
        make(tmp_path / "b", push=str(far))
    remote = open_remote(str(far))
    with pytest.raises(OutputError, match="is damaged"):
        published_so_far(remote, remote.files())


def test_a_reader_is_given_the_shards_up_to_the_line_that_does_not_hold(far: Path) -> None:
    change_line(far, 3, lambda record: record["shard"].update(documents=7))
    remote = open_remote(str(far))
    assert [shard.index for shard in published_so_far(remote, remote.files()).shards] == [0, 1]


@pytest.mark.parametrize("disk", [None, 100_000])
def test_a_manifest_that_is_not_of_this_run_is_neither_removed_nor_replaced(
    far: Path, tmp_path: Path, disk: int | None
) -> None:
    manifest = tmp_path / "a" / MANIFEST_NAME
    manifest.write_text("mine")
    with pytest.raises(OutputError, match=r"a/manifest\.json is not a shardkit manifest"):
        make(tmp_path / "a", push=str(far), max_disk=disk)
    assert manifest.read_text() == "mine"


def test_tiny_shards_whose_journal_alone_is_longer_than_the_bound_of_the_disk_are_made_to_their_end(
    tmp_path: Path,
) -> None:
    options = {"shard_tokens": 200, "push": str(tmp_path / "far"), "max_disk": 10_000}

    def stop(now: Any) -> None:
        if now.shards > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", progress=stop, **options)
    assert (tmp_path / "a" / JOURNAL_FILE).stat().st_size > 10_000
    manifest = make(tmp_path / "a", **options)
    assert manifest == make(tmp_path / "whole", shard_tokens=200)
    assert folder_bytes(tmp_path / "far") == folder_bytes(tmp_path / "whole")
