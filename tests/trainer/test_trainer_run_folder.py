"""Whose a folder is: one process trains in a run's at a time, and neither runs nor exports are written over others."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest
from click.testing import CliRunner
from trainer_data import TINY, write_dataset

from shardkit import UsageError
from trainer.__main__ import main
from trainer.run_folder import hold_run


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A run of two steps in `run`."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    write_dataset(tmp_path / "data")
    return ("train", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run", *TINY, "--steps", "2")


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    return result.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_second_process_is_refused_in_one_line_and_leaves_the_run_alone(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    run = tmp_path / "run"
    said(*words)
    with hold_run(run):
        before = files(run)
        for again in (words, ("train", "--out", str(run), "--resume", "auto", "--steps", "3")):
            line = said(*again, code=1)
            assert line.startswith(f"error: another process is training in {run}: wait for it, or give another --out")
            assert line.count("\n") == 1
        assert files(run) == before
    said("train", "--out", str(run), "--resume", "auto", "--steps", "3")
    assert {path.name for path in run.iterdir()} == {"config.toml", "log.jsonl", "loss.png", "checkpoints"}


def test_what_was_made_to_be_held_and_stays_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for run in (tmp_path / "new" / "run", tmp_path / "mine"):
        with pytest.raises(UsageError), hold_run(run):
            raise UsageError("nothing is written")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_goes_into_no_dataset_and_no_run_but_over_an_earlier_one(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    run, data, hf = (str(tmp_path / name) for name in ("run", "data", "hf"))
    said(*words)
    before = files(tmp_path)
    assert f"error: {data} holds a dataset (manifest.json): give another folder" in said("export", run, data, code=2)
    assert f"error: {run} holds a run (config.toml): give another folder" in said("export", run, run, code=2)
    (tmp_path / "data" / "manifest.json").rename(tmp_path / "kept")
    assert f"error: {data} holds a dataset (tiny_" in said("export", run, data, code=2)
    (tmp_path / "kept").rename(tmp_path / "data" / "manifest.json")
    assert "holds a run (step_00000002.pt)" in said("export", run, f"{run}/checkpoints", code=2)
    assert files(tmp_path) == before
    said("export", run, hf)
    said("export", run, hf)


def test_a_run_begins_in_no_dataset(words: tuple[str, ...], tmp_path: Path) -> None:
    before = files(tmp_path)
    for more in ((), ("--resume", "auto")):
        line = said(*words, *more, "--out", str(tmp_path / "data"), code=2)
        assert line == f"error: {tmp_path}/data holds a dataset (manifest.json): give another --out\n"
        assert files(tmp_path) == before
