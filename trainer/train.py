"""The training run, top to bottom: data, model, optimizer, steps, validations, checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shardkit import Manifest, ShardkitError, ShardLoader, Tokenizer, UsageError, pull
from trainer import checkpoint as ckpt
from trainer.attention import mask_kind
from trainer.config import Config, make_config, read_settings
from trainer.distributed import (
    StopSignal,
    World,
    autocast,
    choose_precision,
    find_world,
    finish,
    from_main,
    gather,
    once_a_node,
    start,
    sum_over_ranks,
)
from trainer.evaluate import bits_per_byte, load_hellaswag, open_val_range, score_hellaswag, unigram_entropy, validate
from trainer.log import RunLog
from trainer.model import IGNORED, Model, ModelConfig
from trainer.sample import sample_text

# Dense bf16 (fp16) FLOP/s of a GPU, by a part of its name, for MFU.
_PEAK_FLOPS = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12,
    "L4": 121e12, "V100": 125e12, "T4": 65e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
_WARMUP_STEPS = 715


class TrainingError(ShardkitError):
    """A run that cannot go on."""


def train(flags: Mapping[str, Any], file: str | Path | None = None) -> int:
    """Run or resume the training that `flags` and the TOML `file` say. Returns the signal that ended it early, or 0."""
    given = read_settings(flags, file)
    world = find_world(given.get("device", "auto"))
    start(world)
    state = from_main(lambda: find_state(given, world), world)
    config = make_config(given, json.loads(state["config"]) if state else None)
    config, manifest = open_data(config, world)
    run = Run(config, world, manifest, state)
    del state
    try:
        stopped = run.loop()
    except BaseException:
        run.abandon()
        raise
    run.close()
    finish()
    return stopped


def find_state(given: Mapping[str, Any], world: World) -> ckpt.State | None:
    """The checkpoint to go on from, by `--resume`; None for a fresh run. Raises where that would hide an old one."""
    resume = given.get("resume")
    folder = Path(str(given.get("out", ""))) / "checkpoints"
    if resume is None or not given.get("out"):
        if given.get("out") and ckpt.list_checkpoints(folder):
            raise UsageError(f"{given['out']} holds a run already: go on with --resume auto, or give another --out")
        return None
    if resume == "auto":
        state = ckpt.load_newest(folder, world.say)
        if state is None:
            world.say(f"nothing to resume in {given['out']}: starting anew")
        return state
    if ckpt.is_remote(resume):
        return ckpt.load_checkpoint(ckpt.download_newest(resume, folder))
    path = Path(resume)
    if path.is_dir():
        state = ckpt.load_newest(path / "checkpoints" if (path / "checkpoints").is_dir() else path, world.say)
        if state is None:
            raise ckpt.CheckpointError(f"--resume {resume}: no checkpoints/step_*.pt there")
        return state
    return ckpt.load_checkpoint(path)


def open_data(config: Config, world: World) -> tuple[Config, Manifest]:
    """The dataset's manifest: of the folder `--data`, or of what is pulled from there, by one process of each node."""
    folder = Path(config.data)
    if not folder.is_dir():
        folder = Path(config.data_dir or config.data.split("@")[0].rstrip("/").rsplit("/", 1)[-1])
        once_a_node(world, "pull", lambda: _pull(config.data, folder))
    with ShardLoader(folder, batch_size=1, seq_len=1) as probe:
        manifest = probe.manifest
    if config.tokenizer is None:
        if manifest.tokenizer is None:
            world.say(f"note: {folder} has no manifest.json, taking its tokens for gpt2's (else give --tokenizer)")
        config = replace(config, tokenizer=manifest.tokenizer.name if manifest.tokenizer else "gpt2")
    return config, manifest


def _pull(source: str, folder: Path) -> None:
    print(f"pulling {source} into {folder}", flush=True)
    pull(source, folder)


def make_optimizers(model: Model, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW, with decay on matrices alone; for `muon` the blocks' matrices go to it, at AdamW's learning rate."""
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
        taken = {id(p) for p in inner}
        matrices = [p for p in matrices if id(p) not in taken]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = next(model.parameters()).device.type in ("cuda", "cpu")
    optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused))
    return optimizers


def learning_rate(step: int, config: Config) -> float:
    """The rate of update `step`, counted from 0: up in a line, then down along a cosine to `min_lr` times `lr`."""
    steps, warmup = config.steps or 1, config.warmup_steps or 0
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return config.lr * (config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


class Run:
    """A run in progress. `step` counts updates done; every rank has one of these, rank 0's also prints and writes."""

    def __init__(self, config: Config, world: World, manifest: Manifest, state: ckpt.State | None) -> None:
        self.world = world
        self.micro_steps = config.micro_steps(world.size)
        self.dtype = choose_precision(config.precision, world.device)
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
            torch.use_deterministic_algorithms(True)
        self._make_tokenizer(config, manifest)
        eot_id = self.tokenizer_info.eot_id
        ledger = str(Path(config.out) / "ledger") if config.ledger else None
        self.loader = ShardLoader.from_env(
            manifest, batch_size=config.micro_batch, seq_len=config.seq_len, seed=config.seed, device=world.device,
            ledger=ledger, layout=config.layout, documents=config.document_mask, eot_id=eot_id,
        )  # fmt: skip
        self.steps_per_epoch = self.loader.windows_per_epoch * config.seq_len / config.batch_tokens
        self.config = config = self._with_steps(config)
        self.steps = config.steps or 1
        self.val, self.text_bytes = None, 0
        if config.val_every:
            masked = eot_id if config.document_mask else None
            self.val = open_val_range(manifest, tokens=config.val_tokens, seq_len=config.seq_len, eot_id=masked)
            self.text_bytes = self.val.count_bytes(self.tokenizer) if self.tokenizer else 0
        self._make_model(config, state)
        self.step, self.best, self.loss = 0, math.inf, math.nan
        self.val_loss: float | None = None  # of this very step
        self.last_val_loss: float | None = None
        if state:
            self._restore(state)
        self.uploader: ckpt.Uploader | None = None
        if world.is_main:
            self._open_folder()

    def _with_steps(self, config: Config) -> Config:
        steps = config.steps
        if steps is None:
            steps = max(1, int(self.steps_per_epoch * (config.epochs or 1.0)))
        warmup = config.warmup_steps
        if warmup is None:
            warmup = min(_WARMUP_STEPS, steps // 10)
        return replace(config, steps=steps, epochs=None, warmup_steps=warmup, resume=None)

    def _make_tokenizer(self, config: Config, manifest: Manifest) -> None:
        """The tokenizer, for samples and bits per byte; where it cannot be had, they are left out and it is said."""
        self.tokenizer: Tokenizer | None = None
        self.items = None
        try:
            self.tokenizer = Tokenizer(config.tokenizer or "gpt2", encoder="auto")
        except ShardkitError as error:
            if config.hellaswag or config.sample_every or manifest.tokenizer is None:
                raise
            self.world.say(f"note: no bits per byte: {error}")
        info = manifest.tokenizer or (self.tokenizer.info if self.tokenizer else None)
        if info is None:
            raise UsageError("the vocabulary's size is not known: give --tokenizer")
        self.tokenizer_info = info
        if config.hellaswag and self.tokenizer:
            self.items = load_hellaswag(config.hellaswag, self.tokenizer)

    def _make_model(self, config: Config, state: ckpt.State | None) -> None:
        torch.manual_seed(config.seed)  # the same weights on every rank
        sizes = ModelConfig(
            vocab_size=self.tokenizer_info.vocab_size, n_layer=config.n_layer or 0, n_head=config.n_head or 0,
            n_embd=config.n_embd or 0, n_positions=config.seq_len,
        )  # fmt: skip
        self.model = Model(sizes)
        if state:
            if json.loads(state["model_config"]) != asdict(sizes):
                raise ckpt.CheckpointError(
                    f"the checkpoint's model is {state['model_config']}, the run's {asdict(sizes)}"
                )
            self.model.load_state_dict(state["model"])
        self.model.to(self.world.device)
        on_cuda = self.world.device.type == "cuda"
        compiled = config.compile == "on" or (config.compile == "auto" and on_cuda)
        self.model.chunked_loss = not compiled
        # The compiled module shares the weights with self.model, which stays eager for validation and samples.
        trained: Any = torch.compile(self.model) if compiled else self.model
        if self.world.size > 1:
            # Its only buffer never changes. torch 2.13 gave this option another name.
            known = signature(DistributedDataParallel.__init__).parameters
            still: dict[str, Any] = {
                "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
            }
            devices = [self.world.device.index] if on_cuda else None
            trained = DistributedDataParallel(trained, device_ids=devices, gradient_as_bucket_view=True, **still)
        self.trained = trained
        self.compiled = compiled
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(config.seed + 1 + self.world.rank)

    def _restore(self, state: ckpt.State) -> None:
        """Take up everything that the checkpoint holds; ranks that it knows nothing of keep their fresh RNG."""
        self.step, self.best = state["step"], state["best"]
        self.loss, self.last_val_loss = state["loss"], state["last_val_loss"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(json.loads(state["loader"]))
        if self.world.rank < len(state["rng"]):
            torch.set_rng_state(state["rng"][self.world.rank])
        if self.world.device.type == "cuda" and self.world.rank < len(state["cuda_rng"]):
            torch.cuda.set_rng_state(state["cuda_rng"][self.world.rank])

    def _open_folder(self) -> None:
        out = Path(self.config.out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            ckpt.write_atomically(out / "config.toml", self.config.to_toml())
        except OSError as error:
            raise ckpt.CheckpointError(f"cannot write {out}: {error.strerror or error}") from error
        self.entropy = unigram_entropy(self.loader.manifest)
        vocabulary = math.log(self.tokenizer_info.vocab_size)
        reference = {"unigram entropy": self.entropy, "ln(vocabulary)": vocabulary}
        self.log = RunLog(self.config, step=self.step if self.step else -1, reference=reference)
        self.log.write(
            {
                "after_step": self.step, "source": self.config.data,
                "folder": str((self.loader.manifest.directory or Path()).resolve()),
                "micro_batch": self.config.micro_batch, "world_size": self.world.size,
                "micro_steps": self.micro_steps, "eot_id": self.tokenizer_info.eot_id,
                "loader": self.loader.state_dict(),
            }
        )  # fmt: skip
        if self.config.push_checkpoints:
            self.uploader = ckpt.Uploader(out, self.config.push_checkpoints, self.world.say)
        self._print_header(vocabulary)

    def _print_header(self, vocabulary: float) -> None:
        config, model, world, loader = self.config, self.model, self.world, self.loader
        sizes, say = model.config, world.say
        on_cuda = world.device.type == "cuda"
        device = torch.cuda.get_device_name(world.device) if on_cuda else f"{world.device.type}"
        kind = f"{sizes.n_layer} layers, {sizes.n_head} heads, width {sizes.n_embd}" if sizes.n_layer else "a table"
        train_tokens = sum(shard.tokens for shard in loader.manifest.splits["train"])
        passes = self.steps / self.steps_per_epoch
        say(f"model     {config.model}: {kind}, vocabulary {sizes.vocab_size:,}, {model.parameter_count:,} parameters")
        say(
            f"devices   {world.size} x {device}, {str(self.dtype).removeprefix('torch.')}"
            f"{' with a gradient scaler' if self.scaler.is_enabled() else ''}, torch.compile "
            f"{'on' if self.compiled else 'off'}, {config.optimizer}"
        )
        say(
            f"data      {loader.manifest.directory}: {train_tokens:,} train tokens, {loader.windows_per_epoch:,} "
            f"windows of {config.seq_len:,}, tokenizer {self.tokenizer_info.name}, fingerprint "
            f"{loader.manifest.fingerprint[:16]}"
        )
        say(
            f"step      {config.batch_tokens:,} tokens: {world.size} ranks x {self.micro_steps} micro-steps x "
            f"{config.micro_batch} windows x {config.seq_len:,}"
        )
        mask = f", document mask ({mask_kind(world.device)})" if config.document_mask else ""
        say(f"layout    {loader.stats()}{mask}")
        say(f"epoch     {self.steps_per_epoch:,.2f} steps; the run has {self.steps:,}: {passes:.2f} epochs")
        if self.val:
            say(f"val       {self.val.windows * self.val.seq_len:,} tokens, the first of the val split")
        say(f"losses    ln(vocabulary) {vocabulary:.4f}, unigram entropy {self.entropy:.4f} nats")
        say("config    " + ", ".join(self.config.to_toml().splitlines()))
        if self.step:
            say(f"resumed   after step {self.step:,}")

    def loop(self) -> int:
        """Train to the last step, or to a signal, whose number is returned (0: done)."""
        with StopSignal() as stop:
            stopped, saved = self._steps(stop)
        if stopped:
            self.world.say(f"stopped by signal {stopped} after step {saved:,}, which is saved: --resume auto goes on")
        return stopped

    def _steps(self, stop: StopSignal) -> tuple[int, int]:
        """Train until the end or a signal: the signal's number, and the last step that was saved."""
        if self.step >= self.steps:
            self.world.say(f"the run is complete: {self.step:,} of {self.steps:,} steps")
        elif self.step == 0 and self.config.val_every:
            self._validate()
        saved, began, first = self.step, time.perf_counter(), self.step
        stopped = 0
        while self.step < self.steps and not stopped:
            epoch = self.loader.epoch
            stopped = self._train_step(stop, lambda: (time.perf_counter() - began) / (self.step - first))
            if self.loader.epoch > epoch and self.step < self.steps:
                self.world.say(
                    f"warning: epoch {self.loader.epoch} is over at step {self.step:,}: data repeats from here"
                )
            last = self.step == self.steps
            if not stopped and self.config.val_every and (last or self.step % self.config.val_every == 0):
                self._validate()
            if not stopped and self.config.sample_every and (last or self.step % self.config.sample_every == 0):
                self._sample()
            if stopped or last or (self.config.save_every and self.step % self.config.save_every == 0):
                self._save()
                saved = self.step
        return stopped, saved

    def _train_step(self, stop: StopSignal, mean_seconds: Any) -> int:
        """One update. Returns the signal that any rank was sent, or 0."""
        config, world = self.config, self.world
        began, waited = time.perf_counter(), self.loader.wait_seconds
        rate = learning_rate(self.step, config)
        total, counted = self.accumulate()
        norm = self._update(rate)
        # One small collective a step: the loss, the targets it is of, and whether anybody was asked to stop, so that
        # all stop together.
        number = stop.number  # a signal after this line counts in the next step, on all ranks alike
        facts = torch.tensor([total.item() / world.size, counted.item(), number > 0], dtype=torch.float64)
        if world.size > 1:
            facts = sum_over_ranks(facts.to(world.device)).cpu()
        self.step += 1
        loss, targets, signals = facts.tolist()
        self.loss = loss * (config.batch_tokens / max(1.0, targets))
        self.val_loss = None
        if not math.isfinite(self.loss):
            raise TrainingError(
                f"step {self.step:,}: the loss is {self.loss}, nothing of it was saved: --resume auto goes back to the "
                "last checkpoint; lower --lr, or look at the data"
            )
        seconds = time.perf_counter() - began
        if world.is_main:
            self._report(rate, float(norm), seconds, self.loader.wait_seconds - waited, mean_seconds())
        return (number or int(SIGTERM)) if signals else 0

    def accumulate(self) -> tuple[Tensor, Tensor]:
        """Read a step's batches and leave their gradient in `.grad`; this rank's loss, and how many targets counted.

        Both loss and gradient are sums over targets that count, divided by all that there are.
        """
        total = torch.zeros((), device=self.world.device)
        counted = torch.zeros((), device=self.world.device, dtype=torch.int64)
        for number in range(self.micro_steps):
            inputs, targets, *documents = self.loader.next_batch()
            positions = documents[0].position_ids if documents else None
            with self._sync(number == self.micro_steps - 1):
                with autocast(self.world.device, self.dtype):
                    loss = self.trained(inputs, targets, positions) / self.micro_steps
                self.scaler.scale(loss).backward()
            total += loss.detach()
            counted += (targets != IGNORED).sum()
        return total, counted

    def _sync(self, last: bool) -> Any:
        """Gradients are averaged over the ranks in the last micro-step alone."""
        if isinstance(self.trained, DistributedDataParallel) and not last:
            return self.trained.no_sync()
        return nullcontext()

    def _update(self, rate: float) -> Tensor:
        """Clip and apply the gradients; their norm before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _report(self, rate: float, norm: float, seconds: float, waited: float, mean_seconds: float) -> None:
        config, world = self.config, self.world
        speed = config.batch_tokens / seconds
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        peak = next((flops for part, flops in _PEAK_FLOPS.items() if part in name), 0.0) * world.size
        flops = self.model.flops_per_token(config.seq_len)
        mfu = speed * flops / peak if peak and flops else None
        left = int((self.steps - self.step) * mean_seconds)
        self.log.write(
            {
                "step": self.step, "loss": self.loss, "lr": rate, "grad_norm": norm, "ms": seconds * 1e3,
                "tokens_per_second": speed, "mfu": mfu, "data_wait": waited / seconds, "epoch": self.loader.epoch,
            }
        )  # fmt: skip
        world.say(
            f"step {self.step:>5}/{self.steps} | loss {self.loss:.4f} | lr {rate:.2e} | norm {norm:.3f} | "
            f"{seconds * 1e3:.0f} ms | {speed:,.0f} tok/s | {f'MFU {mfu:.1%} | ' if mfu else ''}"
            f"data wait {waited / seconds:.1%} | ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )

    def _validate(self) -> None:
        """On all ranks: the validation loss, and HellaSwag if it was asked for."""
        if self.val is None:
            return
        loss = validate(self.model, self.val, self.world, self.dtype)
        self.val_loss = self.last_val_loss = loss
        self.best = min(self.best, loss)
        entry: dict[str, Any] = {"step": self.step, "val_loss": loss}
        text = f"step {self.step:>5}/{self.steps} | val loss {loss:.4f}"
        if self.text_bytes:
            entry["bits_per_byte"] = bits_per_byte(loss, self.val, self.text_bytes)
            text += f" | {entry['bits_per_byte']:.4f} bits a byte"
        if self.items and self.step:
            entry["hellaswag"], entry["hellaswag_norm"] = score_hellaswag(
                self.model, self.items, self.world, self.dtype
            )
            text += f" | HellaSwag {entry['hellaswag']:.4f}, normalized {entry['hellaswag_norm']:.4f}"
        self.world.say(text)
        if self.world.is_main:
            self.log.write(entry)
            self.log.draw()

    def _sample(self) -> None:
        """On rank 0 alone, so without collectives."""
        if self.world.is_main and self.tokenizer:
            for text in sample_text(self.model, self.tokenizer, self.config.prompt, count=2, dtype=self.dtype):
                self.world.say(f"sample    {text!r}")

    def _save(self) -> None:
        """On all ranks, for the RNG of each; rank 0 writes."""
        on_cuda = self.world.device.type == "cuda"
        rng = gather(torch.get_rng_state().to(self.world.device)).cpu()
        cuda_rng = gather(torch.cuda.get_rng_state().to(self.world.device)).cpu() if on_cuda else torch.empty(0)
        if not self.world.is_main:
            return
        manifest = self.loader.manifest
        state: ckpt.State = {
            "step": self.step, "loss": self.loss, "val_loss": self.val_loss, "best": self.best,
            "last_val_loss": self.last_val_loss, "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(), "rng": rng, "cuda_rng": cuda_rng, "world_size": self.world.size,
            "loader": json.dumps(self.loader.state_dict()), "config": json.dumps(asdict(self.config)),
            "model_config": json.dumps(asdict(self.model.config)), "fingerprint": manifest.fingerprint,
            "source": manifest.source.id if manifest.source else self.config.data,
            "tokenizer": self.config.tokenizer, "eot_id": self.tokenizer_info.eot_id,
        }  # fmt: skip
        path = ckpt.save_checkpoint(Path(self.config.out) / "checkpoints", state, keep=self.config.keep)
        self.log.draw()
        self.world.say(f"saved     {path}")
        if self.uploader:
            self.uploader.submit(path)

    def abandon(self) -> None:
        """Let go of files after an error, at once: other ranks may be waiting for this one to end."""
        self.loader.close()
        if self.world.is_main:
            self.log.close()

    def close(self) -> None:
        """Let go of files and threads; waits for an upload on its way."""
        self.loader.close()
        if self.world.is_main:
            self.log.draw()
            self.log.close()
            if self.uploader:
                self.uploader.close()
