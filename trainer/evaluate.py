"""Validation loss over a pinned range, by all ranks together, the same number at any world size and micro-batch.

Rank `r` computes the groups `g` of 8 windows with `g % world_size == r`. The sum of group `g` is element `g` of a
vector, 0 on the other ranks; the vectors are added over the ranks, then summed in order. So no rounding depends on who
computed what. The model here is never the compiled one: other shapes would make it compile again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shardkit import Manifest, Tokenizer, UsageError, open_shard
from trainer.distributed import World, autocast, check_same, choose_precision, find_world, finish, start, sum_over_ranks
from trainer.export import open_model, tokenizer_of
from trainer.hellaswag import load_hellaswag, score_hellaswag
from trainer.model import Model
from trainer.places import places_beside

GROUP_WINDOWS = 8  # in one forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class ValRange:
    """A pinned range of the val split: its first `windows * seq_len + 1` tokens.

    With `eot_id` no document in a window sees another, as in training with the mask.
    """

    tokens: NDArray[np.unsignedinteger]
    windows: int
    seq_len: int
    eot_id: int | None = None

    def group(self, number: int) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Inputs, targets and positions, int64 `(8, seq_len)`, of one group, and how many of its rows count.

        The last group is filled up with its last window. Positions, None without `eot_id`, count from 0 in a document.
        """
        first = number * GROUP_WINDOWS
        starts = np.minimum(np.arange(first, first + GROUP_WINDOWS), self.windows - 1) * self.seq_len
        rows = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64))
        inputs, targets, count = rows[:, :-1], rows[:, 1:], min(GROUP_WINDOWS, self.windows - first)
        if self.eot_id is None:
            return inputs, targets, None, count
        column = torch.arange(self.seq_len).expand_as(inputs)
        begins = column.where(inputs == self.eot_id, 0).cummax(1).values
        return inputs, targets, column - begins, count

    def count_bytes(self, tokenizer: Tokenizer) -> int:
        """Bytes of UTF-8 in the targets; an end of text counts none."""
        targets = self.tokens[1 : self.windows * self.seq_len + 1]
        return len(tokenizer.decode(targets[targets != tokenizer.eot_id].tolist()).encode())


def open_val_range(manifest: Manifest, *, tokens: int, seq_len: int, eot_id: int | None = None) -> ValRange:
    """The first `tokens` tokens of the val split, in whole windows. Raises `UsageError` where there is not one."""
    directory = manifest.directory or Path()
    parts, available = [], 0
    for shard in manifest.splits.get("val", []):
        if available <= tokens:
            parts.append(open_shard(directory / shard.file)[: tokens + 1 - available])
            available += len(parts[-1])
    windows = (available - 1) // seq_len
    if windows < 1:
        raise UsageError(
            f"{directory} has {available:,} tokens in split 'val', --val-tokens is {tokens:,}: a window of {seq_len:,} "
            f"needs {seq_len + 1:,}; train with a shorter --seq-len or with --val-every 0, or tokenize more text"
        )
    pinned = np.concatenate(parts)[: windows * seq_len + 1]
    return ValRange(tokens=pinned, windows=windows, seq_len=seq_len, eot_id=eot_id)


def validate(model: Model, val: ValRange, world: World, dtype: torch.dtype) -> float:
    """The mean loss over `val`, in nats a token."""
    groups = -(-val.windows // GROUP_WINDOWS)
    sums = torch.zeros(groups, dtype=torch.float64)
    for number in range(world.rank, groups, world.size):
        inputs, targets, positions, rows = val.group(number)
        inputs, targets = inputs.to(world.device), targets.to(world.device)
        positions = None if positions is None else positions.to(world.device)
        with autocast(world.device, dtype):
            losses = model.token_losses(inputs, targets, positions)  # float32 (8, seq_len)
        sums[number] = losses[:rows].cpu().double().sum()
    return float(sum_over_ranks(sums, world).sum()) / (val.windows * val.seq_len)


def bits_per_byte(loss: float, val: ValRange, text_bytes: int) -> float:
    """`loss`, in nats a token over `val`, as bits a byte of its text."""
    return loss * val.windows * val.seq_len / math.log(2) / text_bytes


def unigram_entropy(manifest: Manifest, *, most_tokens: int = 20_000_000) -> float:
    """Entropy in nats of single tokens at the start of the train split: what a model of frequencies alone can reach."""
    counts = np.zeros(1, dtype=np.int64)
    for shard in manifest.splits["train"]:
        part = open_shard((manifest.directory or Path()) / shard.file)[: most_tokens - int(counts.sum())]
        total = np.bincount(part, minlength=len(counts))
        total[: len(counts)] += counts
        counts = total
        if counts.sum() >= most_tokens:
            break
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def evaluate_run(
    run: Path,
    *,
    which: str,
    device: str,
    data: Path | None,
    val_tokens: int | None,
    hellaswag: str | None,
    tokenizer: str | None,
    precision: str,
) -> dict[str, float]:
    """What a run, a checkpoint or an export is worth; by all ranks under torchrun."""
    world = find_world(device)
    start(world)
    dtype = choose_precision(precision, world.device)
    loaded = open_model(run, which=which, device=world.device)
    config, places = json.loads(loaded.state["config"]) if loaded.state else {}, places_beside(run)
    folder = data or (Path(places["data"]) if "data" in places else None)
    if folder is None and hellaswag is None:
        raise UsageError(f"{run} does not say what it was trained on: give --data or --hellaswag")
    manifest = None if folder is None else _manifest(folder)
    codec = tokenizer_of(loaded, manifest, tokenizer or places.get("tokenizer"))
    if world.size > 1:
        fingerprint = manifest.fingerprint if manifest else ""
        facts = {"the model of checksum": loaded.model.checksum(), "the dataset of fingerprint": fingerprint}
        check_same(facts, world, place=f"{run}, {folder}")
    result: dict[str, float] = {"step": loaded.state["step"]} if loaded.state else {}
    if manifest is not None:
        tokens = val_tokens or config.get("val_tokens", 10_485_760)
        eot_id = codec.eot_id if config.get("document_mask") else None
        val = open_val_range(manifest, tokens=tokens, seq_len=loaded.model.config.n_positions, eot_id=eot_id)
        loss = validate(loaded.model, val, world, dtype)
        result["val_loss"], result["val_tokens"] = loss, val.windows * val.seq_len
        result["bits_per_byte"] = bits_per_byte(loss, val, val.count_bytes(codec))
    if hellaswag is not None:
        items = load_hellaswag(hellaswag, codec)
        result["hellaswag"], result["hellaswag_norm"] = score_hellaswag(loaded.model, items, world, dtype)
    finish()
    return result


def _manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: give --data, a folder of shards (`shardkit pull` fetches one)")
    return Manifest.of_folder(folder)
