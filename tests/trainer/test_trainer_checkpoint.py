"""A checkpoint is whole or not there, and uploads never stop anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_data import whole_state

from shardkit import UsageError
from trainer import checkpoint as ckpt
from trainer import checkpoint_upload
from trainer.checkpoint_upload import Uploader

TABLE, SIZE = "transformer.wte.weight", 128 * 128


def state(step: int, val_loss: float | None = None, best: float = 1e9) -> dict[str, Any]:
    return {**whole_state(step), "val_loss": val_loss, "best": best}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded_and_only_plain_data_is_needed(tmp_path: Path) -> None:
    path = ckpt.save_checkpoint(tmp_path, state(3), keep=2)
    assert torch.equal(ckpt.load_checkpoint(path)["model"][TABLE].ravel(), torch.arange(SIZE) + 3.0)
    assert torch.load(path, weights_only=True)["step"] == 3


def test_the_newest_and_the_best_are_kept_and_the_leavings_of_a_kill_go(tmp_path: Path) -> None:
    (tmp_path / ".step_00000009.pt.123.tmp").write_bytes(b"half")
    best = 1e9
    for step, val in enumerate([5.0, 3.0, 4.0, None, 6.0], 1):
        best = min(best, val or best)
        ckpt.save_checkpoint(tmp_path, state(step, val, best), keep=2)
    assert names(tmp_path) == ["best.json", "step_00000002.pt", "step_00000004.pt", "step_00000005.pt"]
    assert ckpt.find_checkpoint(tmp_path).name == "step_00000005.pt"
    assert ckpt.find_checkpoint(tmp_path, "best").name == "step_00000002.pt"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        ckpt.save_checkpoint(tmp_path, state(step), keep=9)
    truncated, flipped, empty = (tmp_path / ckpt.checkpoint_name(step) for step in (4, 3, 2))
    os.truncate(truncated, truncated.stat().st_size // 2)
    data = bytearray(flipped.read_bytes())
    data[data.index(torch.tensor([5000.0]).numpy().tobytes())] ^= 1  # one bit of one weight
    flipped.write_bytes(data)
    empty.write_bytes(b"")
    said: list[str] = []
    assert ckpt.newest_checkpoint(tmp_path, said.append) == tmp_path / ckpt.checkpoint_name(1)
    assert len(said) == 3
    assert "damaged" in said[1]


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ckpt.checkpoint_name(1)).write_bytes(b"junk")
    with pytest.raises(ckpt.CheckpointError, match="none of the 1 checkpoints"):
        ckpt.newest_checkpoint(tmp_path, lambda text: None)
    assert ckpt.newest_checkpoint(tmp_path / "none", lambda text: None) is None


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ckpt.CheckpointError, match="not a whole checkpoint"):
        ckpt.load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_disk_that_refuses_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ckpt.CheckpointError, match=r"cannot write .*--resume auto"):
        ckpt.save_checkpoint(tmp_path / "file", state(1), keep=1)


def test_uploads_go_to_any_fsspec_path_and_come_back(tmp_path: Path) -> None:
    run, remote, said = tmp_path / "run", (tmp_path / "remote").as_uri(), []
    uploader = Uploader(run, remote, said.append)
    for step in (1, 2):
        path = ckpt.save_checkpoint(run / "checkpoints", state(step), keep=1)
        (run / "log.jsonl").write_text('{"step": 1}\n')
        uploader.submit(path)
    uploader.close()
    assert names(tmp_path / "remote" / "checkpoints") == ["step_00000002.pt"]
    assert (tmp_path / "remote" / "log.jsonl").exists()
    assert said[-2:] == [f"pushed step_00000002 to {remote}", f"pushed    {remote} has step_00000002"]
    assert names(run) == ["checkpoints", "log.jsonl"]
    fetched = ckpt.download_newest(remote, tmp_path / "fresh")
    assert ckpt.load_checkpoint(fetched)["step"] == 2


def test_a_bucket_has_the_newest_checkpoint_alone_and_gives_it_back(tmp_path: Path, hub: Any) -> None:
    run, remote, said = tmp_path / "run", "hf://buckets/alice/runs", list[str]()
    for step in (1, 2):
        uploader = Uploader(run, remote, said.append)
        path = ckpt.save_checkpoint(run / "checkpoints", state(step), keep=1)
        (run / "log.jsonl").write_text('{"step": 1}\n')
        uploader.submit(path)
        uploader.close()
        assert said[-1] == f"pushed    {remote} has step_{step:08}"
    assert {*hub.buckets["alice/runs"].files} == {"checkpoints/step_00000002.pt", "log.jsonl"}
    assert hub.buckets["alice/runs"].private
    assert ckpt.load_checkpoint(ckpt.download_newest(remote, tmp_path / "fresh"))["step"] == 2
    for wrong in ("hf://buckets/alice", f"{remote}@v1"):
        with pytest.raises(UsageError, match="expected user/repo on the Hub, hf://buckets/user/name/folder"):
            Uploader(run, wrong, said.append)


def test_a_failing_upload_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_upload, "FIRST_WAIT_SECONDS", 0.001)
    said: list[str] = []
    (tmp_path / "blocked").write_text("a file where a folder should be")
    uploader = Uploader(tmp_path / "run", (tmp_path / "blocked" / "x").as_uri(), said.append)
    uploader.submit(ckpt.save_checkpoint(tmp_path / "run" / "checkpoints", state(1), keep=1))
    uploader.close()
    assert said[0].startswith("warning: step_00000001 was not pushed to")
    with pytest.raises(UsageError, match="expected user/repo"):
        Uploader(tmp_path, "nonsense", said.append)


def test_a_remote_that_has_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(ckpt.CheckpointError, match="cannot fetch a checkpoint"):
        ckpt.download_newest((tmp_path / "none").as_uri(), tmp_path)
    with pytest.raises(ckpt.CheckpointError, match="there is no .*nowhere: give a run's folder"):
        ckpt.find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ckpt.CheckpointError, match="holds no last checkpoint"):
        ckpt.find_checkpoint(tmp_path)
