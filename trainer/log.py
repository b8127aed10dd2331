"""What a run leaves to look at: `log.jsonl`, `loss.png`, and TensorBoard or W&B if asked for. Rank 0 alone has one."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shardkit import UsageError
from trainer.checkpoint import write_atomically
from trainer.config import Config


class RunLog:
    """Appends to `log.jsonl`, a line an entry, whole after a kill. Lines after `step`, of a lost part, are dropped.

    An entry has `step`; but one with `after_step`, at the start and at each resume, says which data the steps after
    that one were given: `source`, `folder`, `micro_batch`, `world_size`, `micro_steps`, `eot_id`, and `loader`, its
    state.
    """

    def __init__(self, config: Config, *, step: int, reference: dict[str, float]) -> None:
        self.path = Path(config.out) / "log.jsonl"
        self._reference = reference
        self._closers: list[Any] = []
        self._board = _open_board(config, self._closers)
        kept = [line for line in _read_lines(self.path) if line.get("step", line.get("after_step", math.inf)) <= step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry; floats keep their full precision."""
        self._file.write(json.dumps(entry) + "\n")
        for key, value in entry.items():
            if self._board is not None and "step" in entry and isinstance(value, int | float):
                self._board(key, value, entry["step"])

    def draw(self) -> None:
        """Make `loss.png` anew, if matplotlib is there."""
        if find_spec("matplotlib") is not None:
            draw_losses(read_log(self.path), self.path.with_name("loss.png"), self._reference)

    def close(self) -> None:
        """Close the file and whatever else is fed."""
        self._file.close()
        for close in self._closers:
            close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps' entries in a `log.jsonl`; a last line that a kill cut short is passed over. None there: none."""
    return [entry for entry in _read_lines(path) if "step" in entry]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in entries if isinstance(entry, dict)]


def draw_losses(entries: list[dict[str, Any]], path: Path, reference: dict[str, float]) -> None:
    """Draw training and validation loss over steps, and a dashed line for each `reference`, into `path`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    train = [(e["step"], e["loss"]) for e in entries if "loss" in e and math.isfinite(e["loss"])]
    val = [(e["step"], e["val_loss"]) for e in entries if "val_loss" in e]
    if train:
        axes.plot(
            *zip(*train, strict=True), color="tab:blue", linewidth=1, alpha=0.8, label=f"train ({train[-1][1]:.3f})"
        )
    if val:
        axes.plot(
            *zip(*val, strict=True), color="tab:orange", marker="o", markersize=3, label=f"val ({val[-1][1]:.3f})"
        )
    for (name, level), color in zip(reference.items(), ("tab:green", "tab:gray"), strict=False):
        axes.axhline(level, color=color, linestyle="--", linewidth=1, label=f"{name} ({level:.3f})")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    temp = path.with_name(f".{path.name}")
    figure.savefig(temp, format="png")
    temp.replace(path)


def _open_board(config: Config, closers: list[Any]) -> Any:
    """A function `(name, value, step)` that feeds what was asked for; None for nothing. Adds to `closers`."""
    sinks: list[Any] = []
    if config.tensorboard:
        if find_spec("tensorboard") is None:
            raise UsageError("--tensorboard: `pip install tensorboard` first")
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter(str(Path(config.out) / "tensorboard"))
        sinks.append(writer.add_scalar)
        closers.append(writer.close)
    if config.wandb:
        if find_spec("wandb") is None:
            raise UsageError("--wandb: `pip install wandb` first")
        import wandb

        run = wandb.init(project=config.wandb, dir=config.out, resume="allow", id=Path(config.out).name)
        sinks.append(lambda name, value, step: run.log({name: value}, step=step))
        closers.append(run.finish)
    return (lambda name, value, step: [sink(name, value, step) for sink in sinks]) if sinks else None
