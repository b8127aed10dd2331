"""The shards of a merge, made one after the other of ranges of the parts' tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shardkit.dataset.manifest import ShardInfo
from shardkit.dataset.shards import DTYPES, ShardWriter, shard_blocks
from shardkit.tokenization.merge_plan import MergePlan

Tell = Callable[[str, int, int], None]


def merged_shards(
    plan: MergePlan, numbers: Sequence[int], temp: Path, folder: Path, tell: Tell | None
) -> Iterator[ShardInfo]:
    """Make the shards of those `numbers` in `folder`, in order, each by way of the file `temp`. `tell` hears how far
    this is.

    Which document is a shard's first is known when all are made. Raises as `MergePlan.sources` does, and `OutputError`.
    """
    dtype = DTYPES[plan.dtype]
    done, total = 0, sum(plan.lengths[number] for number in numbers) * dtype.itemsize
    plan.expect(numbers)
    for number in numbers:
        file, documents = plan.shape.shard_file(number), 0
        writer = ShardWriter(temp, dtype, plan.lengths[number])
        try:
            for source, begin, end in plan.sources(number):
                for block in shard_blocks(source.path, begin, end):
                    writer.write(block)
                    documents += int(np.count_nonzero(block == plan.eot_id))
                    done += block.nbytes
                    if tell is not None:
                        tell(file, done, total)
            made = writer.finish(folder / file)
        except BaseException:
            writer.abort()
            raise
        yield ShardInfo(
            file=file,
            split=plan.shape.split(number),
            index=number,
            tokens=made.tokens,
            documents=documents,
            first_document=0,
            sha256=made.sha256,
            bytes=made.bytes,
        )
