"""Text from a model: each token is a forward pass over the whole context. Uses no random state but its own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shardkit import Tokenizer
from trainer.distributed import autocast, find_world
from trainer.export import dataset_of, open_model, tokenizer_of
from trainer.model import Model
from trainer.places import places_beside


@torch.no_grad()
def generate(
    model: Model,
    ids: Tensor,
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 42,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`ids`, int64 `(B, T)` with T of at least 1, continued to `(B, T + tokens)`; temperature 0 takes the likeliest.

    The draw is made on the CPU, so that one seed gives one text on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        context = ids[:, -model.config.n_positions :]
        with autocast(ids.device, dtype):
            logits = model.to_logits(model.hidden(context)[:, -1]).float().cpu()  # (B, V)
        if temperature == 0:
            drawn = logits.argmax(1, keepdim=True)
        else:
            if top_k is not None:
                least = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            drawn = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)
        ids = torch.cat((ids, drawn.to(ids.device)), dim=1)
    return ids


def sample_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    count: int = 1,
    tokens: int = 48,
    temperature: float = 1.0,
    top_k: int | None = 50,
    seed: int = 42,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """`count` continuations of `prompt`, which begins a document: each text ends where the model ends it."""
    start = [tokenizer.eot_id, *tokenizer.encode_ordinary(prompt)]
    ids = torch.tensor([start] * count, device=model.head.device)
    ids = generate(model, ids, tokens=tokens, temperature=temperature, top_k=top_k, seed=seed, dtype=dtype)
    texts = []
    for row in ids[:, 1:].tolist():
        end = row.index(tokenizer.eot_id) if tokenizer.eot_id in row else len(row)
        texts.append(tokenizer.decode(row[:end]))
    return texts


def sample_run(
    run: Path,
    *,
    which: str,
    device: str,
    prompt: str,
    count: int,
    tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    tokenizer: str | None,
) -> list[str]:
    """Texts from a run, a checkpoint or an export, by its own tokenizer unless another is named."""
    loaded = open_model(run, which=which, device=find_world(device).device)
    codec = tokenizer_of(loaded, dataset_of(run, loaded), tokenizer or places_beside(run).get("tokenizer"))
    return sample_text(
        loaded.model,
        codec,
        prompt,
        count=count,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
