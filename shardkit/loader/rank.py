"""Which rank this process is: told by torch.distributed or by torchrun's variables, never guessed."""

from __future__ import annotations

import os

import torch.distributed

from shardkit.errors import UsageError

_LAUNCHER_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def rank_of_group() -> tuple[int, int] | None:
    """This process's rank and the world size as torch.distributed knows them; None before it is initialized."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return None


def rank_of_process() -> tuple[int, int]:
    """This process's rank and the world size; 0 of 1 for a process that nobody launched.

    Lightning starts processes of its own out of one that nobody launched, and gives them other variables than torchrun
    does: on the first node their LOCAL_RANK is the rank. Raises `UsageError` where only half is set, or where a
    launcher other than torchrun started several processes.
    """
    if (found := rank_of_group()) is not None:
        return found
    if (
        "RANK" not in os.environ
        and os.environ.get("NODE_RANK") == "0"
        and {"LOCAL_RANK", "WORLD_SIZE"} <= {*os.environ}
    ):
        return int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    rank_variables = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE") if name in os.environ}
    if len(rank_variables) == 2:
        try:
            return int(rank_variables["RANK"]), int(rank_variables["WORLD_SIZE"])
        except ValueError:
            raise UsageError(f"RANK and WORLD_SIZE are not whole numbers: {rank_variables}") from None
    if rank_variables or "LOCAL_RANK" in os.environ:
        lacking = " and ".join(name for name in ("RANK", "WORLD_SIZE") if name not in rank_variables)
        raise UsageError(
            f"{lacking} not set, though other rank variables are: start with torchrun, or set both or none"
        )
    for name in _LAUNCHER_SIZES:
        if os.environ.get(name, "1") != "1":
            raise UsageError(
                f"{name} is {os.environ[name]}, but RANK and WORLD_SIZE are not set: every process would read the same "
                "batches; start with torchrun, set both, or give rank and world_size yourself"
            )
    return 0, 1
