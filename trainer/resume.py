"""Which checkpoint a run goes on from, and how every rank comes by it. Nodes need not share a file system.

Each rank looks on its own disk. Ranks that hold a whole checkpoint must hold the same one, by step and content. Where
all hold it, each maps its own file. Where some do not (a node that is new, or whose disk is not the one that rank 0
wrote to), one that does sends it to all, tensor by tensor. Where none holds one, `--resume auto` looks at the place
that the command pushes to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shardkit import UsageError, public_address
from trainer.checkpoint import (
    checkpoint_folder,
    content_hash,
    download_newest,
    is_remote,
    list_checkpoints,
    map_checkpoint,
    newest_checkpoint,
    verify_checkpoint,
)
from trainer.checkpoint_parts import CheckpointError, NoCheckpoint, State
from trainer.distributed import RanksDiffer, World, broadcast_tensors, from_main, on_all_ranks, shared
from trainer.run_folder import refuse_dataset


class HeldCheckpoint(NamedTuple):
    """A whole checkpoint on the disk of one rank."""

    path: Path
    step: int
    content: str


def find_state(settings: Mapping[str, Any], world: World) -> State | None:
    """The state to go on from, by `--resume`, the same on every rank; None for a fresh run.

    Its tensors are memory-mapped from this rank's file, or on `world.device` where another rank sent them. Raises
    `UsageError` where a fresh run would hide an old one, `CheckpointError` where there is nothing to resume,
    `RanksDiffer` where ranks hold different checkpoints: each on all ranks.
    """
    if not settings.get("out"):
        return None
    run, resume, place = Path(str(settings["out"])), settings.get("resume"), settings.get("push_checkpoints")
    if resume is None:
        on_all_ranks(lambda: _refuse_used(run), world)
        return None
    if resume != "auto":
        resume = from_main(lambda: _local_name(str(resume), run), world)
    held = on_all_ranks(lambda: _held_checkpoint(resume, run, world), world)
    if resume == "auto" and not any(held):
        on_all_ranks(lambda: refuse_dataset(run), world)
        if place and from_main(lambda: _fetched(str(place), run), world):
            held = on_all_ranks(lambda: _held_checkpoint(resume, run, world), world)
    holders = [rank for rank, checkpoint in enumerate(held) if checkpoint is not None]
    if not holders:
        if resume == "auto":
            where = f"{run}, nor at {public_address(str(place))}" if place else str(run)
            world.say(f"nothing to resume in {where}: starting anew")
            return None
        raise shared(CheckpointError(f"--resume {resume}: there is no checkpoint, and no checkpoints/step_*.pt"))
    _check_one_checkpoint(held)
    mine = held[world.rank]
    if len(holders) == world.size and mine is not None:
        return map_checkpoint(mine.path)
    source = holders[0]
    world.say(f"rank {source} sends its checkpoint to all: {world.size - len(holders)} of {world.size} ranks have none")
    state = map_checkpoint(mine.path) if world.rank == source and mine is not None else None
    received: State = broadcast_tensors(state, world, source=source)
    return received


def _refuse_used(run: Path) -> None:
    refuse_dataset(run)
    if list_checkpoints(run / "checkpoints"):
        raise UsageError(f"{run} holds a run already: go on with --resume auto, or give another --out")


def _local_name(resume: str, run: Path) -> str:
    """`resume` itself, or the file that the newest checkpoint of a remote was downloaded to."""
    return str(download_newest(resume, run / "checkpoints")) if is_remote(resume) else resume


def _fetched(place: str, run: Path) -> bool:
    """Download the newest checkpoint of `place` into the run's folder; whether there is one. A place that does not
    answer is an error: to start anew would overwrite what is there."""
    try:
        download_newest(place, run / "checkpoints")
    except NoCheckpoint:
        return False
    return True


def _held_checkpoint(resume: str, run: Path, world: World) -> HeldCheckpoint | None:
    """What this rank's disk has of `resume`: `auto`, a checkpoint, or a run. Reads all of it, to know it is whole."""
    path: Path | None
    if resume != "auto" and Path(resume).is_file():
        path = Path(resume)
        verify_checkpoint(path)
    else:
        folder = run / "checkpoints" if resume == "auto" else checkpoint_folder(Path(resume))
        path = newest_checkpoint(folder, world.say)
    if path is None:
        return None
    return HeldCheckpoint(path.absolute(), map_checkpoint(path)["step"], content_hash(path))


def _check_one_checkpoint(held: list[HeldCheckpoint | None]) -> None:
    """Raise `RanksDiffer` unless all that is held is of one step and content: to guess could lose steps, or a run."""
    (first, ours), *others = [(rank, checkpoint) for rank, checkpoint in enumerate(held) if checkpoint is not None]
    for rank, theirs in others:
        if (theirs.step, theirs.content) != (ours.step, ours.content):
            raise shared(
                RanksDiffer(
                    f"rank {first} would resume {ours.path} (step {ours.step:,}, content {ours.content[:16]}), rank "
                    f"{rank} {theirs.path} (step {theirs.step:,}, content {theirs.content[:16]}): delete the one that "
                    "is not wanted, or copy the other there"
                )
            )
