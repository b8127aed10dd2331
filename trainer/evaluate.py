"""Validation loss and HellaSwag, by all ranks together, the same number at any world size and micro-batch.

Work comes in groups of a fixed shape; group `g` goes to rank `g % world_size`; each group's sum takes its place in a
vector that is added over the ranks (every place has one non-zero term) and summed in order. So no rounding depends on
who computed what. The model here is never the compiled one: other shapes would make it compile again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shardkit import Manifest, ShardkitError, ShardLoader, Tokenizer, UsageError, open_shard
from trainer.distributed import World, autocast, choose_precision, find_world, finish, start, sum_over_ranks
from trainer.export import open_model
from trainer.model import Model

_GROUP_WINDOWS = 8
_GROUP_ITEMS = 8


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
        """Inputs, targets and positions `(8, seq_len)` of one group, the last one filled up; how many rows count."""
        first = number * _GROUP_WINDOWS
        starts = np.minimum(np.arange(first, first + _GROUP_WINDOWS), self.windows - 1) * self.seq_len
        rows = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.seq_len + 1)].astype(np.int64))
        inputs, targets, count = rows[:, :-1], rows[:, 1:], min(_GROUP_WINDOWS, self.windows - first)
        if self.eot_id is None:
            return inputs, targets, None, count
        place = torch.arange(self.seq_len).expand_as(inputs)
        begins = place.where(inputs == self.eot_id, 0).cummax(1).values
        return inputs, targets, place - begins, count

    def count_bytes(self, tokenizer: Tokenizer) -> int:
        """Bytes of UTF-8 in the targets; an end of text counts none."""
        targets = self.tokens[1 : self.windows * self.seq_len + 1]
        return len(tokenizer.decode(targets[targets != tokenizer.eot_id].tolist()).encode())


def open_val_range(manifest: Manifest, *, tokens: int, seq_len: int, eot_id: int | None = None) -> ValRange:
    """The first `tokens` tokens of the val split, in whole windows. Raises `UsageError` where there is not one."""
    directory = manifest.directory or Path()
    parts, have = [], 0
    for shard in manifest.splits.get("val", []):
        if have <= tokens:
            parts.append(open_shard(directory / shard.file)[: tokens + 1 - have])
            have += len(parts[-1])
    windows = (have - 1) // seq_len
    if windows < 1:
        raise UsageError(
            f"{directory} has {have:,} tokens in split 'val', --val-tokens is {tokens:,}: a window of {seq_len:,} "
            f"needs {seq_len + 1:,}; tokenize with --val-shards 1, or train with --val-every 0"
        )
    found = np.concatenate(parts)[: windows * seq_len + 1]
    return ValRange(tokens=found, windows=windows, seq_len=seq_len, eot_id=eot_id)


def validate(model: Model, val: ValRange, world: World, dtype: torch.dtype) -> float:
    """The mean loss over `val`, in nats a token."""
    groups = -(-val.windows // _GROUP_WINDOWS)
    sums = torch.zeros(groups, dtype=torch.float64)
    for number in range(world.rank, groups, world.size):
        inputs, targets, positions, rows = val.group(number)
        places = None if positions is None else positions.to(world.device)
        with autocast(world.device, dtype):
            losses = model.token_losses(inputs.to(world.device), targets.to(world.device), places)
        sums[number] = losses[:rows].cpu().double().sum()
    return float(_over_ranks(sums, world).sum()) / (val.windows * val.seq_len)


def bits_per_byte(loss: float, val: ValRange, text_bytes: int) -> float:
    """`loss`, in nats a token over `val`, as bits a byte of its text."""
    return loss * val.windows * val.seq_len / math.log(2) / text_bytes


@dataclass(frozen=True, slots=True)
class HellaSwagItem:
    """Four rows of tokens, context and ending; where each ending begins; which one is right."""

    rows: list[list[int]]
    starts: list[int]
    label: int


def load_hellaswag(path: str, tokenizer: Tokenizer) -> list[HellaSwagItem]:
    """Read a HellaSwag `.jsonl`: `ctx`, `endings`, `label` a line. A file, a URL, or `hf://datasets/user/repo/file`."""
    import fsspec

    items = []
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    data = json.loads(line)
                    context = tokenizer.encode_ordinary(data["ctx"])
                    endings = [tokenizer.encode_ordinary(" " + ending) for ending in data["endings"]]
                    items.append(
                        HellaSwagItem([context + e for e in endings], [len(context)] * len(endings), int(data["label"]))
                    )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise HellaSwagError(f"cannot read HellaSwag from {path}, line {len(items) + 1}: {error!r}") from error
    if not items:
        raise HellaSwagError(f"{path} has no HellaSwag items: expected a JSON object a line")
    return items


class HellaSwagError(ShardkitError):
    """A HellaSwag file that cannot be read."""


def score_hellaswag(model: Model, items: list[HellaSwagItem], world: World, dtype: torch.dtype) -> tuple[float, float]:
    """Accuracy by the ending's summed loss, and by its mean loss a token (normalized)."""
    groups = [items[i : i + _GROUP_ITEMS] for i in range(0, len(items), _GROUP_ITEMS)]
    right = torch.zeros(len(groups), 2, dtype=torch.float64)
    for number in range(world.rank, len(groups), world.size):
        for label, sums, means in _score(model, groups[number], world.device, dtype):
            right[number, 0] += int(sums.argmin()) == label
            right[number, 1] += int(means.argmin()) == label
    plain, normalized = (_over_ranks(right, world).sum(0) / len(items)).tolist()
    return plain, normalized


def _score(
    model: Model, items: list[HellaSwagItem], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each item its label, and the summed and the mean loss of each ending."""
    most = model.config.n_positions + 1
    rows = [
        (row[-most:], start - max(0, len(row) - most))
        for i in items
        for row, start in zip(i.rows, i.starts, strict=True)
    ]
    length = max(len(row) for row, _ in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])
    place = torch.arange(1, length)
    counted = torch.stack([(place >= max(1, start)) & (place < len(row)) for row, start in rows])
    with autocast(device, dtype):
        losses = model.token_losses(ids[:, :-1].to(device), ids[:, 1:].to(device)).cpu().double()
    sums = (losses * counted).sum(1)
    means = sums / counted.sum(1)
    first = 0
    for item in items:
        yield item.label, sums[first : first + len(item.rows)], means[first : first + len(item.rows)]
        first += len(item.rows)


def _over_ranks(values: Tensor, world: World) -> Tensor:
    """The sum of a float64 CPU tensor over the ranks, on the CPU."""
    return values if world.size == 1 else sum_over_ranks(values.to(world.device)).cpu()


def unigram_entropy(manifest: Manifest, *, most_tokens: int = 20_000_000) -> float:
    """Entropy in nats of single tokens at the start of the train split: what a model of frequencies alone can reach."""
    counts = np.zeros(1, dtype=np.int64)
    for shard in manifest.splits["train"]:
        part = open_shard((manifest.directory or Path()) / shard.file)[: most_tokens - int(counts.sum())]
        fresh = np.bincount(part, minlength=len(counts))
        fresh[: len(counts)] += counts
        counts = fresh
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
    config = json.loads(loaded.state["config"]) if loaded.state else {}
    words = Tokenizer(tokenizer or loaded.state.get("tokenizer", "gpt2"))
    result: dict[str, float] = {"step": loaded.state["step"]} if loaded.state else {}
    folder = data or (Path(config["data"]) if config else None)
    if folder is None and hellaswag is None:
        raise UsageError(f"{run} does not say what it was trained on: give --data or --hellaswag")
    if folder is not None:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}: give --data, a folder of shards (`shardkit pull` fetches one)"
            )
        with ShardLoader(folder, batch_size=1, seq_len=1) as probe:
            manifest = probe.manifest
        tokens = val_tokens or config.get("val_tokens", 10_485_760)
        eot_id = words.eot_id if config.get("document_mask") else None
        val = open_val_range(manifest, tokens=tokens, seq_len=loaded.model.config.n_positions, eot_id=eot_id)
        result["val_loss"] = validate(loaded.model, val, world, dtype)
        result["val_tokens"] = val.windows * val.seq_len
        result["bits_per_byte"] = bits_per_byte(result["val_loss"], val, val.count_bytes(words))
    if hellaswag is not None:
        items = load_hellaswag(hellaswag, words)
        result["hellaswag"], result["hellaswag_norm"] = score_hellaswag(loaded.model, items, world, dtype)
    finish()
    return result
