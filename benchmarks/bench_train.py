"""Training speed: the trainer beside a plain loop in the style of build-nanogpt, same model, precision and data.

    python -m benchmarks.bench_train --data FOLDER_OF_SHARDS [--model gpt2-124m] [--micro-batch 64] [--steps 20]

Both run in this process in turns: the plain loop (`F.cross_entropy` of whole logits, a loader
that expands each shard to int64 and reads it in order), then the trainer's own step (`trainer.run.Run`, logging and
all). Tokens a second are of the median step after the warm-up. On cuda: MFU, peak memory and data wait too. The ratio
is what carries over to another machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import make_config
from trainer.distributed import StopSignal, autocast, choose_precision, find_world, start
from trainer.log import read_log
from trainer.optim import learning_rate
from trainer.run import Run
from trainer.train import open_data

WARMUP_STEPS = 3


class PlainLoader:
    """What build-nanogpt's DataLoaderLite does: a shard at a time as int64 in memory, in order, one rank."""

    def __init__(self, folder: Path, batch_size: int, seq_len: int) -> None:
        self.batch_size, self.seq_len = batch_size, seq_len
        self.shards = sorted(folder.glob("*train*.npy"))
        self.shard = -1
        self._next_shard()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets, int64 `(batch_size, seq_len)`."""
        size = self.batch_size * self.seq_len
        run = self.tokens[self.place : self.place + size + 1]
        self.place += size
        if self.place + size + 1 > len(self.tokens):
            self._next_shard()
        return run[:-1].view(self.batch_size, -1), run[1:].view(self.batch_size, -1)

    def _next_shard(self) -> None:
        self.shard = (self.shard + 1) % len(self.shards)
        self.tokens = torch.tensor(np.load(self.shards[self.shard]).astype(np.int32), dtype=torch.long)
        self.place = 0


class PlainModel(nn.Module):
    """The trainer's blocks, with the plain loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over logits that exist all at once."""
        logits = F.linear(self.model.hidden(ids), self.model.head)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def plain_steps(run: Run, folder: Path, steps: int) -> list[float]:
    """Seconds of each step of the plain loop, on the model of `run`."""
    config, device = run.config, run.world.device
    loader = PlainLoader(folder, config.micro_batch, config.seq_len)
    model: Any = PlainModel(run.learner.model)
    if run.learner.compiled:
        model = torch.compile(model)
    decayed = [p for p in run.learner.model.parameters() if p.dim() > 1]
    others = [p for p in run.learner.model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), eps=1e-8, fused=device.type != "mps")
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for _ in range(run.micro_steps):
            inputs, targets = (tensor.to(device) for tensor in loader.next_batch())
            with autocast(device, run.learner.dtype):
                loss = model(inputs, targets) / run.micro_steps
            total += loss.detach()
            loss.backward()
        nn.utils.clip_grad_norm_(run.learner.model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        if not math.isfinite(total.item()):
            raise RuntimeError("the plain loop's loss is not finite")
        seconds.append(time.perf_counter() - began)
    return seconds


def trainer_steps(run: Run, steps: int) -> list[float]:
    """Seconds of each step of the trainer, with its printing and logging."""
    stop, seconds = StopSignal(), []
    for _ in range(steps):
        began = time.perf_counter()
        run._train_step(stop)
        seconds.append(time.perf_counter() - began)
    stop.restore()
    return seconds


def measure(data: Path, given: dict[str, Any], *, steps: int, rounds: int) -> dict[str, Any]:
    """Both contestants, interleaved; tokens a second, the ratio, and what the GPU says."""
    speeds: dict[str, list[float]] = {"plain": [], "trainer": []}
    memory: dict[str, float] = {}
    log: list[dict[str, Any]] = []
    world = find_world(given.get("device", "auto"))
    start(world)
    for _ in range(rounds):
        for name in speeds:
            with tempfile.TemporaryDirectory() as out:
                total = steps + WARMUP_STEPS
                config = make_config({**given, "data": str(data), "out": out, "steps": total, "val_every": 0})
                manifest = open_data(config, world)
                run = Run(config, world, manifest, None)
                if world.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                timed: Callable[[], list[float]] = {
                    "plain": lambda: plain_steps(run, data, total),  # noqa: B023 (called at once)
                    "trainer": lambda: trainer_steps(run, total),  # noqa: B023
                }[name]
                seconds = timed()[WARMUP_STEPS:]
                speeds[name].append(config.batch_tokens / statistics.median(seconds))
                if world.device.type == "cuda":
                    memory[name] = torch.cuda.max_memory_allocated() / 1e9
                if name == "trainer":
                    log = read_log(Path(out) / "log.jsonl")[WARMUP_STEPS:]
                run.abandon()
    plain, ours = (statistics.median(speeds[name]) for name in ("plain", "trainer"))
    return {
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "precision": str(choose_precision(given.get("precision", "auto"), world.device)),
        "torch": torch.__version__,
        "plain_tokens_per_second": plain,
        "trainer_tokens_per_second": ours,
        "ratio": ours / plain,
        "mfu": statistics.median([e["mfu"] or 0.0 for e in log]) or None,
        "data_wait": statistics.median([e["data_wait"] for e in log]),
        "peak_memory_gb": memory or None,
    }


def main() -> None:
    """Parse, measure, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    for name in ("--batch-tokens", "--micro-batch", "--seq-len", "--n-layer", "--n-head", "--n-embd"):
        parser.add_argument(name, type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", default="auto")
    options = vars(parser.parse_args())
    data, steps, rounds = options.pop("data"), options.pop("steps"), options.pop("rounds")
    given = {key: value for key, value in options.items() if value is not None}
    print(json.dumps(measure(data, given, steps=steps, rounds=rounds)))


if __name__ == "__main__":
    main()
