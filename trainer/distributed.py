"""Which process this is, and what all ranks do together. Started by torchrun, or alone: never guessed.

A collective is called by all ranks or by none, never under a condition on the rank: the others would wait for ever.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from shardkit import ShardkitError, UsageError
from trainer.console import print_line

_T = TypeVar("_T")
_E = TypeVar("_E", bound=ShardkitError)
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_PATIENCE_SECONDS = 5.0


class RanksDiffer(ShardkitError):
    """Ranks that do not have the same data, settings or checkpoint."""


def shared(error: _E) -> _E:
    """Mark `error` as one that every rank raises alike: the command line prints it once, on rank 0."""
    vars(error)["shared"] = True
    return error


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among the others: `rank` of `size`, the `local_rank`-th of its node, computing on `device`."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0, which prints and writes. No collective may depend on it."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print on rank 0 alone."""
        if self.is_main:
            print_line(text)


def find_world(device: str) -> World:
    """Ranks from torchrun's variables, and this rank's device. Nothing is started. Raises `UsageError`."""
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if given and len(given) < len(_VARIABLES):
        lacking = ", ".join(name for name in _VARIABLES if name not in given)
        raise UsageError(f"{', '.join(given)} set, but not {lacking}: start with torchrun, or set all or none of them")
    rank, local_rank, size = (int(given.get(name, default)) for name, default in zip(_VARIABLES, "001", strict=True))
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
    name = f"cuda:{local_rank}" if device == "cuda" else device
    return World(rank=rank, local_rank=local_rank, size=size, device=torch.device(name))


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


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """The sum of a float64 CPU tensor over the ranks, on the CPU. One all-reduce; none for a single process."""
    if world.size == 1:
        return values
    values = values.to(world.device)
    dist.all_reduce(values)
    return values.cpu()


def gather(values: Tensor, world: World) -> Tensor:
    """`values` of every rank, of one shape on all, stacked on the CPU: `(world_size, ...)`."""
    if world.size == 1:
        return values.cpu()[None]
    values = values.to(world.device)
    parts = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(parts, values)
    return torch.stack(parts).cpu()


def on_all_ranks(work: Callable[[], _T], world: World) -> list[_T]:
    """What `work()` gives on each rank, in the order of ranks: small things, they are pickled among the ranks.

    A `ShardkitError` on one rank is raised on all of them, so that none waits for the one that failed.
    """
    if world.size == 1:
        return [work()]
    mine: tuple[_T | None, ShardkitError | None]
    try:
        mine = work(), None
    except ShardkitError as error:
        mine = None, error
    results: list[Any] = [None] * world.size
    dist.all_gather_object(results, mine)
    for _, problem in results:
        if problem is not None:
            raise shared(problem)
    return [result for result, _ in results]


def from_main(work: Callable[[], _T], world: World) -> _T:
    """What `work()` gives on rank 0, which alone does it, on every rank."""
    result: Any = on_all_ranks(lambda: work() if world.is_main else None, world)[0]
    return cast(_T, result)


def check_same(facts: Mapping[str, Any], world: World, *, place: str) -> None:
    """Raise `RanksDiffer` on every rank unless `facts`, by name, are equal on all; `place` says where a rank has them.

    One small collective. Ranks on different data or settings would train on quietly, or wait for each other for ever.
    """
    results = on_all_ranks(lambda: (dict(facts), f"{socket.gethostname()}:{place}"), world)
    expected, first_place = results[0]
    for rank, (actual, other_place) in enumerate(results):
        for name in expected:
            if actual[name] != expected[name]:
                raise shared(
                    RanksDiffer(
                        f"rank 0 ({first_place}) has {name} {expected[name]}, rank {rank} ({other_place}) has "
                        f"{actual[name]}: give all ranks the same data and options"
                    )
                )


def broadcast_tensors(tree: Any, world: World, *, source: int) -> Any:
    """`tree` (dicts, lists, tuples, plain values, tensors) of rank `source` on every rank; others pass None.

    Tensors go one by one, and arrive on `world.device`: beside what a rank keeps, it needs memory for one of them.
    """
    box = [_map_tensors(tree, lambda tensor: tensor.to("meta"))]  # shapes and dtypes; a meta tensor has no data
    dist.broadcast_object_list(box, src=source, device=world.device)

    def send(tensor: Tensor) -> Tensor:
        dist.broadcast(tensor.to(world.device).contiguous(), src=source)
        return tensor

    def receive(meta: Tensor) -> Tensor:
        tensor = torch.empty(meta.shape, dtype=meta.dtype, device=world.device)
        dist.broadcast(tensor, src=source)
        return tensor

    return _map_tensors(tree, send) if world.rank == source else _map_tensors(box[0], receive)


def _map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _map_tensors(value, change) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_map_tensors(value, change) for value in tree)
    return tree


def data_parallel(model: Any, world: World) -> Any:
    """`model` with its gradients averaged over the ranks during backward; as it is for a single process."""
    if world.size == 1:
        return model
    # The model's only buffer never changes, so it is not sent before each pass. torch 2.13 renamed this option.
    parameters = signature(DistributedDataParallel.__init__).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
    devices = [world.device.index] if world.device.type == "cuda" else None
    options: dict[str, Any] = {option: False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **options)


def once_a_node(world: World, name: str, work: Callable[[], None]) -> None:
    """Do `work` in one process of each node; its others wait, for hours if need be, as no collective is open.

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
    while not _is_own(mark):  # if the work fails, its traceback ends all ranks
        time.sleep(0.1)


def _is_own(mark: Path) -> bool:
    """Whether the file is there, and of this user: everybody may write where it is."""
    try:
        owner = mark.stat().st_uid
    except OSError:
        return False
    return not hasattr(os, "getuid") or owner == os.getuid()


class StopSignal:
    """Notes SIGTERM, SIGINT and SIGHUP (a terminal that is gone), so that the step at hand can be finished and saved.

    Launchers pass on what the terminal has sent already, so a second one counts only after some seconds: it ends at
    once. What is ignored, as SIGHUP under nohup, stays so.
    """

    def __init__(self) -> None:
        self.number = 0
        self._when = 0.0
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
        heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._note) for number in heeded}

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
