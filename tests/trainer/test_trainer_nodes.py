"""Nodes without a common disk: they resume one checkpoint and train on the same data, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_data import ROOT, TINY, Said, launch_worker, losses, play, run_trainer, write_dataset

from shardkit import Manifest, pull, push
from trainer.checkpoint import checkpoint_name, load_checkpoint
from trainer.config import make_config
from trainer.distributed import find_world
from trainer.run_folder import hold_run
from trainer.train import open_data, pin_commit

LARGEST = 128 * 32 * 3  # elements: 384 padded ids, width 32
Words = tuple[str | Path, ...]


def error_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("error")]


def refusal(ranks: list[Said]) -> str:
    """The one line that a refusal of all ranks is; the ranks leave with code 1."""
    assert [rank.code for rank in ranks] == [1, 1], ranks
    main, other = ranks
    assert error_lines(other.stderr) == []
    [line] = error_lines(main.stderr)
    assert line.startswith("error: ")
    assert "Traceback" not in main.stderr + other.stderr
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and in `run` twelve steps of two ranks that were never stopped, with their checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "data")
    words = ("--data", folder / "data", *TINY, "--steps", "12", "--save-every", "3", "--keep", "9")
    run_trainer("train", *words, "--out", folder / "run", ranks=2, pictures=True)
    assert (folder / "run" / "loss.png").exists()
    return folder


def copy_checkpoint(whole: Path, step: int, out: Path) -> Path:
    """A run's folder that holds its config.toml and the checkpoint of `step`."""
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "run" / "config.toml", out)
    return Path(shutil.copy(whole / "run" / "checkpoints" / checkpoint_name(step), out / "checkpoints"))


def resume(folder: Path) -> Words:
    return ("train", "--out", f"{folder}/out{{rank}}", "--resume", "auto")


def lacking(whole: Path, folder: Path, holder: int) -> Words:
    copy_checkpoint(whole, 6, folder / f"out{holder}")
    return resume(folder)


def held_by_all(whole: Path, folder: Path) -> Words:
    for rank in (0, 1):
        copy_checkpoint(whole, 6, folder / f"out{rank}")
    return resume(folder)


def in_one_folder(whole: Path, folder: Path) -> Words:
    path = copy_checkpoint(whole, 6, folder / "out")
    return ("train", "--out", folder / "out", "--resume", path)


def different_checkpoints(whole: Path, folder: Path, theirs: str) -> Words:
    copy_checkpoint(whole, 6, folder / "out0")
    other = copy_checkpoint(whole, 9 if theirs == "newer" else 6, folder / "out1")
    if theirs != "newer":
        state = load_checkpoint(other)
        state["model"]["transformer.wpe.weight"] = state["model"]["transformer.wpe.weight"] + 1e-6
        torch.save(state, other.with_suffix(".tmp"))
        other.with_suffix(".tmp").replace(other)
    return resume(folder)


def different_data(_whole: Path, folder: Path) -> Words:
    for rank in (0, 1):
        write_dataset(folder / f"data{rank}", train=6000 + rank)
    return ("train", "--data", f"{folder}/data{{rank}}", "--out", folder / "out", *TINY, "--steps", "3")


def another_val_split(whole: Path, folder: Path) -> Words:
    for rank, val in enumerate((2000, 2001)):
        write_dataset(folder / f"data{rank}", val=val)
    return ("eval", whole / "run", "--data", f"{folder}/data{{rank}}", "--device", "cpu")


def to_begin(whole: Path, folder: Path) -> Words:
    return ("train", "--data", whole / "data", *TINY, "--out", f"{folder}/out{{rank}}", "--steps", "1")


def one_run_in_the_way(whole: Path, folder: Path) -> Words:
    copy_checkpoint(whole, 6, folder / "out1")
    return ("train", "--data", whole / "data", *TINY, "--out", f"{folder}/out{{rank}}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each scene has a folder of its name."""
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def played(whole: Path, home: Path) -> dict[str, list[Said]]:
    """How each scene ended on both ranks: all of them in one launch."""
    others = (home / "another-process" / "out0", home / "another-process-elsewhere" / "out1")
    with hold_run(others[0]), hold_run(others[1]):
        return play(
            home,
            {
                "another-process": to_begin(whole, home / "another-process"),
                "another-process-elsewhere": to_begin(whole, home / "another-process-elsewhere"),
                "lacking-0": lacking(whole, home / "lacking-0", 0),
                "held-by-all": held_by_all(whole, home / "held-by-all"),
                "in-one-folder": in_one_folder(whole, home / "in-one-folder"),
                "newer": different_checkpoints(whole, home / "newer", "newer"),
                "another run's": different_checkpoints(whole, home / "another run's", "another run's"),
                "different-data": different_data(whole, home / "different-data"),
                "another-val-split": another_val_split(whole, home / "another-val-split"),
                "one-run-in-the-way": one_run_in_the_way(whole, home / "one-run-in-the-way"),
            },
        )


def assert_went_on(whole: Path, out: Path) -> None:
    """The steps after 6 are those of the run that was never stopped, bit for bit."""
    assert losses(out) == [(step, loss) for step, loss in losses(whole / "run") if step > 6]
    ends = [load_checkpoint(run / "checkpoints" / checkpoint_name(12)) for run in (whole / "run", out)]
    for name, tensor in ends[0]["model"].items():
        assert torch.equal(tensor, ends[1]["model"][name]), name
    assert torch.equal(ends[0]["rng"], ends[1]["rng"])


def assert_sent_one_by_one(whole: Path, out: Path, holder: int, stdout: str, sent: list[list[int]]) -> None:
    assert f"rank {holder} sends its checkpoint to all: 1 of 2 ranks have none" in stdout
    assert_went_on(whole, out)
    for sizes in sent:
        assert max(sizes) <= max(LARGEST * 4, 16384)  # the largest tensor, or the tree's shapes; not all of them
        assert len(sizes) > 3 * 16  # weights and two moments


def test_a_node_without_the_checkpoint_gets_it_tensor_by_tensor(
    whole: Path, home: Path, played: dict[str, list[Said]]
) -> None:
    ranks = played["lacking-0"]
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert_sent_one_by_one(whole, home / "lacking-0" / "out0", 0, ranks[0].stdout, [rank.sent for rank in ranks])


def test_the_first_node_gets_it_tensor_by_tensor_too(whole: Path, tmp_path: Path) -> None:
    done = launch_worker("apart", "-", tmp_path, *lacking(whole, tmp_path, 1))
    assert done.returncode == 0, done.stderr
    sent = [[int(size) for size in (tmp_path / f"sent_{rank}").read_text().split()] for rank in (0, 1)]
    assert_sent_one_by_one(whole, tmp_path / "out0", 1, done.stdout, sent)


def test_each_rank_reads_its_own_file_where_all_have_it(whole: Path, home: Path, played: dict[str, list[Said]]) -> None:
    ranks = played["held-by-all"]
    assert [(rank.code, rank.sent) for rank in ranks] == [(0, []), (0, [])], ranks
    assert_went_on(whole, home / "held-by-all" / "out0")


def test_ranks_of_one_folder_go_on_as_if_never_stopped(whole: Path, home: Path, played: dict[str, list[Said]]) -> None:
    ranks = played["in-one-folder"]
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert_went_on(whole, home / "in-one-folder" / "out")


@pytest.mark.parametrize("theirs", ["newer", "another run's"])
def test_nodes_that_hold_different_checkpoints_refuse_and_name_both(
    home: Path, played: dict[str, list[Said]], theirs: str
) -> None:
    line, folder = refusal(played[theirs]), home / theirs
    ours, other = (folder / f"out{rank}" / "checkpoints" for rank in (0, 1))
    step = 9 if theirs == "newer" else 6
    assert f"rank 0 would resume {ours / checkpoint_name(6)} (step 6, content " in line
    assert f"rank 1 {other / checkpoint_name(step)} (step {step}, content " in line
    assert not (folder / "out0" / "log.jsonl").exists()


def test_nodes_with_different_data_refuse_and_name_both(home: Path, played: dict[str, list[Said]]) -> None:
    line, folder = refusal(played["different-data"]), home / "different-data"
    for rank in (0, 1):
        assert f"data{rank})" in line
        assert Manifest.load(folder / f"data{rank}").fingerprint in line
    assert not (folder / "out").exists()


def test_another_val_split_alone_is_different_data_too(played: dict[str, list[Said]]) -> None:
    assert "has the dataset of fingerprint" in refusal(played["another-val-split"])


def test_nodes_with_different_settings_refuse_and_name_them(whole: Path, tmp_path: Path) -> None:
    words = ("--data", whole / "data", "--out", tmp_path / "out", *TINY, "--steps", "3", "--lr", "0.{rank}1")
    done = launch_worker("apart", "-", tmp_path, "train", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{ROOT}/trainer/" not in done.stderr  # no traceback but the launcher's own
    [line] = error_lines(done.stderr)
    assert line.startswith("error: ")
    assert "has --lr 0.01, rank 1" in line
    assert "has 0.11: give all ranks the same data and options" in line


def test_all_nodes_pull_the_commit_that_was_resolved_once(
    tmp_path: Path, hub: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    first = write_dataset(tmp_path / "first")
    push(tmp_path / "first", "alice/data")
    name, commit = pin_commit("hf://datasets/alice/data")
    assert name == "alice/data"
    assert commit is not None
    write_dataset(tmp_path / "second", train=7000)
    shutil.rmtree(tmp_path / "first")
    push(tmp_path / "second", "alice/data", overwrite=True)  # while another node begins
    assert pull(name, tmp_path / "pulled", revision=commit).fingerprint == first.fingerprint
    settings: dict[str, Any] = {"data": "alice/data", "data_dir": str(tmp_path / "now"), "out": "o", "model": "nano"}
    manifest = open_data(make_config(settings), find_world("cpu"))
    assert manifest.fingerprint == Manifest.load(tmp_path / "second").fingerprint != first.fingerprint
    assert f"pulling alice/data at {pin_commit('alice/data')[1]} into" in capsys.readouterr().out


def test_a_place_without_commits_is_pulled_as_it_is(tmp_path: Path) -> None:
    for source in (tmp_path.as_uri(), "s3://bucket/data", "./folder", "/some/folder", "name"):
        assert pin_commit(source) == (source, None)


def test_what_one_rank_finds_wrong_is_said_once(home: Path, played: dict[str, list[Said]]) -> None:
    ranks = played["one-run-in-the-way"]
    assert [line for rank in ranks for line in error_lines(rank.stderr)] == [
        f"error: {home}/one-run-in-the-way/out1 holds a run already: go on with --resume auto, or give another --out"
    ]


def test_a_folder_in_which_another_process_trains_is_refused_on_all_ranks(
    home: Path, played: dict[str, list[Said]]
) -> None:
    line = refusal(played["another-process"])
    assert line.startswith(f"error: another process is training in {home}/another-process/out0: wait for it")


def test_only_the_rank_that_writes_holds_the_runs_folder(home: Path, played: dict[str, list[Said]]) -> None:
    ranks = played["another-process-elsewhere"]
    assert [rank.code for rank in ranks] == [0, 0], ranks
    assert losses(home / "another-process-elsewhere" / "out0")
