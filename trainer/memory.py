"""Out of memory: which micro-batch would fit, found by trying on the device as the failed step has left it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from functools import partial

import torch

from shardkit import ShardkitError
from trainer.config import Config
from trainer.distributed import autocast
from trainer.evaluate import GROUP_WINDOWS
from trainer.optim import Learner

_CPU_WORDS = ("can't allocate memory", "not enough memory")  # of torch's allocator for the CPU, which has no class


class OutOfMemory(ShardkitError):
    """A model, or a micro-batch, that is larger than the memory of its device."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS)


def explain(error: BaseException, learner: Learner | None, config: Config, world_size: int) -> OutOfMemory:
    """The one line for `error`, which ended a step of `learner`, or the making of it (None). Frees what that held."""
    traceback.clear_frames(error.__traceback__)  # activations are their locals
    error.__traceback__ = None
    head = f"out of memory with --micro-batch {config.micro_batch} and --seq-len {config.seq_len:,}"
    if learner is None:
        return OutOfMemory(f"{head}: the model and its optimizer do not fit, use a smaller --model")
    if config.val_every and not _fits(learner, partial(_validation, learner, config.seq_len)):
        return OutOfMemory(
            f"{head}: a validation, which reads {GROUP_WINDOWS} windows at once, does not fit: give --val-every 0, or "
            "a smaller --model or --seq-len"
        )
    for count in _halving(config.micro_batches(world_size)):
        if _fits(learner, partial(_training, learner, config, count)):
            return OutOfMemory(
                f"{head}: --micro-batch {count} would fit, and changes no result but by rounding; --resume auto goes "
                "on from the last checkpoint"
            )
    return OutOfMemory(f"{head}: not even one window fits, use a smaller --seq-len or --model")


def _halving(counts: list[int]) -> list[int]:
    """Of the divisors `counts`, ascending, those worth a try: below the last, from the largest on, each at most half of
    the one before, and the first: few tries, and little is given away."""
    chosen = [counts[-1]]
    for count in reversed(counts[:-1]):
        if count <= chosen[-1] / 2 or count == counts[0]:
            chosen.append(count)
    return chosen[1:]


def _fits(learner: Learner, action: Callable[[], None]) -> bool:
    """Whether `action` passes beside weights and all that the optimizers hold in the end."""
    learner.model.zero_grad(set_to_none=True)
    _free(learner)
    moments: list[torch.Tensor] = []
    try:
        if not any(optimizer.state for optimizer in learner.optimizers):  # they come with the first update
            moments += [torch.empty_like(p) for p in learner.model.parameters() for _ in range(2)]
        action()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return False
    finally:
        moments.clear()
        _free(learner)
    return True


def _free(learner: Learner) -> None:
    gc.collect()
    if learner.world.device.type == "cuda":
        torch.cuda.empty_cache()


def _training(learner: Learner, config: Config, count: int) -> None:
    """Two micro-steps of `count` windows, the second beside the first one's gradients.

    By the eager model, which needs as much as a compiled one, or more. Gradients are asked for, not left in `.grad`:
    there, data parallelism would wait for the other ranks.
    """
    ids = torch.zeros(count, config.seq_len, dtype=torch.int64, device=learner.world.device)
    positions = (
        torch.zeros_like(ids) + torch.arange(config.seq_len, device=ids.device) if config.document_mask else None
    )
    gradients: list[tuple[torch.Tensor, ...]] = []
    for _ in range(2):
        with autocast(ids.device, learner.dtype):
            loss = learner.model(ids, ids, positions)
        gradients = [*gradients[:1], torch.autograd.grad(loss, list(learner.model.parameters()))]


@torch.no_grad()
def _validation(learner: Learner, seq_len: int) -> None:
    ids = torch.zeros(GROUP_WINDOWS, seq_len, dtype=torch.int64, device=learner.world.device)
    with autocast(ids.device, learner.dtype):
        learner.model.token_losses(ids, ids)
