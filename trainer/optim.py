"""The model in training: forward and backward passes over a step's batches, the update that follows, and the
learning-rate schedule."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from shardkit import UsageError
from trainer.checkpoint_parts import CheckpointError, State, is_tensor
from trainer.config import Config
from trainer.distributed import World, autocast, choose_precision, data_parallel
from trainer.model import IGNORED, Model, ModelConfig

_MOMENTS = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}  # of each parameter


def make_optimizers(model: Model, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices alone. With `muon` it gets the blocks' matrices, at AdamW's learning rate.

    AdamW keeps two float32 numbers a parameter, Muon one.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise UsageError(f"--optimizer muon: torch {torch.__version__} has none, 2.9 does")
        inner = [p for p in model.transformer["h"].parameters() if p.dim() > 1] if model.config.n_layer else []
        if inner:
            muon = torch.optim.Muon(
                inner, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            optimizers.append(muon)
        inner_ids = {id(p) for p in inner}
        matrices = [p for p in matrices if id(p) not in inner_ids]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused))
    return optimizers


def learning_rate(step: int, config: Config) -> float:
    """The rate of update `step`, from 0: a line up to `lr`, then half a cosine down to `min_lr * lr`."""
    steps, warmup = config.steps or 1, config.warmup_steps or 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


class Learner:
    """Weights, optimizers and gradient scaler of one rank, on its device; the same weights on every rank.

    `model` is eager, for validation and samples; `trained` has the same weights, compiled and data-parallel. On the
    device: 16 bytes a parameter with AdamW (weight, gradient, two moments), and the activations.
    """

    def __init__(self, config: Config, vocab_size: int, world: World, state: State | None = None) -> None:
        self.world = world
        self.grad_clip = config.grad_clip
        self.dtype = choose_precision(config.precision, world.device)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(config.seed)  # the same weights on every rank
        sizes = ModelConfig(
            vocab_size=vocab_size,
            n_layer=config.n_layer or 0,
            n_head=config.n_head or 0,
            n_embd=config.n_embd or 0,
            n_positions=config.seq_len,
        )
        if state:
            _check_sizes(state, sizes)
        self.model = Model(sizes).to(world.device)
        if state:
            self.model.load_state_dict(state["model"])
        self.compiled = config.compile == "on" or (config.compile == "auto" and world.device.type == "cuda")
        self.model.chunked_loss = not self.compiled
        compiled: Any = torch.compile(self.model) if self.compiled else self.model
        self.trained = data_parallel(compiled, world)
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(config.seed + 1 + world.rank)
        if state:
            self._restore(state)

    def accumulate(self, next_batch: Callable[[], tuple[Any, ...]], micro_steps: int) -> tuple[Tensor, Tensor]:
        """Take `micro_steps` batches and leave their gradient in `.grad`; this rank's loss, and the targets it is of.

        Both loss and gradient are sums over targets that count, divided by all that there are.
        """
        total = torch.zeros((), device=self.world.device)
        counted = torch.zeros((), device=self.world.device, dtype=torch.int64)
        for number in range(micro_steps):
            inputs, targets, *documents = next_batch()  # int64, each (micro_batch, seq_len)
            positions = documents[0].position_ids if documents else None
            with self._exchange(last=number == micro_steps - 1):
                with autocast(self.world.device, self.dtype):
                    loss = self.trained(inputs, targets, positions) / micro_steps
                self.scaler.scale(loss).backward()
            total += loss.detach()
            counted += (targets != IGNORED).sum()
        return total, counted

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are averaged over the ranks in the last micro-step alone: one exchange a step."""
        if self.world.size > 1 and not last:
            context: AbstractContextManager[Any] = self.trained.no_sync()
            return context
        return nullcontext()

    def update(self, rate: float) -> Tensor:
        """Clip the gradients and apply them at learning rate `rate`; their norm before clipping, a scalar."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip or math.inf)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> State:
        """Its part of a checkpoint: 12 bytes a parameter with AdamW. The random state, one a rank, is not in it."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "model_config": json.dumps(asdict(self.model.config)),
        }

    def _restore(self, state: State) -> None:
        """Optimizers, scaler and random state; a rank beyond those that wrote the checkpoint keeps its fresh one."""
        rank, on_cuda = self.world.rank, self.world.device.type == "cuda"
        if len(state["optimizers"]) != len(self.optimizers):
            raise CheckpointError(
                f"the checkpoint has {len(state['optimizers'])} optimizers, not {len(self.optimizers)}"
            )
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # On the CPU an optimizer would go on in the file's mapped pages, and the file will be deleted one day.
            moments = moments_for(optimizer, saved)
            settings = optimizer.state_dict()["param_groups"]  # the run's: the config says them
            optimizer.load_state_dict({"state": moments if on_cuda else deepcopy(moments), "param_groups": settings})
        fresh, saved = self.scaler.state_dict(), state["scaler"]
        self.scaler.load_state_dict({name: saved.get(name, value) for name, value in fresh.items()})
        try:
            if rank < len(state["rng"]):
                torch.set_rng_state(state["rng"][rank].cpu().clone())  # torch misreads a row of a matrix
            if on_cuda and rank < len(state["cuda_rng"]):
                torch.cuda.set_rng_state(state["cuda_rng"][rank].cpu().clone())
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's random state is none ({error}): resume from an older one"
            ) from error


def _check_sizes(state: State, sizes: ModelConfig) -> None:
    theirs, ours = json.loads(state["model_config"]), asdict(sizes)
    other = ", ".join(f"{name} {theirs[name]:,} (here {ours[name]:,})" for name in ours if theirs[name] != ours[name])
    if other:
        raise CheckpointError(
            f"the checkpoint's model has {other}: go on with --data of its vocabulary ({state['tokenizer']!a:.80}), or "
            "begin a run in another --out"
        )


def moments_for(optimizer: torch.optim.Optimizer, saved: State) -> State:
    """The moments in an optimizer's `saved` state, by number of the parameter, as `optimizer` can go on from them.

    There are none for a run whose gradients a scaler has all skipped. Raises `CheckpointError`.
    """
    kind = type(optimizer).__name__
    groups, parameters = (
        optimizer.state_dict()["param_groups"],
        [p for g in optimizer.param_groups for p in g["params"]],
    )
    moments: Any = saved.get("state")
    try:
        numbers = [group["params"] for group in saved["param_groups"]]
    except (KeyError, TypeError):
        numbers = []
    if numbers != [group["params"] for group in groups] or not isinstance(moments, dict):
        raise CheckpointError(f"the checkpoint's {kind} is of other parameters than the run's")
    if moments and {*moments} != {*range(len(parameters))}:
        raise CheckpointError(f"the checkpoint's {kind} has {len(moments)} of {len(parameters)} parameters")
    for number, parts in moments.items():
        shape = parameters[number].shape
        shapes = {name: torch.Size() if name == "step" else shape for name in _MOMENTS[kind]}
        if not isinstance(parts, dict) or not all(is_tensor(part) for part in parts.values()):
            raise CheckpointError(f"the checkpoint's {kind} has no tensors for parameter {number}")
        if {name: part.shape for name, part in parts.items() if part.is_floating_point()} != shapes:
            raise CheckpointError(f"the checkpoint's {kind} has other shapes than parameter {number}, {tuple(shape)}")
    return moments
