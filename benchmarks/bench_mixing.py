"""How well batches mix a source that is sorted by topic: streamed span by span, from a copy, and as it was before.

    python -m benchmarks.bench_mixing [--shards 64] [--shard-rows 256] [--topics 8] [--batch-size 16] [--spans 4 8 16]

Each shard of the made dataset is of one topic, and the topics come one after the other: the worst case. Of the shares
that topics have in a batch, over `--epochs` epochs:

- lag 1, lag of an epoch: the autocorrelation, over all topics. 0 for independent batches.
- variance: as a multiple of that of batches drawn at random from the whole source.

Contestants: `copy` has no spans, `copy N` and `stream N` have spans of N shards (the same batches, one from a folder,
the other through a bounded cache), `neighbours N` are spans of N neighbouring shards, as order 1 of spans was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.files import sha256_file
from shardkit.loader.loader import ShardLoader
from shardkit.remote.streaming.folder import small_bytes

SEQ_LEN = 32


class Mixing(NamedTuple):
    """The figures of one contestant."""

    lag_1: float
    lag_epoch: float
    variance: float


def write_sorted(folder: Path, *, shards: int, shard_rows: int, topics: int) -> Manifest:
    """A dataset whose tokens are the number of their shard's topic; seam rows are there too."""
    folder.mkdir()
    infos = []
    for index in range(shards):
        tokens = shard_rows * SEQ_LEN + 1
        path = folder / f"sorted_train_{index:06d}.npy"
        np.save(path, np.full(tokens, index * topics // shards, "<u2"))
        infos.append(
            ShardInfo(
                file=path.name,
                split="train",
                index=index,
                tokens=tokens,
                documents=0,
                first_document=0,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
    manifest = Manifest(dtype="uint16", tokens_per_shard=shard_rows * SEQ_LEN + 1, shards=tuple(infos))
    manifest.save(folder)
    return manifest


def topics_of(loader: ShardLoader[Any], batches: int) -> NDArray[np.int64]:
    """The topic of each row: `(batches, batch_size)`."""
    with loader:
        return np.stack([loader.next_batch()[0][:, 0].numpy() for _ in range(batches)])


def neighbours(rows: NDArray[np.int64], span_rows: int, batches: int, batch_size: int) -> NDArray[np.int64]:
    """The same of spans of neighbouring `rows`, in the same order in every epoch."""
    rng = np.random.default_rng(0)

    def endless() -> Iterator[int]:
        while True:
            for first in range(0, len(rows), span_rows):
                yield from rng.permutation(rows[first : first + span_rows]).tolist()

    return np.array(list(islice(endless(), batches * batch_size))).reshape(batches, batch_size)


def mixing(topics: NDArray[np.int64], *, count: int, epoch: int) -> Mixing:
    """The figures of `topics`, `(batches, batch_size)`, of which there are `count`; an epoch has `epoch` batches."""
    shares = np.stack([(topics == topic).mean(1) for topic in range(count)], axis=1)
    means = shares.mean(0)
    away = shares - means
    variance = (away**2).mean(0).sum()
    drawn = (means * (1 - means)).sum() / topics.shape[1]

    def correlation(lag: int) -> float:
        return float((away[:-lag] * away[lag:]).mean(0).sum() / variance)

    return Mixing(correlation(1), correlation(epoch), float(variance / drawn))


def measure(
    work: Path, *, shards: int, shard_rows: int, topics: int, batch_size: int, spans: Sequence[int], epochs: int
) -> Iterator[tuple[str, Mixing]]:
    """Each contestant's name and figures."""
    manifest = write_sorted(work / "data", shards=shards, shard_rows=shard_rows, topics=topics)
    options: dict[str, Any] = {"batch_size": batch_size, "seq_len": SEQ_LEN}
    copy = ShardLoader(work / "data", **options)
    epoch = copy.steps_per_epoch
    batches = epochs * epoch
    room = small_bytes(manifest) + shards * 512

    def figures(found: NDArray[np.int64]) -> Mixing:
        return mixing(found, count=topics, epoch=epoch)

    yield "copy", figures(topics_of(copy, batches))
    rows = np.arange(copy.windows_per_epoch) * topics // copy.windows_per_epoch
    for span in spans:
        yield f"neighbours {span}", figures(neighbours(rows, span * shard_rows, batches, batch_size))
        local = topics_of(ShardLoader(work / "data", span=span, **options), batches)
        yield f"copy {span}", figures(local)
        bound = room + (2 * span + 1) * manifest.shards[0].bytes
        remote = (work / "data").as_uri()
        stream = ShardLoader(remote, span=span, cache=work / f"cache{span}", cache_bytes=bound, **options)
        streamed = topics_of(stream, batches)
        if not np.array_equal(streamed, local):
            raise AssertionError(f"span {span}: the stream's batches are not the copy's")
        yield f"stream {span}", figures(streamed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--topics", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--spans", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--epochs", type=int, default=4)
    options = vars(parser.parse_args())
    print("| | lag 1 | lag of an epoch | variance |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for name, found in measure(Path(work), **options):
            print(f"| {name} | {found.lag_1:.2f} | {found.lag_epoch:.2f} | {found.variance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
