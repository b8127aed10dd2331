"""What a run is: one frozen dataclass, from flags, a TOML file, or both. Knows nothing of torch.

What is given wins in this order: flags, `--config FILE`, the checkpoint that is resumed, the model's own defaults, the
defaults below. `--help`, `config.toml` and the checks all come from this one list of fields.

A checkpoint may be a stranger's. Places (what is read, and where anything is sent or reported) are never taken from
one: they come from this command, or from the `config.toml` of the run that goes on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardkit import UsageError, public_address

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Layers, heads, width, learning rate: GPT-2's four sizes, with GPT-3's learning rates for them. A model named here may
# also bring its own default for any field of Config.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2-124m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "lr": 6e-4},
    "gpt2-350m": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "lr": 3e-4},
    "gpt2-774m": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "lr": 2.5e-4},
    "gpt2-1558m": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "lr": 2e-4},
    "nano": {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "lr": 6e-3,
        "seq_len": 64,
        "micro_batch": 8,
        "batch_tokens": 512,
        "val_tokens": 8192,
        "val_every": 50,
        "save_every": 100,
    },
    "bigram": {
        "n_layer": 0,
        "n_head": 0,
        "n_embd": 0,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "seq_len": 64,
        "micro_batch": 32,
        "batch_tokens": 2048,
        "val_tokens": 8192,
    },
}

CHOICES = {
    "optimizer": ("adamw", "muon"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "compile": ("auto", "on", "off"),
    "layout": ("contiguous", "document", "packed"),
}


_ADDRESSES = ("data", "hellaswag", "resume", "push_checkpoints")
_PATHS = ("data", "out", "data_dir", "resume")  # in which ~ is the home folder: no shell expands --out=~/x
_MOST_SEED = 1 << 63


def _field(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


def _fixed(default: Any, text: str) -> Any:
    """A field that a resumed run may not change: it would be another run. (The loader watches over the data itself.)"""
    return dataclasses.field(default=default, metadata={"help": text, "fixed": True})


def _place(default: Any, text: str, *, own: bool = True) -> Any:
    """A place that is read, or that something is sent to: no checkpoint decides it. Ranks may have each its `own`."""
    return dataclasses.field(default=default, metadata={"help": text, "place": True, "own": own})


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A run's settings. Sizes name their unit; None is "work it out", and says from what."""

    data: str = _place("", "Folder of shards, or a remote repo, which is pulled first.")
    out: str = _place("", "Folder of the run: config.toml, log.jsonl, checkpoints/, loss.png.")
    model: str = _fixed("gpt2-124m", "One of " + ", ".join(MODELS) + "; gpt2- may be left out.")
    n_layer: int | None = _fixed(None, "Layers. [the model's]")
    n_head: int | None = _fixed(None, "Attention heads. [the model's]")
    n_embd: int | None = _fixed(None, "Width. [the model's]")
    tokenizer: str | None = _place(
        None, "To decode with, and for the vocabulary's size. [the manifest's, else gpt2]", own=False
    )
    batch_tokens: int = _fixed(524288, "Tokens in a step, over all ranks and micro-steps.")
    micro_batch: int = _field(64, "Windows in one forward pass of one rank.")
    seq_len: int = _fixed(1024, "Tokens in a window, and positions of the model.")
    steps: int | None = _field(None, "Steps of the whole run. [one epoch]")
    epochs: float | None = _field(None, "Passes over the train split, instead of --steps.")
    layout: str = _fixed("contiguous", "contiguous, document (rows begin with one), or packed (whole ones, best fit).")
    document_mask: bool = _fixed(False, "No document sees another, in training and in validation.")
    seed: int = _fixed(1337, "Of the weights and of the order of the windows.")
    lr: float = _fixed(6e-4, "Highest learning rate. [the model's]")
    min_lr: float = _fixed(0.1, "Learning rate at the end, as a part of --lr.")
    warmup_steps: int | None = _fixed(None, "Steps up to --lr. [715, at most a tenth of all]")
    weight_decay: float = _fixed(0.1, "On matrices and embeddings alone.")
    beta1: float = _fixed(0.9, "AdamW's.")
    beta2: float = _fixed(0.95, "AdamW's.")
    grad_clip: float = _fixed(1.0, "Largest norm of the gradient; 0 for none.")
    optimizer: str = _fixed("adamw", "adamw, or muon (torch's, for the blocks' matrices, with adamw for the rest).")
    device: str = _field("auto", "cuda, mps or cpu. [the best that is there]")
    precision: str = _field("auto", "bf16, fp16 (with a scaler) or fp32. [bf16 where the GPU has it]")
    compile: str = _field("auto", "torch.compile: on or off. [on for cuda]")
    deterministic: bool = _field(False, "Deterministic kernels on cuda: a resumed run is equal bit for bit.")
    log_every: int = _field(10, "Steps between printed lines; log.jsonl has a line for each step.")
    val_every: int = _field(250, "Steps between validations; 0 for none.")
    val_tokens: int = _field(10485760, "Length of the pinned range at the start of the val split.")
    sample_every: int = _field(0, "Steps between samples of text; 0 for none.")
    prompt: str = _field("Hello, I'm a language model,", "Of the samples.")
    hellaswag: str | None = _place(
        None, "HellaSwag .jsonl (a file, a URL, hf://datasets/...), run at validations.", own=False
    )
    save_every: int = _field(250, "Steps between checkpoints; 0 for the last one alone.")
    keep: int = _field(2, "Newest checkpoints to keep, beside the best one.")
    resume: str | None = _place(
        None, "auto (the newest whole one in --out, else at --push-checkpoints), a checkpoint, a run, or a place."
    )
    push_checkpoints: str | None = _place(
        None, "Hub model repo, hf://buckets/..., or fsspec path for checkpoints. No password is saved."
    )
    data_dir: str | None = _place(None, "Where a remote --data is pulled to. [its own name]")
    ledger: bool = _field(False, "Write the loader's batch ledger into OUT/ledger.")
    tensorboard: bool = _place(False, "Log to TensorBoard in OUT/tensorboard too.")
    wandb: str | None = _place(None, "Log to this Weights & Biases project too.")

    def check(self) -> None:
        """Raise `UsageError` for the first value that cannot work."""
        for name in ("out", "data"):
            if not getattr(self, name):
                raise UsageError(f"--{name} is missing: give it, or {name} = in the --config file")
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), float) and not math.isfinite(value):
                raise UsageError(f"{flag_of(field.name)} is {value}: expected a finite number")
        for name in ("batch_tokens", "micro_batch", "seq_len", "log_every", "keep", "val_tokens", "lr"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{flag_of(name)} is {getattr(self, name)}: expected more than 0")
        for name in ("seed", "val_every", "save_every", "sample_every", "weight_decay", "grad_clip", "min_lr"):
            if getattr(self, name) < 0:
                raise UsageError(f"{flag_of(name)} is {getattr(self, name)}: expected 0 or more")
        for name in ("steps", "epochs"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UsageError(f"{flag_of(name)} is {value}: expected more than 0")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{flag_of(name)} is {getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        if self.steps is not None and self.epochs is not None:
            raise UsageError(f"--steps {self.steps} and --epochs {self.epochs:g} are both given: give one")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{flag_of(name)} is {getattr(self, name)}: expected at least 0, and less than 1")
        if self.seed >= _MOST_SEED:
            raise UsageError(f"--seed is {self.seed}: expected less than 2**63")
        for name in ("n_layer", "n_head", "n_embd"):
            least = 1 if self.n_layer and name != "n_layer" else 0
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"{flag_of(name)} is {value}: expected at least {least}")
        if self.n_head and self.n_embd and self.n_embd % self.n_head:
            raise UsageError(f"--n-embd {self.n_embd} is not a multiple of --n-head {self.n_head}")

    def micro_steps(self, world_size: int) -> int:
        """Forward passes of a rank in a step. Raises `UsageError` where `batch_tokens` does not divide so."""
        once = self.micro_batch * self.seq_len * world_size
        if self.batch_tokens % once:
            fits = self.micro_batches(world_size)
            hint = (
                f"--micro-batch {fits[-1]} would do" if fits else f"{self.batch_tokens // once * once or once} would do"
            )
            raise UsageError(
                f"--batch-tokens {self.batch_tokens:,} is not a multiple of --micro-batch {self.micro_batch} x "
                f"--seq-len {self.seq_len:,} x {world_size} ranks = {once:,}: {hint}"
            )
        return self.batch_tokens // once

    def micro_batches(self, world_size: int) -> list[int]:
        """The micro-batches up to `micro_batch` that divide `batch_tokens`, ascending; none where not even 1 does."""
        windows, rest = divmod(self.batch_tokens, self.seq_len * world_size)
        return [] if rest else [n for n in range(1, min(self.micro_batch, windows) + 1) if windows % n == 0]

    def shared_settings(self) -> dict[str, Any]:
        """The settings, by flag, that all ranks of a run must have alike."""
        return {flag_of(k): v for k, v in self.public_settings().items() if k not in names_of("own")}

    def public_settings(self) -> dict[str, Any]:
        """All settings as they are written down: addresses without user, password and query."""
        settings = dataclasses.asdict(self)
        return settings | {name: public_address(settings[name]) for name in _ADDRESSES if settings[name]}

    def to_toml(self) -> str:
        """The text of `config.toml`; fields that are None are left out."""
        lines = [f"{k} = {_toml(v)}" for k, v in self.public_settings().items() if v is not None]
        return "\n".join(lines) + "\n"


def read_settings(flags: Mapping[str, Any], file: str | Path | None) -> dict[str, Any]:
    """What the user gave: flags that are not None, over the settings in `file`. Raises `UsageError`."""
    given = {**(read_toml(Path(file)) if file else {}), **{k: v for k, v in flags.items() if v is not None}}
    if flags.get("steps") is not None or flags.get("epochs") is not None:  # a flag replaces the file's other one
        given = {**given, "steps": flags.get("steps"), "epochs": flags.get("epochs")}
    homes = {name: str(Path(given[name]).expanduser()) for name in _PATHS if str(given.get(name, "")).startswith("~")}
    return {**given, **homes}


def make_config(
    given: Mapping[str, Any], saved: Mapping[str, Any] | None = None, own: Mapping[str, Any] | None = None
) -> Config:
    """The config of a run: `given` settings over those `saved` in the checkpoint that it resumes, over the defaults.

    Of the saved ones no place is taken. Those in the run's `own` config.toml are (places.py), where none is given.
    Raises `UsageError` for a value out of range, or a change that a resumed run may not make.
    """
    places = names_of("place")
    saved = {key: value for key, value in (saved or {}).items() if key not in places}
    name = model_name(given["model"] if "model" in given else saved.get("model", Config().model))
    given = {**(own or {}), **given, "model": name}
    before = {**dataclasses.asdict(Config()), **saved}  # a field that is younger than the checkpoint had its default
    changed = [key for key in names_of("fixed") if saved and key in given and given[key] != before[key]]
    if changed:
        said = ", ".join(f"{flag_of(key)} {given[key]} (was {before[key]})" for key in changed)
        raise UsageError(
            f"the run to resume has another config: {said}; leave that out, or begin a run in another --out"
        )
    if "steps" in given or "epochs" in given:  # the one given replaces the other one saved
        given = {"steps": None, "epochs": None, **given}
    config = dataclasses.replace(Config(), **{**MODELS[name], **saved, **given})
    config.check()
    return config


def model_name(name: str) -> str:
    """The full name of a model: `124m` is `gpt2-124m`. Raises `UsageError` for one that is not there."""
    for full in (name, f"gpt2-{name}"):
        if full in MODELS:
            return full
    raise UsageError(f"unknown model {name!r}: expected one of {', '.join(MODELS)}")


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, checked for names and types. Raises `UsageError`."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the config file {path}: {error}") from error
    return check_types(values, str(path))


def check_types(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` as settings, whole numbers made floats where those belong. Raises `UsageError` for names and types."""
    kinds, checked = field_types(), dict(values)
    optional = {field.name for field in dataclasses.fields(Config) if field.default is None}
    for key, value in values.items():
        if key not in kinds:
            raise UsageError(f"{where} has an unknown setting {key!r:.40}: expected some of {', '.join(kinds)}")
        if kinds[key] is float and type(value) is int and abs(value) < 1 << 63:
            checked[key] = float(value)
        elif type(value) is not kinds[key] and not (value is None and key in optional):
            raise UsageError(f"{where} has {key} = {value!r:.60}: expected {kinds[key].__name__}")
    return checked


def field_types() -> dict[str, type]:
    """The type of each field: str, int, float or bool."""
    names = {"str": str, "int": int, "float": float, "bool": bool}
    return {f.name: names[str(f.type).split(" |")[0]] for f in dataclasses.fields(Config)}


def names_of(mark: str) -> list[str]:
    """The fields that are `fixed`, `own`, or a `place`."""
    return [field.name for field in dataclasses.fields(Config) if field.metadata.get(mark)]


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def _toml(value: Any) -> str:
    """JSON's strings, numbers and booleans are TOML's too, but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
