"""Which process this is, and what all ranks do together. Started by torchrun, or alone: never guessed.

Rule of the house: a collective stands where every rank comes by, never under a condition on the rank.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from shardkit import UsageError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among the others: `rank` of `size`, the `local_rank`-th of its node, computing on `device`."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0, which prints and writes. No collective may hang on it."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print on rank 0 alone."""
        if self.is_main:
            print(text, flush=True)


def find_world(device: str) -> World:
    """Ranks from torchrun's variables, and this rank's device. Nothing is started. Raises `UsageError`."""
    found = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if found and len(found) < len(_VARIABLES):
        lacking = ", ".join(name for name in _VARIABLES if name not in found)
        raise UsageError(f"{', '.join(found)} set, but not {lacking}: start with torchrun, or set all or none of them")
    rank, local_rank, size = (int(found.get(name, default)) for name, default in zip(_VARIABLES, "001", strict=True))
    mps = torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if mps and size == 1 else "cpu"
    if device not in ("cuda", "mps", "cpu"):
        raise UsageError(f"--device is {device!r}: expected cuda, mps or cpu")
    if device == "mps" and (size > 1 or not mps):
        raise UsageError("--device mps: torch sees none here, or several ranks were started for the one; use cpu")
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        advice = f"--nproc_per_node={seen}" if seen else "--device cpu"
        raise UsageError(f"rank {rank} is process {local_rank} of its node, but torch sees {seen} GPUs: use {advice}")
    return World(
        rank=rank,
        local_rank=local_rank,
        size=size,
        device=torch.device(f"cuda:{local_rank}" if device == "cuda" else device),
    )


def start(world: World) -> None:
    """Join the other ranks. A rank that hangs in a collective for half an hour ends the run."""
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(world.device)
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    if world.size > 1:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=timedelta(minutes=30), device_id=world.device if on_gpu else None
        )


def choose_precision(asked: str, device: torch.device) -> torch.dtype:
    """The type of matrix products: bf16 where the GPU has it, else fp16, else fp32. Raises `UsageError`."""
    major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    if asked == "auto":
        asked = "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if asked == "bf16" and device.type == "cuda" and major < 8:
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bf16: use --precision fp16 or fp32")
    if asked == "fp16" and device.type != "cuda":
        raise UsageError(f"--precision fp16 needs a cuda device, not {device.type}: use fp32")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[asked]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context for a forward pass in `dtype`; for fp32 it does nothing."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else None, enabled=enabled)


def finish() -> None:
    """Leave the group, if there is one, when all ranks are done with it."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """`values` of every rank, of one shape on all, stacked: `(world_size, ...)`."""
    if not dist.is_initialized():
        return values[None]
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


def from_main(make: Callable[[], Any], world: World) -> Any:
    """What `make` gives on rank 0, on every rank: RUN need not be on a disk that all nodes share."""
    box = [make() if world.is_main else None]
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def once_a_node(world: World, name: str, work: Callable[[], None]) -> None:
    """Do `work` in one process of each node, while its others wait for as long as it takes: no collective is open.

    They wait for a file that is named by the launcher's process and start, so none is left over from another launch.
    """
    if world.size == 1:
        work()
        return
    launcher = psutil.Process(os.getppid())
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    mark = Path(tempfile.gettempdir()) / f"trainer-{name}-{launcher.pid}-{launcher.create_time():.2f}-{attempt}"
    if world.local_rank == 0:
        work()
        mark.touch()
        return
    while not mark.exists():  # if the work fails, its traceback ends all ranks
        time.sleep(0.1)


class StopSignal:
    """Notes SIGTERM and SIGINT, so that the step at hand can be finished and saved.

    Launchers pass on what the terminal has sent already, so a second one counts only after some seconds: it ends at
    once.
    """

    def __init__(self) -> None:
        self.number = 0
        self._when = 0.0
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._when = number, time.monotonic()
        elif time.monotonic() - self._when > _PATIENCE_SECONDS:
            self.restore()
            os.kill(os.getpid(), number)

    def __enter__(self) -> StopSignal:
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
