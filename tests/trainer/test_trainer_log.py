"""What a run shows: lines that fit a terminal, and a picture."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from trainer_data import environment, losses, write_dataset

from shardkit import report
from trainer.config import Config
from trainer.log import RunLog, step_line
from trainer.plot import draw_losses, short_count, smoothed
from trainer.train import train

REFERENCE = {"unigram entropy": 7.7, "ln(vocabulary)": 10.82}


def entries(steps: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        made.append({"step": step, "loss": 3 + 8 * math.exp(-step / 50) + step % 2 / 5, "lr": step / 1e5})
        if step % 10 == 0:
            made.append({"step": step, "val_loss": 3.1})
    return made


def test_the_line_of_a_step_fits_100_columns_however_large_its_figures() -> None:
    entry = {
        "step": 499_999,
        "loss": 11.23456,
        "lr": 1.234e-05,
        "grad_norm": 12.3456,
        "tokens_per_second": 1_234_567.0,
        "mfu": 0.999,
        "data_wait": 1.0,
    }
    line = step_line(entry, 600_000, 360.0)
    assert len(line) <= 100
    assert line.endswith("wait 100%  ETA 416d")


def test_a_line_comes_every_log_every_steps_and_log_jsonl_has_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "data")
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "run"), "model": "bigram", "device": "cpu"}
    train({**given, "steps": 12, "val_every": 0, "log_every": 5})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said if line.startswith("step ") and "/" in line] == [
        "1/12",
        "5/12",
        "10/12",
        "12/12",
    ]
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 13))
    page = report(tmp_path / "run", out=tmp_path / "report.html")
    assert (page.steps, page.losses) == ((12,), (losses(tmp_path / "run")[-1][1],))
    drawn = (tmp_path / "report.html").read_text()
    assert all(title in drawn for title in ("Learning rate", "Gradient norm", "Tokens a second", "waits for data"))
    paths = [line for line in said if str(tmp_path) in line]  # a path is not broken in two
    assert max(len(line) for line in said if line not in paths) <= 100


def test_a_picture_needs_no_backend_of_a_notebook_that_started_the_run() -> None:
    code = "import os; from trainer.plot import reason_for_none; print(reason_for_none(), os.environ['MPLBACKEND'])"
    machine = environment(pictures=True) | {"MPLBACKEND": "of_another_environment"}
    done = subprocess.run([sys.executable, "-c", code], env=machine, capture_output=True, text=True, check=True)
    assert done.stdout == "None of_another_environment\n"


def test_the_picture_has_its_lines_and_axes_and_a_legend_that_covers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    usual = Figure.savefig

    def seen(self: Figure, *args: Any, **options: Any) -> None:
        figures.append(self)
        usual(self, *args, **options)

    monkeypatch.setattr(Figure, "savefig", seen)
    draw_losses(entries(300), tmp_path / "loss.png", REFERENCE, 1000)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    curves, rates = figure.axes
    assert [len(axes.get_lines()) for axes in (curves, rates)] == [5, 1]
    raw, smooth, *_ = curves.get_lines()
    roughness = [sum(abs(b - a) for a, b in pairwise(line.get_ydata())) for line in (raw, smooth)]
    assert roughness[1] < roughness[0] / 3
    (tokens,) = curves.child_axes
    assert tokens.get_xlabel() == "tokens"
    assert [limit / 1000 for limit in tokens.get_xlim()] == pytest.approx(curves.get_xlim())
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axes.get_tightbbox()) for axes in (curves, rates))


@pytest.mark.parametrize("made", [[], entries(1), [{"step": 1, "loss": math.nan, "lr": 0.0}], entries(9)])
def test_a_picture_is_drawn_of_however_little_there_is(tmp_path: Path, made: list[dict[str, Any]]) -> None:
    draw_losses(made, tmp_path / "loss.png", {}, 1000)
    assert (tmp_path / "loss.png").exists()


def test_the_smoothed_line_follows_a_fall_at_the_start_and_ends_near_the_level() -> None:
    falling = [3 + 8 * math.exp(-step / 60) for step in range(2000)]
    smooth = smoothed(falling)
    assert max(abs(ours - theirs) for ours, theirs in zip(smooth, falling, strict=True)) < 1
    assert smooth[-1] == pytest.approx(3, abs=0.01)
    assert smoothed([5.0, 4.0]) == [5.0, 4.0]


def test_large_numbers_are_short() -> None:
    assert [short_count(n) for n in (0, 999.4, 999_960, 1_234_567, 1e10, 3e12)] == [
        "0",
        "999",
        "1M",
        "1.23M",
        "10B",
        "3T",
    ]


@pytest.mark.usefixtures("pictures")
def test_a_picture_that_cannot_be_drawn_is_one_warning_and_not_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(Config(data="d", out=str(tmp_path)), step=-1, reference={})
    log.write({"step": 1, "loss": 1.0, "lr": 1.0})
    (tmp_path / "loss.png").mkdir()
    log.draw()
    log.draw()
    log.close()
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("warning: loss.png was not drawn: ")


def test_a_step_that_is_too_large_for_a_cpu_is_said_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "data", train=8 * 32 * 5 + 1)
    given = {"data": str(tmp_path / "data"), "model": "nano", "n_layer": 1, "n_head": 2, "n_embd": 32, "seq_len": 32}
    given |= {"micro_batch": 4, "batch_tokens": 256, "device": "cpu", "val_every": 0, "save_every": 0, "steps": 1}
    train({**given, "out": str(tmp_path / "small")})
    assert "--model nano" not in capsys.readouterr().out
    monkeypatch.setattr("trainer.log._CPU_STEP_FLOPS", 1.0)
    train({**given, "out": str(tmp_path / "large")})
    said = capsys.readouterr().out
    assert 0 < said.index("--model nano is made for one") < said.index("step     1/1")
