"""Processes that help to work out a layout: what they make is what one makes, and none is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from layout_data import EOT, document_stream, write_stream

import shardkit.batches.layouts
from shardkit.batches import plan_helpers
from shardkit.batches.layouts import make_layout
from shardkit.batches.plan_helpers import helpers_of
from shardkit.batches.rows import DatasetRows, RowOptions
from shardkit.dataset.derived import home_of
from shardkit.dataset.documents import starts_key
from shardkit.dataset.folder import PLAN_FOLDER, WORK_DIR
from shardkit.locks import hold_lock

TOKENS = document_stream([int(size) for size in np.random.default_rng(0).integers(0, 90, 60)])


def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stream of billions of tokens is worked out."""
    monkeypatch.setattr(shardkit.batches.layouts, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(shardkit.batches.layouts, "_PART_BLOCKS", 2)


@pytest.mark.parametrize(("layout", "kept"), [("packed", {"packed", "starts"}), ("document", {"starts"})])
def test_a_helper_makes_what_its_parent_would(tmp_path: Path, layout: str, kept: set[str]) -> None:
    stream = write_stream(tmp_path, TOKENS, [300, 1000])
    what = json.dumps([os.getpid(), str(tmp_path), "train", layout, 16, EOT])
    subprocess.run([sys.executable, "-m", "shardkit.batches.plan_helpers", what], check=True)
    plans = tmp_path / WORK_DIR / PLAN_FOLDER
    assert {path.name.partition("-")[0] for path in plans.iterdir() if path.is_dir()} == kept
    found, alone = (make_layout(layout, stream, 16, cache=cache) for cache in (plans, None))
    assert [found.pieces(row) for row in range(found.n_rows)] == [alone.pieces(row) for row in range(alone.n_rows)]


def test_a_helper_whose_parent_has_ended_ends_too(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, TOKENS, [300])
    plans = tmp_path / WORK_DIR / PLAN_FOLDER
    home = home_of(plans, "starts", starts_key(stream, EOT))
    what = json.dumps([os.getpid() + 1, str(tmp_path), "train", "document", 16, EOT])  # not of this process
    with hold_lock(plans / f"{home.name}.lock", busy="nobody else is here"):  # for which it would wait for ever
        done = subprocess.run([sys.executable, "-m", "shardkit.batches.plan_helpers", what], check=False)
    assert done.returncode == 1


def test_a_large_layout_is_worked_out_with_helpers_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stream(tmp_path, TOKENS, [300, 1000])
    options = RowOptions(split="train", seq_len=16, shuffle=False, seed=0, layout="packed", eot_id=EOT)
    in_small_parts(monkeypatch)
    monkeypatch.setattr(plan_helpers, "_free_cores", lambda: 2)
    started: list[subprocess.Popen[bytes]] = []
    quiet_process = plan_helpers._quiet_process

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(quiet_process(command))
        return started[-1]

    monkeypatch.setattr(plan_helpers, "_quiet_process", start)
    with_help = DatasetRows(tmp_path, options)
    assert len(started) == 2
    assert not [process for process in started if process.returncode is None or psutil.pid_exists(process.pid)]
    again = DatasetRows(tmp_path, options)
    assert len(started) == 2  # what is kept needs no help
    alone = make_layout("packed", with_help.stream, 16, cache=None)
    for rows in (with_help, again):
        pieces = [rows.layout.pieces(row) for row in range(rows.layout.n_rows)]
        assert pieces == [alone.pieces(row) for row in range(alone.n_rows)]


def test_ranks_share_the_cores_that_their_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_helpers, "available_cores", lambda: 16)
    for ranks, free in (("", 15), ("1", 15), ("8", 1), ("16", 0), ("many", 15), ("0", 15)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert plan_helpers._free_cores() == free


def test_where_no_process_can_be_started_the_layout_is_made_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = write_stream(tmp_path, TOKENS, [300])

    def refuse(command: list[str]) -> subprocess.Popen[bytes]:
        raise OSError("no room")

    monkeypatch.setattr(plan_helpers, "_quiet_process", refuse)
    monkeypatch.setattr(plan_helpers, "_free_cores", lambda: 4)
    in_small_parts(monkeypatch)
    helpers = helpers_of(stream, "train", "packed", 16)
    made = make_layout("packed", stream, 16, cache=tmp_path / "plans", helpers=helpers)
    alone = make_layout("packed", stream, 16, cache=None)
    assert [made.pieces(row) for row in range(made.n_rows)] == [alone.pieces(row) for row in range(alone.n_rows)]
