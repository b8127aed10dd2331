"""Nodes without a common disk: they resume one checkpoint and train on the same data, or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_data import LONG_SECONDS, ROOT, TINY, environment, losses, run_trainer, write_dataset

from shardkit import Manifest, pull, push
from trainer.checkpoint import checkpoint_name, load_checkpoint
from trainer.config import make_config
from trainer.distributed import find_world
from trainer.train import open_data, pin_commit

LARGEST = 128 * 32 * 3  # elements: 384 padded ids, width 32


def launch(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Two ranks run the command line; `{rank}` in its words is each one's number."""
    folder.mkdir(exist_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*torchrun, "tests/support/trainer_worker.py", "apart", "-", str(folder), *map(str, words)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONG_SECONDS,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal of all ranks is; the ranks leave with code 1."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert f"{ROOT}/trainer/" not in done.stderr  # no traceback but the launcher's own
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and in `run` twelve steps of two ranks that were never stopped, with their checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(folder / "data")
    words = ("--data", folder / "data", *TINY, "--steps", "12", "--save-every", "3", "--keep", "9")
    run_trainer("train", *words, "--out", folder / "run", ranks=2)
    return folder


def copy_checkpoint(whole: Path, step: int, out: Path) -> Path:
    """A run's folder that holds its config.toml and the checkpoint of `step`."""
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "run" / "config.toml", out)
    return Path(shutil.copy(whole / "run" / "checkpoints" / checkpoint_name(step), out / "checkpoints"))


def assert_went_on(whole: Path, out: Path) -> None:
    """The steps after 6 are those of the run that was never stopped, bit for bit."""
    assert losses(out) == [(step, loss) for step, loss in losses(whole / "run") if step > 6]
    ends = [load_checkpoint(run / "checkpoints" / checkpoint_name(12)) for run in (whole / "run", out)]
    for name, tensor in ends[0]["model"].items():
        assert torch.equal(tensor, ends[1]["model"][name]), name
    assert torch.equal(ends[0]["rng"], ends[1]["rng"])


@pytest.mark.parametrize("holder", [0, 1])
def test_a_node_without_the_checkpoint_gets_it_tensor_by_tensor(whole: Path, tmp_path: Path, holder: int) -> None:
    copy_checkpoint(whole, 6, tmp_path / f"out{holder}")
    done = launch(tmp_path, "train", "--out", f"{tmp_path}/out{{rank}}", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert f"rank {holder} sends its checkpoint to all: 1 of 2 ranks have none" in done.stdout
    assert_went_on(whole, tmp_path / "out0")
    for rank in (0, 1):
        sent = [int(size) for size in (tmp_path / f"sent_{rank}").read_text().split()]
        assert max(sent) <= max(LARGEST * 4, 16384)  # the largest tensor, or the tree's shapes; not all of them
        assert len(sent) > 3 * 16  # weights and two moments


def test_each_rank_reads_its_own_file_where_all_have_it(whole: Path, tmp_path: Path) -> None:
    for rank in (0, 1):
        copy_checkpoint(whole, 6, tmp_path / f"out{rank}")
    done = launch(tmp_path, "train", "--out", f"{tmp_path}/out{{rank}}", "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert_went_on(whole, tmp_path / "out0")
    assert not list(tmp_path.glob("sent_*"))


def test_ranks_of_one_folder_go_on_as_if_never_stopped(whole: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(whole, 6, tmp_path / "out")
    done = launch(tmp_path, "train", "--out", tmp_path / "out", "--resume", path)
    assert done.returncode == 0, done.stderr
    assert_went_on(whole, tmp_path / "out")


@pytest.mark.parametrize("theirs", ["newer", "another run's"])
def test_nodes_that_hold_different_checkpoints_refuse_and_name_both(whole: Path, tmp_path: Path, theirs: str) -> None:
    ours = copy_checkpoint(whole, 6, tmp_path / "out0")
    other = copy_checkpoint(whole, 9 if theirs == "newer" else 6, tmp_path / "out1")
    if theirs != "newer":
        state = load_checkpoint(other)
        state["model"]["transformer.wpe.weight"] = state["model"]["transformer.wpe.weight"] + 1e-6
        torch.save(state, other.with_suffix(".tmp"))
        other.with_suffix(".tmp").replace(other)
    line = refusal(launch(tmp_path, "train", "--out", f"{tmp_path}/out{{rank}}", "--resume", "auto"))
    assert f"rank 0 would resume {ours} (step 6, content " in line
    assert f"rank 1 {other} (step {9 if theirs == 'newer' else 6}, content " in line
    assert not (tmp_path / "out0" / "log.jsonl").exists()


def test_nodes_with_different_data_refuse_and_name_both(tmp_path: Path) -> None:
    one, other = (write_dataset(tmp_path / f"data{rank}", train=6000 + rank) for rank in (0, 1))
    words = ("--data", f"{tmp_path}/data{{rank}}", "--out", tmp_path / "out", *TINY, "--steps", "3")
    line = refusal(launch(tmp_path, "train", *words))
    for rank, manifest in enumerate((one, other)):
        assert f"data{rank})" in line
        assert manifest.fingerprint in line
    assert not (tmp_path / "out").exists()


def test_another_val_split_alone_is_different_data_too(whole: Path, tmp_path: Path) -> None:
    for rank, val in enumerate((2000, 2001)):
        write_dataset(tmp_path / f"data{rank}", val=val)
    line = refusal(launch(tmp_path, "eval", whole / "run", "--data", f"{tmp_path}/data{{rank}}", "--device", "cpu"))
    assert "has the dataset of fingerprint" in line


def test_nodes_with_different_settings_refuse_and_name_them(whole: Path, tmp_path: Path) -> None:
    words = ("--data", whole / "data", "--out", tmp_path / "out", *TINY, "--steps", "3", "--lr", "0.{rank}1")
    line = refusal(launch(tmp_path, "train", *words))
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


def test_what_one_rank_finds_wrong_is_said_once(whole: Path, tmp_path: Path) -> None:
    words = ("train", "--data", whole / "data", *TINY, "--out", f"{tmp_path}/out{{rank}}")
    copy_checkpoint(whole, 6, tmp_path / "out1")
    done = launch(tmp_path, *words)
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        f"error: {tmp_path}/out1 holds a run already: go on with --resume auto, or give another --out"
    ]
