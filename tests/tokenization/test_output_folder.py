"""The output folder: what is in it is checked before it is used, and nobody else's files are removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_data import make_dataset, tree_of
from reference import folder_bytes
from run_data import after, change_line, make, stop

from shardkit import Manifest, pull, tokenize
from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import MANIFEST_NAME
from shardkit.errors import OutputError, ShardkitWarning
from shardkit.tokenization.output_folder import claim, clear


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    make(out)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended early, with seven shards or so in its journal."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.raises(KeyboardInterrupt):
        make(out, progress=after(7, stop))
    return out


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (-1, lambda record: record["next"].update(skip_tokens=record["next"]["skip_tokens"] + 1)),
        (-1, lambda record: record["next"].update(start=record["next"]["start"] + 1)),
        (3, lambda record: record["shard"].update(documents=record["shard"]["documents"] + 1)),
    ],
)
def test_a_journal_with_a_changed_value_ends_with_the_same_bytes(
    whole: Path, stopped: Path, tmp_path: Path, line: int, change: Callable[[dict[str, Any]], object]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    change_line(out, line, change)
    with pytest.warns(ShardkitWarning, match=r"journal\.jsonl is damaged from line \d+ on: the run goes on from shard"):
        make(out)
    assert folder_bytes(out) == folder_bytes(whole)
    assert (out / MANIFEST_NAME).read_bytes() == (whole / MANIFEST_NAME).read_bytes()


# -- the end of a run --------------------------------------------------------------------------------------------------


def other_content(path: Path) -> None:
    np.save(path, np.load(path)[::-1])  # the same size


@pytest.mark.parametrize("far", [None, "far"])
@pytest.mark.parametrize(
    ("loss", "message"), [(Path.unlink, "p_val_000000.npy is missing"), (other_content, "p_val_000000.npy has SHA-256")]
)
def test_a_shard_that_vanished_or_was_changed_during_the_run_is_in_no_manifest(
    tmp_path: Path, loss: Callable[[Path], object], message: str, far: str | None
) -> None:
    out, place = tmp_path / "out", tmp_path / "far"
    first = out / "p_val_000000.npy"
    if far is None:
        progress = after(5, lambda: loss(first))
    else:
        progress = after(9, lambda: _lose_when_arrived(place / first.name, first, loss))
    with pytest.raises(OutputError, match=f"{message}.*no manifest is written"):
        make(out, progress=progress, push=far and str(place))
    assert not (out / MANIFEST_NAME).exists()


def _lose_when_arrived(there: Path, first: Path, loss: Callable[[Path], object]) -> None:
    while not there.exists():
        os.sched_yield()
    loss(first)


def test_a_shard_that_was_written_anew_with_the_same_bytes_is_accepted(whole: Path, tmp_path: Path) -> None:
    def copy() -> None:
        shutil.copyfile(first, tmp_path / "copy")
        os.replace(tmp_path / "copy", first)

    first = tmp_path / "out" / "p_val_000000.npy"
    assert make(tmp_path / "out", progress=after(3, copy)) == Manifest.load(whole)


def remove(folder: Path) -> None:
    """Remove a folder in which a thread may be writing: at once, for `rmtree` would find new files again and again."""
    gone = folder.rename(folder.with_name("gone"))
    shutil.rmtree(gone)


def test_a_run_whose_folder_is_removed_says_so_and_the_next_one_starts_anew(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"cannot write|was written to by somebody else"):
        make(out, progress=after(3, lambda: remove(out)))
    assert make(out) == Manifest.load(whole)
    assert folder_bytes(out) == folder_bytes(whole)


def test_a_run_whose_folder_became_another_runs_writes_nothing_into_it(stopped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def replace() -> None:
        remove(out)
        shutil.copytree(stopped, out)

    with pytest.raises(OutputError, match=r"cannot write|was written to by somebody else"):
        make(out, shard_tokens=30_000, progress=after(3, replace))
    assert (out / JOURNAL_FILE).read_bytes() == (stopped / JOURNAL_FILE).read_bytes()
    assert folder_bytes(out) == folder_bytes(stopped)


@pytest.mark.parametrize("what", ["gone", "another"])
def test_a_shard_that_is_taken_away_when_it_was_just_finished_ends_the_run_in_one_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    replace = os.replace

    def replace_and_lose(temp: Path, target: Path) -> None:
        replace(temp, target)
        if target.suffix == ".npy":
            target.unlink()
            if what == "another":
                target.write_bytes(b"short")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_lose)
        with pytest.raises(OutputError, match=r"out was written to by somebody else, p_val_000000\.npy is not"):
            make(tmp_path / "out")
    make(tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == folder_bytes(whole)


def test_a_manifest_that_is_not_of_this_run_is_no_sign_that_it_is_finished(
    whole: Path, stopped: Path, tmp_path: Path
) -> None:
    other = make_dataset(tmp_path / "other", prefix="p")
    manifest = Manifest.load(whole)
    for made in (other, Manifest(**{**_fields(manifest), "shards": manifest.shards[:3]})):
        out = tmp_path / "out"
        shutil.copytree(whole, out)
        made.save(out)
        with pytest.raises(OutputError, match=r"manifest\.json is of another dataset than this run makes"):
            make(out)
        shutil.rmtree(out)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__slots__ if name != "directory"}


# -- --overwrite -------------------------------------------------------------------------------------------------------


def overwrite(folder: Path) -> None:
    with claim(folder, overwrite=True):
        clear(folder)


def test_overwrite_removes_what_the_journal_or_the_manifest_names(whole: Path, stopped: Path, tmp_path: Path) -> None:
    pulled = tmp_path / "pulled"
    shutil.copytree(whole, pulled, ignore=shutil.ignore_patterns(".shardkit"))
    killed = tmp_path / "killed"  # after the last shard got its name and before its line was written
    shutil.copytree(stopped, killed)
    lines = (killed / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (killed / JOURNAL_FILE).write_bytes(b"".join(lines[:-1]))
    begun = tmp_path / "begun"
    shutil.copytree(stopped, begun, ignore=shutil.ignore_patterns("p_train_*"))
    (begun / JOURNAL_FILE).write_bytes(lines[0])
    damaged = tmp_path / "damaged"
    shutil.copytree(stopped, damaged)
    change_line(damaged, 1, lambda record: record.update(more=1))
    with open(damaged / JOURNAL_FILE, "ab") as journal:
        journal.write(b"[]\n{}\n\xff\n")
    for folder in (pulled, killed, begun, damaged):
        (folder / "notes.txt").write_text("mine")
        (folder / "points.npy").write_bytes(b"mine")
        overwrite(folder)
        assert tree_of(folder) == {".shardkit/lock": b"", "notes.txt": b"mine", "points.npy": b"mine"}


@pytest.mark.parametrize("ours", ["nothing", "journal", "manifest"])
def test_overwrite_refuses_and_names_a_shard_that_it_did_not_make(
    whole: Path, stopped: Path, tmp_path: Path, ours: str
) -> None:
    out = tmp_path / "out"
    if ours == "nothing":
        out.mkdir()
    else:
        shutil.copytree(stopped if ours == "journal" else whole, out)
    np.save(out / "emb_train_000000.npy", np.zeros(10, np.uint16))
    before = tree_of(out)
    with pytest.raises(OutputError, match=r"holds emb_train_000000\.npy, which no journal or manifest of shardkit's"):
        make(out, shard_tokens=30_000, overwrite=True)
    assert {**tree_of(out), ".shardkit/lock": b""} == {**before, ".shardkit/lock": b""}


@pytest.mark.parametrize("text", ['{"name": "my web extension", "manifest_version": 3}', "not JSON", "[]"])
def test_overwrite_refuses_and_names_a_manifest_that_is_not_ours(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    np.save(tmp_path / "emb_train_000000.npy", np.zeros(10, np.uint16))
    before = tree_of(tmp_path)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(OutputError, match=r"manifest\.json is not a shardkit manifest .*move it away"):
            make(tmp_path, **options)
    assert tree_of(tmp_path) == before


def test_a_link_in_the_place_of_a_working_folder_is_removed_and_not_what_it_points_at(
    stopped: Path, tmp_path: Path
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    shutil.copytree(stopped, out)
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    (out / ".shardkit" / "plans").symlink_to(mine)
    overwrite(out)
    assert (mine / "notes.txt").read_text() == "mine"
    assert tree_of(out) == {".shardkit/lock": b""}


def test_what_was_killed_while_it_wrote_a_small_file_leaves_nothing_beside_the_shards(tmp_path: Path) -> None:
    left = [f".{name}.json.123.tmp" for name in ("manifest", "tokenizer", "tokenizer_config")]
    others = [".mine.json.123.tmp", ".manifest.json.tmp"]
    for place in ("out", "copy"):
        (tmp_path / place).mkdir()
        for name in [*left, *others]:
            (tmp_path / place / name).write_bytes(b"half")
    tokenize("sample", tmp_path / "out", tokenizer="bytes", overwrite=True, progress=False)
    pull(str(tmp_path / "out"), tmp_path / "copy", progress=False)
    for place in ("out", "copy"):
        assert {name for name in [*left, *others] if (tmp_path / place / name).exists()} == set(others)
