"""What a loader gives: tensors by name, to be unpacked in order."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from typing_extensions import TypeVar


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


BatchType = TypeVar("BatchType", bound=Batch | DocumentBatch, default=Batch, covariant=True)


def batch_of(tensors: list[Tensor]) -> Batch | DocumentBatch:
    """The batch of inputs and targets, and of `cu_seqlens` and `position_ids` where they are given too."""
    inputs, targets, *documents = tensors
    if not documents:
        return Batch(inputs, targets)
    cu_seqlens, position_ids = documents
    return DocumentBatch(inputs, targets, Documents(cu_seqlens, inputs.shape[1], position_ids))


def tensors_of(batch: Batch | DocumentBatch) -> list[Tensor]:
    """Every tensor in `batch`."""
    if isinstance(batch, Batch):
        return [batch.inputs, batch.targets]
    return [batch.inputs, batch.targets, batch.documents.cu_seqlens, batch.documents.position_ids]
