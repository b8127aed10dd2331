"""Which rank a process is: told, never guessed."""

from __future__ import annotations

import pytest

from shardkit.errors import UsageError
from shardkit.loader.rank import rank_of_process

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "NODE_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "SLURM_STEP_NUM_TASKS",
)


@pytest.fixture(autouse=True)
def _unlaunched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_of_process() == (0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert rank_of_process() == (0, 1)


def test_torchrun_variables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    assert rank_of_process() == (3, 8)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("RANK", "WORLD_SIZE not"), ("WORLD_SIZE", "RANK not"), ("LOCAL_RANK", "RANK and WORLD_SIZE not")],
)
def test_half_set_variables_are_refused(name: str, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(UsageError, match=f"^{lacking} set, though other rank variables are"):
        rank_of_process()


def test_variables_that_are_not_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="not whole numbers"):
        rank_of_process()


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_another_launcher_without_ranks_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "4")
    with pytest.raises(UsageError, match=f"{name} is 4.*every process would read the same"):
        rank_of_process()


def test_what_lightning_gives_the_processes_that_it_starts_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NODE_RANK", "0"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert rank_of_process() == (1, 2)
    monkeypatch.setenv("NODE_RANK", "1")  # how many processes the first node has is not said
    with pytest.raises(UsageError, match="^RANK not set"):
        rank_of_process()
