"""Weights to and from the files of `transformers`' GPT2LMHeadModel. That library itself is not needed."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import torch
from torch import Tensor

from shardkit import Manifest, ShardkitError, Tokenizer, UsageError, printable, public_address
from trainer.checkpoint import find_checkpoint, is_hub_repo, load_checkpoint, write_atomically
from trainer.log import data_folder
from trainer.model import Model, ModelConfig
from trainer.places import one_line, places_beside
from trainer.run_folder import refuse_dataset_and_run

# GPT-2 was published with these as Conv1D: the transpose of a Linear.
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_CARD = """---
{data}
---
# {title}

A GPT-2 of {parameters:,} parameters ({n_layer} layers, {n_head} heads, width {n_embd}, context {n_positions:,}),
trained from scratch with the shardkit trainer.

| | |
|---|---|
| data | {source} |
| data fingerprint | {fingerprint} |
| steps | {step:,} of {batch_tokens:,} tokens |
| train loss | {loss} |
| validation loss | {val_loss} |

![loss](loss.png)

```python
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained("{title}")
```
"""


class ExportError(ShardkitError):
    """Weights that cannot be read, written or pushed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model, and its checkpoint's `state` without weights and optimizers; empty for an export,
    which lies in `folder`."""

    model: Model
    state: dict[str, Any]
    folder: Path | None = None

    @property
    def tokenizer(self) -> str:
        """The name of its tokenizer, the file of an export that has one, gpt2 where none is known. No checkpoint says
        which file of this disk, or of the Hub, is read."""
        if self.folder is not None and (self.folder / "tokenizer.json").is_file():
            return str(self.folder / "tokenizer.json")
        name = self.state.get("tokenizer") or "gpt2"
        if name not in (*tiktoken.list_encoding_names(), "bytes"):
            raise UsageError(f"the checkpoint's tokenizer is a file, {name!a}: give --tokenizer")
        return str(name)


def open_model(where: str | Path, *, which: str = "last", device: str | torch.device = "cpu") -> Loaded:
    """The model of a run, of a checkpoint file, or of a folder that `export` or `transformers` wrote."""
    where = Path(where)
    if (where / "model.safetensors").exists():
        return Loaded(model=import_model(where).to(device), state={}, folder=where)
    state = load_checkpoint(find_checkpoint(where, which))
    model = Model(ModelConfig(**json.loads(state["model_config"])))  # the weights' own sizes: check_parts saw to that
    model.load_state_dict(state.pop("model"))
    del state["optimizers"]
    return Loaded(model=model.to(device), state=state)


def tokenizer_of(loaded: Loaded, manifest: Manifest | None, name: str | None) -> Tokenizer:
    """The tokenizer of a model: that of the dataset that `manifest` is of, if it has one, else of `name`, else of the
    checkpoint. Raises `UsageError` for another vocabulary than the model's."""
    if manifest is not None and manifest.tokenizer is not None:
        theirs, ours = manifest.tokenizer, loaded.state.get("vocabulary", "")  # of an export only its size is known
        ids, trained = loaded.model.config.vocab_size, loaded.state.get("tokenizer") or "an export"
        if theirs.vocab_size != ids or (ours and theirs.ranks_sha256 not in ("", ours)):
            stated, known = (f", SHA-256 {sha256[:16]}" if sha256 else "" for sha256 in (theirs.ranks_sha256, ours))
            raise UsageError(
                f"{manifest.directory} was made with another vocabulary ({theirs.name}, {theirs.vocab_size:,} "
                f"ids{stated}) than the model's ({trained!a}, {ids:,} ids{known}): give "
                "--data that fits"
            )
        return Tokenizer.of_dataset(manifest, name=name)
    found = Tokenizer(name or loaded.tokenizer)
    if (ours := loaded.state.get("vocabulary", "")) not in ("", found.info.ranks_sha256):
        raise UsageError(
            f"{found.name} is another vocabulary (SHA-256 {found.info.ranks_sha256[:16]}) than the model was trained "
            f"with ({loaded.state.get('tokenizer')!a:.80}, SHA-256 {ours[:16]}): give --tokenizer with that one"
        )
    return found


def dataset_of(run: Path, loaded: Loaded) -> Manifest | None:
    """The dataset that the run, or checkpoint, `run` was trained on; None where it is not here any more."""
    folders = [data_folder(run if run.is_dir() else run.absolute().parent.parent), places_beside(run).get("data")]
    for folder in folders:  # one that was pulled is known by the log alone
        if folder is not None and (Path(folder) / "manifest.json").is_file():
            manifest = Manifest.of_folder(folder)
            if manifest.fingerprint == loaded.state.get("fingerprint"):
                return manifest
    return None


def export_tokenizer(run: Path, loaded: Loaded, out: str | Path) -> bool:
    """Write the model's tokenizer into `out`, as `transformers` reads it; False if it is not known or cannot be had."""
    if not loaded.state.get("vocabulary"):
        return False
    try:
        found = tokenizer_of(loaded, dataset_of(run, loaded), None)
    except ShardkitError:
        return False
    return found.eot_id == loaded.state.get("eot_id", found.eot_id) and found.save(out)


def export_model(model: Model, out: str | Path, *, eot_id: int) -> None:
    """Write `model.safetensors`, `config.json` and `generation_config.json` into `out`: fp32, without the padding."""
    from safetensors.torch import save_file

    config, out = model.config, Path(out)
    if not config.n_layer:
        raise UsageError("a bigram model is no GPT-2: it cannot be exported")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().float()
        if name == "transformer.wte.weight":
            tensor = tensor[: config.vocab_size]
        tensors[name] = (tensor.t() if name.endswith(_TRANSPOSED) else tensor).contiguous()
    generation = {"_from_model_config": True, "bos_token_id": eot_id, "eos_token_id": eot_id}
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / ".model.safetensors.tmp", metadata={"format": "pt"})
        (out / ".model.safetensors.tmp").replace(out / "model.safetensors")
        write_atomically(out / "generation_config.json", json.dumps(generation, indent=2) + "\n")
        write_atomically(out / "config.json", json.dumps(_gpt2_config(config, eot_id), indent=2) + "\n")
    except OSError as error:
        raise ExportError(f"cannot write {out}: {error.strerror or error}") from error


def _gpt2_config(config: ModelConfig, eot_id: int) -> dict[str, Any]:
    """`config.json`, as `transformers` describes a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
    }


def import_model(folder: str | Path) -> Model:
    """A model with the weights that `transformers` saved in `folder`. Raises `ExportError` where they are no GPT-2."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
        if described["model_type"] != "gpt2" or described["activation_function"] != "gelu_new":
            raise ExportError(f"{folder} is a {described['model_type']} model: expected gpt2 with gelu_new")
        names = ("vocab_size", "n_layer", "n_head", "n_embd", "n_positions")
        model = Model(ModelConfig(**{name: int(described[name]) for name in names}))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ExportError(f"cannot read a GPT-2 from {folder}: {error!r}") from error
    weights = model.state_dict()
    for name, target in weights.items():
        source = tensors.get(
            name, tensors.get(name.removeprefix("transformer."))
        )  # gpt2 on the Hub leaves the prefix out
        if source is None:
            raise ExportError(f"{folder} has no weight {name}")
        source = source.t() if name.endswith(_TRANSPOSED) else source
        rows = described["vocab_size"] if name == "transformer.wte.weight" else target.shape[0]
        if source.shape != target[:rows].shape:
            raise ExportError(
                f"{folder}: {name} has shape {tuple(source.shape)}, expected {tuple(target[:rows].shape)}"
            )
        target[:rows], target[rows:] = source, 0.0
    return model


def write_card(out: str | Path, title: str, loaded: Loaded, run: Path | None) -> None:
    """`README.md` of an export: data fingerprint, steps, losses, and the run's plot if there is one."""
    from huggingface_hub import ModelCardData

    state, out = loaded.state, Path(out)
    config = json.loads(state["config"]) if state else {}
    data = ModelCardData(
        license="other", library_name="transformers", pipeline_tag="text-generation", tags=["gpt2", "shardkit"]
    )
    card = _CARD.format(
        data=data.to_yaml(),
        title=title,
        parameters=loaded.model.parameter_count,
        **dataclasses.asdict(loaded.model.config),
        source=_words(state.get("source", "unknown")),
        fingerprint=_words(state.get("fingerprint", "unknown")),
        step=state.get("step", 0),
        batch_tokens=config.get("batch_tokens", 0),
        loss=_number(state.get("loss")),
        val_loss=_number(state.get("last_val_loss")),
    )
    if run is not None and (run / "loss.png").exists():
        shutil.copy(run / "loss.png", out / "loss.png")
    else:
        card = card.replace("![loss](loss.png)\n\n", "")
    write_atomically(out / "README.md", card)


def push_model(out: str | Path, repo: str) -> str:
    """Send the folder `out` to the Hub model repo `repo`, made private if it is not there; its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repo, exist_ok=True, private=True)
        api.upload_folder(repo_id=repo, folder_path=out, commit_message="Export")
    except Exception as error:  # noqa: BLE001 (of the client, of what it is built on)
        raise ExportError(f"cannot push {out} to {repo}: {one_line(error)}; run `hf auth login`?") from None
    return str(address)


def _words(value: object) -> str:
    """A checkpoint's words, which may be a stranger's, as text of the page: no secret, no HTML, no markup."""
    return re.sub(r"[^\w .,:/@+-]", "?", printable(public_address(str(value)), lines=False))


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"


def export_run(run: Path, out: Path, *, which: str, push: str | None) -> str:
    """Export a run or a checkpoint into `out`, push it if asked to; says where it is."""
    if push and not is_hub_repo(push):
        raise UsageError(f"--push {push!r}: expected user/model on the Hub")
    refuse_dataset_and_run(out)
    loaded = open_model(run, which=which)
    export_model(loaded.model, out, eot_id=loaded.state.get("eot_id", loaded.model.config.vocab_size - 1))
    folder = run if run.is_dir() else run.absolute().parent.parent
    has_tokenizer = export_tokenizer(run, loaded, out)
    write_card(out, push or out.name, loaded, folder)
    lacks = "" if has_tokenizer else "; no tokenizer is with it: nothing here says which, or has it"
    if push:
        return f"{push_model(out, push)} holds the model{lacks}"
    if has_tokenizer:
        return f"{out} holds the model and its tokenizer: pipeline('text-generation', model={str(out)!r})"
    return f"{out} holds the model{lacks}: GPT2LMHeadModel.from_pretrained({str(out)!r})"
