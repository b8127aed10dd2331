"""Killed and resumed, a run is the run that was never stopped: bit for bit on the CPU."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainer_data import LONG_SECONDS, ROOT, TINY, command, environment, losses, play, write_dataset

from shardkit import UsageError
from shardkit.batches.ledger import merge_ledger
from trainer.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from trainer.train import train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, document_tokens=16)
    return folder


def settings(data: Path, out: Path, **more: object) -> dict[str, object]:
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 32, "seq_len": 32, "micro_batch": 2, "batch_tokens": 256}
    return {
        "data": str(data),
        "out": str(out),
        "model": "nano",
        **sizes,
        "val_tokens": 1024,
        "val_every": 4,
        "keep": 9,
        "device": "cpu",
        "steps": 12,
        "save_every": 3,
        **more,
    }


def weights(run: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_checkpoint(list_checkpoints(run / "checkpoints")[-1])["model"]
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert losses(one, "val_loss") == losses(other, "val_loss")
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


PACKED = {"layout": "packed", "document_mask": True}


@pytest.mark.parametrize(
    "more", [{}, {"optimizer": "muon"}, {"model": "bigram", "n_layer": 0}, {"precision": "bf16"}, PACKED]
)
def test_going_on_from_the_middle_equals_never_having_stopped(
    data: Path, tmp_path: Path, more: dict[str, object]
) -> None:
    if more.get("optimizer") == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(settings(data, whole, **more))
    (part / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "checkpoints" / "step_00000006.pt", part / "checkpoints")
    shutil.copy(whole / "log.jsonl", part)  # with lines of the lost part
    shutil.copy(whole / "config.toml", part)
    train({"out": str(part), "resume": "auto"})  # places are in config.toml, the rest is in the checkpoint
    assert [step for step, _ in losses(part)] == list(range(1, 13))
    assert_same_run(whole, part)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty steps that were never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(settings(data, folder, steps=30, val_every=0, save_every=2))
    return folder


@pytest.mark.parametrize("moment", ["update", "save"])
def test_a_run_that_was_killed_at_any_step_goes_on_bit_for_bit(
    data: Path, whole: Path, tmp_path: Path, moment: str
) -> None:
    killed = tmp_path / "killed"
    step = 2 * random.randint(2, 12)
    words = ["--data", data, "--out", killed, *TINY, "--steps", "30", "--save-every", "2", "--keep", "9"]
    worker = [sys.executable, "tests/support/trainer_worker.py", f"killed_in_{moment}", "-", str(step), "train"]
    done = subprocess.run([*worker, *map(str, words)], env=environment(), cwd=ROOT, timeout=LONG_SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list_checkpoints(killed / "checkpoints")[-1].name == f"step_{step - 2:08d}.pt"
    assert bool(list((killed / "checkpoints").glob(".*.tmp"))) == (moment == "save")
    train(settings(data, killed, steps=30, val_every=0, save_every=2, resume="auto"))
    assert_same_run(whole, killed)


def test_sigterm_saves_one_more_and_the_run_goes_on_from_there(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", data, "--out", run, *TINY, "--steps", "5000", "--save-every", "0"]
    process = subprocess.Popen(
        command("train", *words), env=environment(pictures=True), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step     5/"):
            process.terminate()
            break
    said = process.stdout.read()
    process.stdout.close()
    assert process.wait(LONG_SECONDS) == 128 + signal.SIGTERM
    last = losses(run)[-1][0]
    assert f"stopped by SIGTERM after step {last}" in said
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [f"step_{last:08d}.pt"]
    train({"out": str(run), "resume": "auto", "steps": last + 2})
    assert losses(run)[-1][0] == last + 2


@pytest.fixture(scope="module")
def by_two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `contiguous` and `packed`: five steps of two ranks. One test goes on in each."""
    home = tmp_path_factory.mktemp("two")
    words = ("train", "--data", data, *TINY, "--ledger", "--steps", "5", "--out")
    scenes = {"contiguous": words, "packed": ("train", "--layout", "packed", "--document-mask", *words[1:])}
    ranks = play(home / "scenes", {name: (*words, home / name) for name, words in scenes.items()})
    assert [rank.code for both in ranks.values() for rank in both] == [0] * 4, ranks
    return home


@pytest.mark.parametrize("more", [{}, PACKED])
def test_two_ranks_then_one_are_given_the_same_data(
    data: Path, tmp_path: Path, by_two_ranks: Path, more: dict[str, object]
) -> None:
    run = by_two_ranks / ("packed" if more else "contiguous")
    two = losses(run)
    train({"out": str(run), "resume": "auto", "steps": 10})
    train(settings(data, tmp_path / "one", steps=10, val_every=0, ledger=True, **more))
    resumed, alone = merge_ledger(run / "ledger"), merge_ledger(tmp_path / "one" / "ledger")
    assert resumed.first_difference(alone) is None
    assert max(resumed.running) == max(alone.running) == 80
    assert [step for step, _ in losses(run)] == list(range(1, 11))
    for (_, ours), (_, theirs) in zip(two[:1], losses(tmp_path / "one")[:1], strict=True):
        assert abs(ours - theirs) < 1e-5


def test_sigterm_to_torchrun_saves_one_more_too(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--data", data, "--out", run, *TINY, "--steps", "50000", "--save-every", "0"]
    process = subprocess.Popen(
        command("train", *words, ranks=2),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (run / "log.jsonl").exists() or len(losses(run)) < 3:  # nobody reads its output: it stops in the pipe
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)  # the ranks get it from here and, again, from their launcher
    said, _ = process.communicate(timeout=LONG_SECONDS)
    assert process.returncode != 0
    saved = list_checkpoints(run / "checkpoints")
    assert [path.name for path in saved] == [f"step_{losses(run)[-1][0]:08d}.pt"]
    assert load_checkpoint(saved[0])["rng"].shape[0] == 2
    assert "stopped by SIGTERM" in said


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(data: Path, tmp_path: Path) -> None:
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    train(settings(data, whole))
    shutil.copytree(whole, hurt)
    newest = list_checkpoints(hurt / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(settings(data, hurt, resume="auto"))
    assert_same_run(whole, hurt)


def test_a_folder_that_holds_a_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    train(settings(data, tmp_path, steps=3))
    with pytest.raises(UsageError, match="holds a run already: go on with --resume auto"):
        train(settings(data, tmp_path, steps=3))
    with pytest.raises(UsageError, match=r"another config: --n-embd 64 \(was 32\)"):
        train(settings(data, tmp_path, resume="auto", n_embd=64))
    with pytest.raises(CheckpointError, match="there"):
        train(settings(data, tmp_path, resume=str(tmp_path / "no.pt")))
    before = losses(tmp_path)
    train(settings(data, tmp_path, steps=3, resume="auto"))  # complete: nothing to do
    assert losses(tmp_path) == before


def test_another_dataset_is_refused_at_resume(data: Path, tmp_path: Path) -> None:
    from shardkit.errors import StateError

    train(settings(data, tmp_path / "run", steps=3))
    write_dataset(tmp_path / "other", train=7000)
    with pytest.raises(StateError, match="fingerprint"):
        train(settings(tmp_path / "other", tmp_path / "run", resume="auto"))


def test_data_of_another_vocabulary_are_refused_by_what_differs(data: Path, tmp_path: Path) -> None:
    train(settings(data, tmp_path / "run", steps=1, val_every=0))
    write_dataset(tmp_path / "other", ids=300)
    with pytest.raises(CheckpointError) as caught:
        train(settings(tmp_path / "other", tmp_path / "run", steps=2, val_every=0, resume="auto"))
    assert str(caught.value) == (
        "the checkpoint's model has vocab_size 257 (here 300): go on with --data of its vocabulary ('bytes'), or begin "
        "a run in another --out"
    )


def test_a_damaged_checkpoint_is_said_without_a_resume_that_nobody_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.pt"
    path.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=r"is not a whole checkpoint \(.*\): take an older one$"):
        load_checkpoint(path)


def test_a_fresh_machine_goes_on_from_what_was_pushed(data: Path, tmp_path: Path) -> None:
    remote = (tmp_path / "remote").as_uri()
    train(settings(data, tmp_path / "first", steps=6, push_checkpoints=remote))
    train(settings(data, tmp_path / "whole", steps=6))
    train(settings(data, tmp_path / "fresh", steps=9, save_every=3, resume=remote))
    assert [step for step, _ in losses(tmp_path / "fresh")] == [7, 8, 9]
    assert losses(tmp_path / "first") == losses(tmp_path / "whole")


def test_a_fresh_machine_goes_on_from_a_hub_model_repo(data: Path, tmp_path: Path, hub: object) -> None:
    train(settings(data, tmp_path / "first", steps=6, push_checkpoints="alice/run"))
    train(settings(data, tmp_path / "fresh", steps=9, resume="alice/run"))
    assert [step for step, _ in losses(tmp_path / "fresh")] == [7, 8, 9]


@pytest.mark.parametrize("place", ["alice/run", "hf://buckets/alice/runs", "folder"])
def test_one_command_begins_a_run_and_goes_on_with_it_on_a_fresh_machine(
    data: Path, tmp_path: Path, hub: object, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = (tmp_path / "far").as_uri() if place == "folder" else place
    more = {"push_checkpoints": place, "resume": "auto", "val_every": 0}
    train(settings(data, tmp_path / "first", steps=3, **more))
    assert f"nothing to resume in {tmp_path / 'first'}, nor at {place}: starting anew" in capsys.readouterr().out
    train(settings(data, tmp_path / "fresh", steps=6, **more))
    assert [step for step, _ in losses(tmp_path / "fresh")] == [4, 5, 6]


def test_a_place_that_does_not_answer_begins_no_new_run_over_the_one_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.ls", down)
    with pytest.raises(CheckpointError, match="cannot fetch a checkpoint from file:.*: no route"):
        train(settings(data, tmp_path / "run", push_checkpoints=(tmp_path / "far").as_uri(), resume="auto"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_place_that_holds_another_run_is_not_overwritten_by_a_new_one(data: Path, tmp_path: Path) -> None:
    more = {"push_checkpoints": (tmp_path / "far").as_uri(), "resume": "auto", "val_every": 0, "steps": 3}
    train(settings(data, tmp_path / "first", **more))
    with pytest.raises(UsageError, match=r"another config: --seed 8 \(was 1337\)"):
        train(settings(data, tmp_path / "other", seed=8, **more))


def test_a_second_signal_after_a_while_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer import distributed

    stop = distributed.StopSignal()
    monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", math.inf)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the launcher's echo of the first
        assert stop.number == signal.SIGINT
        monkeypatch.setattr(distributed, "_PATIENCE_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.restore()
