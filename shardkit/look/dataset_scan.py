"""One pass over a dataset's shards, for its report: every token is read once, and memory does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import MEND, read_header
from shardkit.errors import ShardError
from shardkit.look.document_figures import DocumentCounter
from shardkit.look.layout_figures import LayoutCounter, LayoutFigures
from shardkit.look.opened import OpenedDataset
from shardkit.remote.uploader import TransferProgress

SEQ_LENS = (1024, 2048, 8192)
_BLOCK_BYTES = 1 << 20
_MOST_IDS = 1 << 22  # of which the occurrences are counted one by one


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetScan:
    """What was found in `shards` (all of the manifest's, or a sample): how often each id occurs (`beyond`: ids that the
    vocabulary does not have, or too large to be counted), the documents, and the layouts of the `split`. Without a
    known EOT id there are no documents and no layouts."""

    shards: tuple[ShardInfo, ...]
    tokens: int
    counts: NDArray[np.int64]
    beyond: int
    documents: DocumentCounter | None
    split: str
    layouts: tuple[LayoutFigures, ...]


def chosen_shards(manifest: Manifest, sample: float | None) -> list[ShardInfo]:
    """All shards, or about that share of them, at equal distances, at least one."""
    shards = manifest.shards
    if sample is None:
        return list(shards)
    count = max(1, round(sample * len(shards)))
    return [shards[(2 * number + 1) * len(shards) // (2 * count)] for number in range(count)]


def scan_dataset(
    dataset: OpenedDataset, eot_id: int | None, sample: float | None, tell: TransferProgress | None
) -> DatasetScan:
    """Read the chosen shards front to back. Raises `ShardError`, and `HubError` for one that cannot be had."""
    manifest, shards = dataset.manifest, chosen_shards(dataset.manifest, sample)
    vocabulary = manifest.tokenizer.vocab_size if manifest.tokenizer else 1 << 16
    counter = _Counter(min(vocabulary, _MOST_IDS), eot_id, sum(shard.documents for shard in shards))
    splits = [shard.split for shard in shards]
    split = "train" if "train" in splits else splits[0]
    dataset.threads(shards)  # whether there is room for one
    done, total = 0, sum(shard.bytes for shard in shards)
    before: ShardInfo | None = None
    for shard in shards:
        if before is None or shard.index != before.index + 1:
            counter.jump(shard.first_document)
        _read(dataset, shard, counter, in_layouts=shard.split == split)
        before, done = shard, done + shard.bytes
        if tell is not None:
            tell(shard.file, done, total)
    return counter.result(tuple(shards), split)


def _read(dataset: OpenedDataset, shard: ShardInfo, counter: _Counter, *, in_layouts: bool) -> None:
    buffer, tokens = bytearray(_BLOCK_BYTES), 0
    with dataset.shard(shard) as file:
        header = read_header(file, dataset.place_of(shard))
        file.seek(header.bytes)
        while count := file.readinto(buffer):
            block = np.frombuffer(buffer, header.dtype, count // header.dtype.itemsize)
            counter.add(block, in_layouts=in_layouts)
            tokens += len(block)
    if tokens != shard.tokens:
        raise ShardError(f"{dataset.place_of(shard)} ends early: it was cut short while it was read, {MEND}")


class _Counter:
    def __init__(self, ids: int, eot_id: int | None, documents: int) -> None:
        self._counts = np.zeros(ids + 1, np.int64)  # the last one is of all that are beyond
        self._eot_id = eot_id
        self._documents = DocumentCounter(documents)
        self._layouts = LayoutCounter(SEQ_LENS)
        self._tokens = self._in_layouts = 0

    def jump(self, documents: int) -> None:
        self._documents.jump(documents)

    def add(self, block: NDArray[np.unsignedinteger], *, in_layouts: bool) -> None:
        most = len(self._counts) - 1
        fits = most > np.iinfo(block.dtype).max
        self._counts += np.bincount(block if fits else np.minimum(block, most), minlength=most + 1)
        self._tokens += len(block)
        if self._eot_id is None:
            return
        starts = np.flatnonzero(block == self._eot_id)
        self._documents.add(block, starts)
        if in_layouts:
            self._layouts.add(starts + self._in_layouts)
            self._in_layouts += len(block)

    def result(self, shards: tuple[ShardInfo, ...], split: str) -> DatasetScan:
        known = self._eot_id is not None
        self._documents.end()
        return DatasetScan(
            shards=shards,
            tokens=self._tokens,
            counts=self._counts[:-1],
            beyond=int(self._counts[-1]),
            documents=self._documents if known else None,
            split=split,
            layouts=tuple(self._layouts.figures(self._in_layouts)) if known else (),
        )
