"""A run: data, model and optimizers, then steps, validations, samples and checkpoints, to the last step or a signal."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

import torch
from torch import Tensor

from shardkit import Manifest, ShardkitError, ShardLoader, Tokenizer, UsageError, public_address
from trainer.checkpoint import save_checkpoint, write_atomically
from trainer.checkpoint_parts import CheckpointError, State
from trainer.checkpoint_upload import Uploader
from trainer.config import Config
from trainer.console import told
from trainer.distributed import StopSignal, World, gather, shared, sum_over_ranks
from trainer.evaluate import bits_per_byte, open_val_range, unigram_entropy, validate
from trainer.hellaswag import HellaSwagItem, load_hellaswag, score_hellaswag
from trainer.log import RunLog, header, step_entry, step_line
from trainer.optim import Learner, learning_rate
from trainer.sample import sample_text

_WARMUP_STEPS = 715  # at most; GPT-3's 375 million tokens


class TrainingError(ShardkitError):
    """A run that cannot go on."""


class Run:
    """A run in progress: `step` updates are done. Every rank has one; that of rank 0 also prints and writes files.

    `config` is the given one, with `steps` and `warmup_steps` worked out; `micro_steps` are a rank's forward passes in
    a step.
    """

    def __init__(self, config: Config, world: World, manifest: Manifest, state: State | None) -> None:
        self.world = world
        self.micro_steps = config.micro_steps(world.size)
        self.tokenizer = _open_tokenizer(config, manifest, world)
        info = manifest.tokenizer or (self.tokenizer.info if self.tokenizer else None)
        if info is None:
            raise UsageError("the vocabulary's size is not known: give --tokenizer")
        self.tokenizer_info = info
        self.hellaswag_items: list[HellaSwagItem] = []
        if config.hellaswag and self.tokenizer:
            self.hellaswag_items = load_hellaswag(config.hellaswag, self.tokenizer)
        self.loader = ShardLoader.from_env(
            manifest,
            batch_size=config.micro_batch,
            seq_len=config.seq_len,
            seed=config.seed,
            device=world.device,
            ledger=str(Path(config.out) / "ledger") if config.ledger else None,
            layout=config.layout,
            documents=config.document_mask,
            eot_id=info.eot_id,
        )
        self.steps_per_epoch = self.loader.windows_per_epoch * config.seq_len / config.batch_tokens
        self.config = self._with_steps(config)
        self.steps = self.config.steps or 1
        self._open_val(manifest)
        self.learner = Learner(self.config, info.vocab_size, world, state)
        self.step, self.best, self.loss = 0, math.inf, math.nan
        self.val_loss: float | None = None  # of this very step
        self.last_val_loss: float | None = None
        if state:
            self.step, self.best = state["step"], state["best"]
            self.loss, self.last_val_loss = state["loss"], state["last_val_loss"]
            self.loader.load_state_dict(json.loads(state["loader"]))
        self.uploader: Uploader | None = None
        self._session = self.step, time.perf_counter()  # where and when this process began to train
        if world.is_main:
            self._open_folder()

    def _with_steps(self, config: Config) -> Config:
        steps, warmup = config.steps, config.warmup_steps
        if steps is None:
            steps = max(1, int(self.steps_per_epoch * (config.epochs or 1.0)))
        if warmup is None:
            warmup = min(_WARMUP_STEPS, steps // 10)
        return replace(config, steps=steps, epochs=None, warmup_steps=warmup, resume=None)

    def _open_val(self, manifest: Manifest) -> None:
        config, self.val, self.text_bytes = self.config, None, 0
        if config.val_every:
            eot_id = self.tokenizer_info.eot_id if config.document_mask else None
            self.val = open_val_range(manifest, tokens=config.val_tokens, seq_len=config.seq_len, eot_id=eot_id)
            self.text_bytes = self.val.count_bytes(self.tokenizer) if self.tokenizer else 0

    def _open_folder(self) -> None:
        out, manifest = Path(self.config.out), self.loader.manifest
        reference = {
            "unigram entropy": unigram_entropy(manifest),
            "ln(vocabulary)": math.log(self.tokenizer_info.vocab_size),
        }
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "config.toml", self.config.to_toml())
            self.log = RunLog(self.config, step=self.step if self.step else -1, reference=reference)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {error.filename or out}: {error.strerror or error}; choose another --out, or fix it"
            ) from error
        self.log.write(
            {
                "after_step": self.step,
                "source": public_address(self.config.data),
                "folder": str((manifest.directory or Path()).resolve()),
                "micro_batch": self.config.micro_batch,
                "world_size": self.world.size,
                "micro_steps": self.micro_steps,
                "eot_id": self.tokenizer_info.eot_id,
                "loader": self.loader.state_dict(),
            }
        )
        if self.config.push_checkpoints:
            self.uploader = Uploader(out, self.config.push_checkpoints, self.world.say)
        for line in header(self, reference):
            self.world.say(line)

    def loop(self) -> int:
        """Train to the last step, or to a signal, whose number is returned (0: done)."""
        with StopSignal() as stop:
            stopped, saved = self._steps(stop)
        if stopped:
            name = Signals(stopped).name
            self.world.say(f"stopped by {name} after step {saved:,}, which is saved: --resume auto goes on")
        return stopped

    def _steps(self, stop: StopSignal) -> tuple[int, int]:
        """Train until the end or a signal: the signal's number, and the last step that was saved."""
        config = self.config
        if self.step >= self.steps:
            self.world.say(f"the run is complete: {self.step:,} of {self.steps:,} steps")
        elif self.step == 0 and config.val_every:
            self._validate()
        saved, stopped = self.step, 0
        self._session = self.step, time.perf_counter()
        while self.step < self.steps and not stopped:
            epoch = self.loader.epoch
            with told(self._first_step_words() if self.step == self._session[0] else None):
                stopped = self._train_step(stop)
            if self.loader.epoch > epoch and self.step < self.steps:
                self.world.say(
                    f"warning: epoch {self.loader.epoch} is over at step {self.step:,}: data repeats from here"
                )
            if not stopped and self._is_due(config.val_every):
                self._validate()
            if not stopped and self._is_due(config.sample_every):
                self._sample()
            if stopped or self.step == self.steps or self._is_due(config.save_every):
                self._save()
                saved = self.step
        return stopped, saved

    def _first_step_words(self) -> str:
        return "the first step (compiling the model takes a while)" if self.learner.compiled else "the first step"

    def _is_due(self, every: int) -> bool:
        """Whether something done `every` so many steps, and after the last one, is to be done now; 0 is never."""
        return every > 0 and (self.step == self.steps or self.step % every == 0)

    def _train_step(self, stop: StopSignal) -> int:
        """One update. Returns the signal that any rank was sent, or 0."""
        config, world = self.config, self.world
        began, waited = time.perf_counter(), self.loader.wait_seconds
        rate = learning_rate(self.step, config)
        total, counted = self.learner.accumulate(self.loader.next_batch, self.micro_steps)
        norm = self.learner.update(rate)
        # One small collective a step: the loss, the targets it is of, and whether anybody was asked to stop, so that
        # all stop together.
        number = stop.number  # a signal after this line counts in the next step, on all ranks alike
        facts = torch.tensor([total.item() / world.size, counted.item(), number > 0], dtype=torch.float64)
        loss, targets, signals = sum_over_ranks(facts, world).tolist()
        self.step += 1
        self.loss = loss * (config.batch_tokens / max(1.0, targets))
        self.val_loss = None
        if not math.isfinite(self.loss):
            raise shared(
                TrainingError(
                    f"step {self.step:,}: the loss is {self.loss}, nothing of it was saved: --resume auto goes back to "
                    "the last checkpoint; lower --lr, or look at the data"
                )
            )
        seconds = time.perf_counter() - began
        if world.is_main:
            entry = step_entry(self, rate, float(norm), seconds, self.loader.wait_seconds - waited)
            self.log.write(entry)
            first, start = self._session
            if self._is_due(config.log_every) or self.step == first + 1:
                world.say(step_line(entry, self.steps, (time.perf_counter() - start) / (self.step - first)))
        return (number or int(SIGTERM)) if signals else 0

    def _validate(self) -> None:
        """On all ranks: the validation loss, and HellaSwag if it was asked for."""
        if self.val is None:
            return
        learner = self.learner
        with told("the first validation" if self.last_val_loss is None else None):
            loss = validate(learner.model, self.val, self.world, learner.dtype)
        self.val_loss = self.last_val_loss = loss
        self.best = min(self.best, loss)
        entry: dict[str, Any] = {"step": self.step, "val_loss": loss}
        text = f"step {self.step:>5}/{self.steps} | val loss {loss:.4f}"
        if self.text_bytes:
            entry["bits_per_byte"] = bits_per_byte(loss, self.val, self.text_bytes)
            text += f" | {entry['bits_per_byte']:.4f} bits a byte"
        if self.hellaswag_items and self.step:
            plain, normalized = score_hellaswag(learner.model, self.hellaswag_items, self.world, learner.dtype)
            entry["hellaswag"], entry["hellaswag_norm"] = plain, normalized
            text += f" | HellaSwag {plain:.4f}, normalized {normalized:.4f}"
        self.world.say(text)
        if self.world.is_main:
            self.log.write(entry)
            self.log.draw()

    def _sample(self) -> None:
        """On rank 0 alone, so without collectives."""
        if self.world.is_main and self.tokenizer:
            model, dtype = self.learner.model, self.learner.dtype
            for text in sample_text(model, self.tokenizer, self.config.prompt, count=2, dtype=dtype):
                self.world.say(f"sample    {text!r}")

    def _save(self) -> None:
        """On all ranks, for the random state of each; rank 0 writes."""
        on_cuda = self.world.device.type == "cuda"
        rng = gather(torch.get_rng_state(), self.world)
        cuda_rng = gather(torch.cuda.get_rng_state(), self.world) if on_cuda else torch.empty(0)
        if not self.world.is_main:
            return
        path = save_checkpoint(Path(self.config.out) / "checkpoints", self._state(rng, cuda_rng), keep=self.config.keep)
        self.log.draw()
        self.world.say(f"saved     {path}")
        if self.uploader:
            self.uploader.submit(path)

    def _state(self, rng: Tensor, cuda_rng: Tensor) -> State:
        manifest = self.loader.manifest
        return {
            **self.learner.state(),
            "step": self.step,
            "loss": self.loss,
            "val_loss": self.val_loss,
            "best": self.best,
            "last_val_loss": self.last_val_loss,
            "rng": rng,
            "cuda_rng": cuda_rng,
            "world_size": self.world.size,
            "loader": json.dumps(self.loader.state_dict()),
            "config": json.dumps(self.config.public_settings()),
            "fingerprint": manifest.fingerprint,
            "source": manifest.source.id if manifest.source else public_address(self.config.data),
            "tokenizer": self.config.tokenizer or self.tokenizer_info.name,
            "vocabulary": self.tokenizer_info.ranks_sha256,
            "eot_id": self.tokenizer_info.eot_id,
        }

    def abandon(self) -> None:
        """Close files after an error, waiting for nothing: other ranks may be waiting for this one to end."""
        self.loader.close()
        if self.world.is_main:
            self.log.close()
            if self.uploader:
                self.uploader.report()

    def close(self) -> None:
        """Close files and threads; waits for an upload on its way."""
        self.loader.close()
        if self.world.is_main:
            self.log.draw()
            self.log.close()
            if self.uploader:
                self.uploader.close()


def _open_tokenizer(config: Config, manifest: Manifest, world: World) -> Tokenizer | None:
    """The tokenizer, for samples, HellaSwag and bits per byte; None, and a note, where only the last needs it."""
    try:
        return Tokenizer.of_dataset(manifest, name=config.tokenizer)
    except ShardkitError as error:
        if config.tokenizer or config.hellaswag or config.sample_every or manifest.tokenizer is None:
            raise
        world.say(f"note: no bits per byte: {error}")
        return None
