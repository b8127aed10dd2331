"""What a run shows: its printed lines, `log.jsonl`, `loss.png`, and TensorBoard or W&B if asked for. Rank 0 alone."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shardkit import UsageError, machine_fault
from trainer.attention import mask_kind
from trainer.checkpoint import write_atomically
from trainer.config import Config
from trainer.console import print_line
from trainer.distributed import World
from trainer.places import one_line
from trainer.plot import draw_losses, reason_for_none, short_count

if TYPE_CHECKING:
    from trainer.run import Run

_CPU_STEP_FLOPS = 5e13  # of a rank: minutes on any CPU
# Dense bf16 (fp16) FLOP/s of a GPU, by a part of its name, for MFU. The first part that fits counts.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


_COLUMNS = 100  # of a printed line
_INDENT = " " * 10


class RunLog:
    """Appends to `log.jsonl`, a line an entry, whole after a kill. Lines after `step`, of a lost part, are dropped.

    An entry has `step`; but one with `after_step`, at the start and at each resume, says which data the steps after
    that one were given: `source`, `folder`, `micro_batch`, `world_size`, `micro_steps`, `eot_id`, and `loader`, its
    state.
    """

    def __init__(self, config: Config, *, step: int, reference: dict[str, float]) -> None:
        self.path = Path(config.out) / "log.jsonl"
        self._reference = reference
        self._batch_tokens = config.batch_tokens
        self.no_picture = reason_for_none()
        self._picture = _Guard("loss.png", "was not drawn")
        self._boards = _open_boards(config)
        kept = [line for line in _read_lines(self.path) if line.get("step", line.get("after_step", math.inf)) <= step]
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed by close)

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry; floats keep their full precision."""
        self._file.write(json.dumps(entry) + "\n")
        if "step" in entry:
            numbers = {key: value for key, value in entry.items() if isinstance(value, int | float)}
            for board in self._boards:
                board.run(partial(board.add, numbers, entry["step"]))

    def draw(self) -> None:
        """Make `loss.png` anew, where that can be done (else `no_picture` says why not)."""
        if self.no_picture is None:
            path = self.path.with_name("loss.png")
            self._picture.run(lambda: draw_losses(read_log(self.path), path, self._reference, self._batch_tokens))

    def close(self) -> None:
        """Close the file and whatever else is fed."""
        self._file.close()
        for board in self._boards:
            board.run(board.close)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps' entries in a `log.jsonl`; a last line that a kill cut short is passed over. None there: none."""
    return [entry for entry in _read_lines(path) if "step" in entry]


def data_folder(run: Path) -> Path | None:
    """The folder that the run in the folder `run` read last, as its log says; None where nothing says it."""
    folders = [entry["folder"] for entry in _read_lines(run / "log.jsonl") if isinstance(entry.get("folder"), str)]
    return Path(folders[-1]) if folders else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return [entry for entry in entries if isinstance(entry, dict)]


def header(run: Run, reference: dict[str, float]) -> Iterator[str]:
    """The lines that a run begins with: all that decides its speed, its memory and its losses, in 100 columns."""
    for line in _header(run, reference):
        yield from textwrap.wrap(
            line, _COLUMNS, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
        )


def _header(run: Run, reference: dict[str, float]) -> Iterator[str]:
    config, learner, world, loader = run.config, run.learner, run.world, run.loader
    model, sizes, manifest = learner.model, learner.model.config, run.loader.manifest
    kind = f"{sizes.n_layer} layers, {sizes.n_head} heads, width {sizes.n_embd}" if sizes.n_layer else "a table"
    yield f"model     {config.model}: {kind}, vocabulary {sizes.vocab_size:,}, {model.parameter_count:,} parameters"
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    scaler = " with a gradient scaler" if learner.scaler.is_enabled() else ""
    yield (
        f"devices   {world.size} x {device}, {str(learner.dtype).removeprefix('torch.')}{scaler}, torch.compile "
        f"{'on' if learner.compiled else 'off'}, {config.optimizer}"
    )
    train_tokens = sum(shard.tokens for shard in manifest.splits["train"])
    yield (
        f"data      {manifest.directory}: {train_tokens:,} train tokens, {loader.windows_per_epoch:,} windows of "
        f"{config.seq_len:,}, tokenizer {run.tokenizer_info.name}, fingerprint {manifest.fingerprint[:16]}"
    )
    yield (
        f"step      {config.batch_tokens:,} tokens: {world.size} ranks x {run.micro_steps} micro-steps x "
        f"{config.micro_batch} windows x {config.seq_len:,}"
    )
    mask = f", document mask ({mask_kind(world.device)})" if config.document_mask else ""
    yield f"layout    {loader.stats()}{mask}"
    epochs = run.steps / run.steps_per_epoch
    yield f"epoch     {run.steps_per_epoch:,.2f} steps; the run has {run.steps:,}: {epochs:.2f} epochs"
    if run.val:
        yield f"val       {run.val.windows * run.val.seq_len:,} tokens, the first of the val split"
    levels = ", ".join(f"{name} {level:.4f}" for name, level in reversed(reference.items()))
    yield f"losses    {levels} nats"
    yield "config    " + ", ".join(config.to_toml().splitlines())
    flops = model.flops_per_token(config.seq_len) * config.batch_tokens
    if world.device.type == "cpu" and flops > _CPU_STEP_FLOPS * world.size:
        yield "note: a step of this size takes a CPU many minutes or hours: --model nano is made for one"
    if run.log.no_picture:
        yield f"note: no loss.png: {run.log.no_picture}"
    if run.step:
        yield f"resumed   after step {run.step:,}"


def step_entry(run: Run, rate: float, norm: float, seconds: float, waited: float) -> dict[str, Any]:
    """The log's entry for the step that `run` has just done in `seconds`, of which it `waited` for data."""
    speed = run.config.batch_tokens / seconds
    flops, peak = run.learner.model.flops_per_token(run.config.seq_len), peak_flops(run.world)
    return {
        "step": run.step,
        "loss": run.loss,
        "lr": rate,
        "grad_norm": norm,
        "ms": seconds * 1e3,
        "tokens_per_second": speed,
        "mfu": speed * flops / peak if peak and flops else None,
        "data_wait": waited / seconds,
        "epoch": run.loader.epoch,
    }


def step_line(entry: Mapping[str, Any], steps: int, mean_seconds: float) -> str:
    """The line printed for a step's `entry`, of 100 columns at most; `mean_seconds` a step so far gives the time to the
    end, and `wait` is the share of the step that waited for data. `log.jsonl` has every figure of every step."""
    mfu = f"  MFU {entry['mfu']:.0%}" if entry["mfu"] else ""
    return (
        f"step {entry['step']:>5}/{steps}  loss {entry['loss']:.4f}  lr {entry['lr']:.1e}  "
        f"norm {entry['grad_norm']:.2f}  {short_count(entry['tokens_per_second'])} tok/s{mfu}  "
        f"wait {entry['data_wait']:.0%}  ETA {_duration((steps - entry['step']) * mean_seconds)}"
    )


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 60:
        return f"{minutes}m{int(seconds % 60):02d}s"
    return f"{hours}h{minutes % 60:02d}m" if hours < 100 else f"{hours // 24}d"


def peak_flops(world: World) -> float:
    """What all ranks' GPUs could do in a second; 0 for a device that is not in the table."""
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), 0.0) * world.size


class _Guard:
    """Runs what training does not need. What that raises is a warning, the first time of several."""

    def __init__(self, name: str, failure: str) -> None:
        self._failure = f"{name} {failure}"
        self._fails = False

    def run(self, action: Callable[[], None]) -> None:
        """Run `action`; its network and its disk do not end the training."""
        try:
            action()
            self._fails = False
        except Exception as error:  # noqa: BLE001 (of any client; it is tried again at the next entry)
            if not self._fails:
                print_line(f"warning: {self._failure}: {one_line(error)}")
            self._fails = True


class _Board(_Guard):
    """TensorBoard or W&B, fed by `add(numbers, step)`."""

    def __init__(self, name: str, add: Callable[[Mapping[str, float], int], None], close: Callable[[], None]) -> None:
        super().__init__(name, "did not get an entry")
        self.add, self.close = add, close


def _open_boards(config: Config) -> list[_Board]:
    """Those that were asked for."""
    boards = []
    if config.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise (machine_fault(error) or error) from None
        writer: Any = SummaryWriter(str(Path(config.out) / "tensorboard"))

        def add(numbers: Mapping[str, float], step: int) -> None:
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)

        boards.append(_Board("TensorBoard", add, writer.close))
    if config.wandb:
        try:
            import wandb

            run = wandb.init(project=config.wandb, dir=config.out, resume="allow", id=Path(config.out).name)
        except ImportError as error:
            raise (machine_fault(error) or error) from None
        except Exception as error:  # of its client: no login, no network
            raise UsageError(f"--wandb {config.wandb}: {one_line(error)}") from error
        boards.append(_Board("W&B", lambda numbers, step: run.log(dict(numbers), step=step), run.finish))
    return boards
