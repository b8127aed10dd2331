"""HellaSwag: which of four endings a model finds likeliest. By all ranks together; any world size gives one number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shardkit import ShardkitError, Tokenizer
from trainer.distributed import World, autocast, sum_over_ranks
from trainer.model import Model
from trainer.places import one_line

_GROUP_ITEMS = 8  # scored in one forward pass: 32 rows


class HellaSwagError(ShardkitError):
    """A HellaSwag file that cannot be read."""


@dataclass(frozen=True, slots=True)
class HellaSwagItem:
    """Four rows of tokens, each a context and an ending; where each ending begins; which one is right."""

    rows: list[list[int]]
    starts: list[int]
    label: int


def load_hellaswag(path: str, tokenizer: Tokenizer) -> list[HellaSwagItem]:
    """Read a HellaSwag `.jsonl`: `ctx`, `endings`, `label` a line. A file, a URL, or `hf://datasets/user/repo/file`."""
    import fsspec

    items: list[HellaSwagItem] = []
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            items.extend(_read_item(json.loads(line), tokenizer) for line in file if line.strip())
    except Exception as error:  # of the client of any place, and of what a line may hold
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise HellaSwagError(f"cannot read HellaSwag from {path}, line {len(items) + 1}: {reason}") from error
    if not items:
        raise HellaSwagError(f"{path} has no HellaSwag items: expected a JSON object a line")
    return items


def _read_item(data: dict[str, Any], tokenizer: Tokenizer) -> HellaSwagItem:
    context = tokenizer.encode_ordinary(data["ctx"])
    endings = [tokenizer.encode_ordinary(" " + ending) for ending in data["endings"]]
    return HellaSwagItem([context + ending for ending in endings], [len(context)] * len(endings), int(data["label"]))


def score_hellaswag(model: Model, items: list[HellaSwagItem], world: World, dtype: torch.dtype) -> tuple[float, float]:
    """Accuracy by the ending's summed loss, and by its mean loss a token (normalized)."""
    groups = [items[i : i + _GROUP_ITEMS] for i in range(0, len(items), _GROUP_ITEMS)]
    right = torch.zeros(len(groups), 2, dtype=torch.float64)
    for number in range(world.rank, len(groups), world.size):
        for label, sums, means in _score(model, groups[number], world.device, dtype):
            right[number, 0] += int(sums.argmin()) == label
            right[number, 1] += int(means.argmin()) == label
    plain, normalized = (sum_over_ranks(right, world).sum(0) / len(items)).tolist()
    return plain, normalized


def _score(
    model: Model, items: list[HellaSwagItem], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each item its label, and the summed and the mean loss of each ending.

    A row longer than the model is cut at its front.
    """
    longest = model.config.n_positions + 1
    rows = [
        (row[-longest:], start - max(0, len(row) - longest))
        for item in items
        for row, start in zip(item.rows, item.starts, strict=True)
    ]
    length = max(len(row) for row, _ in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in rows])  # int64 (rows, length)
    column = torch.arange(1, length)
    counted = torch.stack([(column >= max(1, start)) & (column < len(row)) for row, start in rows])
    with autocast(device, dtype):
        losses = model.token_losses(ids[:, :-1].to(device), ids[:, 1:].to(device)).cpu().double()
    sums = (losses * counted).sum(1)  # float64 (rows,)
    means = sums / counted.sum(1)
    first = 0
    for item in items:
        yield item.label, sums[first : first + len(item.rows)], means[first : first + len(item.rows)]
        first += len(item.rows)
