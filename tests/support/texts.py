"""Documents for tests: real English from the built-in sample, and the awkward ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shardkit.sources.sample import read_documents, sample_source
from shardkit.sources.source import ReadOptions

AWKWARD: list[str | None] = [
    None,
    "",
    " ",
    "\n",
    "a\0b\0",
    "x<|endoftext|>y",
    "naïve café",
    "日本語テキスト",
    "\U0001f600" * 3,
    "\u2028\ufeff",
    "'s 'LL",
    "a" * 20_000,
    "ab " * 7_000,
    "\r\n\r\n\t  x",
    "١٢٣ ⅷ",
    "1234567890" * 50,
]


@cache
def prose(count: int) -> tuple[str, ...]:
    """The first `count` documents of the built-in sample."""
    found: list[str] = []
    for file in sample_source(ReadOptions()).files:
        found += read_documents(Path(file.url))
        if len(found) >= count:
            break
    return tuple(found[:count])


def documents(count: int) -> list[str | None]:
    """`count` documents of prose with every awkward one among them."""
    texts: list[str | None] = list(prose(count))
    for number, awkward in enumerate(AWKWARD):
        texts.insert((number * 37) % len(texts), awkward)
    return texts


def write_parquet(path: Path, texts: list[str | None], *, rows: int = 50) -> Path:
    """A parquet file with a `text` column and others beside it, in row groups of `rows`."""
    table = pa.table({"id": [str(i) for i in range(len(texts))], "text": pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=rows)
    return path
