"""What a loader gives: tensors by name, to be unpacked in order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypeVar

from shardkit.errors import UsageError


class Documents(NamedTuple):
    """Where the documents of a batch lie, as variable-length attention wants it: of the same shapes in every batch.

    `cu_seqlens`, int32 `(M + 1,)`: where each segment starts in the rows laid end to end, then `batch_size * seq_len`
    up to the end; a row, a document and padding begin a segment. `max_seqlen` is `seq_len`. `position_ids`, int64
    `(batch_size, seq_len)`, count from 0 in each segment.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor


class Batch(NamedTuple):
    """`inputs, targets = batch`: int64, each `(batch_size, seq_len)`, contiguous, each in memory of its own."""

    inputs: Tensor
    targets: Tensor


class DocumentBatch(NamedTuple):
    """`inputs, targets, documents = batch`: a `Batch` of a loader with `documents=True`, and where they lie."""

    inputs: Tensor
    targets: Tensor
    documents: Documents


BatchType = TypeVar("BatchType", bound=Batch | DocumentBatch | dict[str, Tensor], default=Batch, covariant=True)
_FORMATS = ("tuple", "dict")
_NO_LABEL = -100  # what a `transformers` model leaves out


def batch_of(tensors: list[Tensor]) -> Batch | DocumentBatch:
    """The batch of inputs and targets, and of `cu_seqlens` and `position_ids` where they are given too."""
    inputs, targets, *documents = tensors
    if not documents:
        return Batch(inputs, targets)
    cu_seqlens, position_ids = documents
    return DocumentBatch(inputs, targets, Documents(cu_seqlens, inputs.shape[1], position_ids))


def check_format(name: str) -> str:
    """`name`, if it is one of a loader's formats. Raises `UsageError`."""
    if name not in _FORMATS:
        raise UsageError(f"format is {name!r}: expected one of {', '.join(_FORMATS)}")
    return name


def dict_of(batch: Batch | DocumentBatch) -> dict[str, Tensor]:
    """The batch as keyword arguments of a `transformers` model: `input_ids`, `labels` and `shift_labels`.

    These models shift `labels` themselves, so the label of each place is the token at it, and of the first one none;
    `shift_labels` are the targets as they are, which count instead where a model knows them: the last one of a row too.
    A `DocumentBatch` has `position_ids` as well.
    """
    inputs, targets = batch.inputs, batch.targets
    labels = torch.cat([targets.new_full((len(targets), 1), _NO_LABEL), targets[:, :-1]], dim=1)
    made = {"input_ids": inputs, "labels": labels, "shift_labels": targets}
    return made if isinstance(batch, Batch) else {**made, "position_ids": batch.documents.position_ids}


def tensors_of(batch: Batch | DocumentBatch) -> list[Tensor]:
    """Every tensor in `batch`."""
    if isinstance(batch, Batch):
        return [batch.inputs, batch.targets]
    return [batch.inputs, batch.targets, batch.documents.cu_seqlens, batch.documents.position_ids]
