"""Files like FineWeb-Edu's for `bench_network`, of English prose that is on every machine with Python.

    python -m benchmarks.network_data --out FOLDER [--megabytes 2000]  # for bench_tokenize and bench_encoders

The prose is the docstrings of Python and of the installed packages. A document is paragraphs of it, drawn at random
until it has FineWeb-Edu's mean length: compressed and tokenized it takes what web pages take, within some percent, but
no paragraph is new for long. In "distinct" text one word in `NEW_WORDS` is a made-up one that never comes again, so
that caches meet new words to the end, as in web pages. Made once: a folder that is there already is used again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sysconfig
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.bench_hub import make_dataset
from shardkit.sources.sample import read_documents

DOCUMENT_BYTES = 4_400  # FineWeb-Edu's mean
GROUP_ROWS = 1_000  # of a row group, as there
WIDE_COLUMNS = 8  # beside the text, each as large as it
PACKAGES = ("numpy", "pandas", "huggingface_hub", "datasets", "pyarrow", "torch")
PROSE_BYTES = 3_000_000  # more would take longer to be found than to be fetched
NEW_WORDS = 100
_SYLLABLES = [f"{first}{vowel}{last}" for first in "bdfklmnprstvz" for vowel in "aeiou" for last in "nrlst"]


@cache
def paragraphs(most: int) -> list[str]:
    """Paragraphs of 200 characters or more, of the standard library and the installed packages: `most` bytes of them,
    if there are so many."""
    library, packages = (Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib"))
    folders = [library / "pydoc_data", *sorted(library.glob("*.py")), *(packages / name for name in PACKAGES)]
    found: list[str] = []
    size = 0
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
            if "tests" in path.parts:
                continue
            try:
                texts = read_documents(path)
            except (SyntaxError, ValueError, RecursionError):
                continue
            pieces = [piece for text in texts for piece in text.split("\n\n") if len(piece) >= 200]
            found += pieces
            size += sum(map(len, pieces))
            if size >= most:
                return found
    return found


def documents(pool: list[str], seed: int) -> Iterator[str]:
    """Documents without end; the same for the same seed."""
    rng = random.Random(seed)
    while True:
        wanted, parts, size = rng.expovariate(1 / DOCUMENT_BYTES), [], 0
        while size <= wanted:
            parts.append(rng.choice(pool))
            size += len(parts[-1]) + 2
        yield "\n\n".join(parts)


def with_new_words(texts: Iterable[str], seed: int) -> Iterator[str]:
    """`texts` with a made-up word in the place of every `NEW_WORDS`th; no word twice, nor under another seed."""
    count = 0

    def made_up() -> str:
        nonlocal count
        count += 1
        number, parts = (seed << 32) + count, []
        while number:
            number, place = divmod(number, len(_SYLLABLES))
            parts.append(_SYLLABLES[place])
        return "".join(parts)

    for text in texts:
        words = re.split(r"( )", text)
        for place in range(0, len(words), 2 * NEW_WORDS):
            words[place] = made_up()
        yield "".join(words)


def rows(texts: Iterable[str], seed: int) -> dict[str, list[object]]:
    """FineWeb-Edu's columns for these texts."""
    rng, columns = random.Random(seed), {"text": list[object](texts)}
    count = len(columns["text"])
    names = [uuid.UUID(int=rng.getrandbits(128)) for _ in range(count)]
    columns["id"] = [f"<urn:uuid:{name}>" for name in names]
    columns["dump"] = ["CC-MAIN-2024-10"] * count
    columns["url"] = [f"https://www.example.org/{name.hex[:12]}/article-{name.hex[12:]}.html" for name in names]
    columns["file_path"] = [f"s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/{seed}/warc/{seed}.warc.gz"] * count
    columns["language"] = ["en"] * count
    columns["language_score"] = [rng.random() for _ in range(count)]
    columns["token_count"] = [len(str(text)) // 4 for text in columns["text"]]
    columns["score"] = [2.5 + 2 * rng.random() for _ in range(count)]
    columns["int_score"] = [3] * count
    return columns


def write_parquet(
    path: Path, pool: list[str], seed: int, size: int, *, wide: bool = False, distinct: bool = False
) -> None:
    """A file of about `size` bytes in row groups of 1,000 rows, snappy; a wide one has large columns beside the text
    (and row groups a tenth as long)."""
    texts = documents(pool, seed)
    if distinct:
        texts = with_new_words(texts, seed + 1)
    writer = None
    try:
        while writer is None or path.stat().st_size < size:
            columns = rows(islice(texts, GROUP_ROWS // (10 if wide else 1)), seed)
            for number in range(WIDE_COLUMNS if wide else 0):
                columns[f"wide_{number}"] = list(islice(texts, len(columns["text"])))
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
            writer.write_table(table, row_group_size=len(table))
    finally:
        if writer is not None:
            writer.close()


def write_jsonl(path: Path, pool: list[str], seed: int, size: int) -> None:
    """Lines of about `size` bytes in all, compressed as the name says."""
    texts, written = documents(pool, seed), 0
    with _opened(path) as file:
        while written < size:
            line = json.dumps({"text": next(texts), "id": written}).encode() + b"\n"
            file.write(line)
            written += len(line)


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 6)
    return pa.CompressedOutputStream(str(path), "zstd") if path.suffix == ".zst" else path.open("wb")


def write_txt(path: Path, pool: list[str], seed: int, size: int) -> None:
    """One long document."""
    texts = documents(pool, seed)
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            file.write(next(texts) + "\n\n")


def make(folder: Path, name: str, files: int, size: int) -> Path:
    """The folder `name` below `folder`, with `files` files of about `size` bytes; made if it is not there."""
    place = folder / f"{name}-{files}x{size}"
    if place.exists():
        return place
    partial = place.with_name(f"{place.name}.partial-{uuid.uuid4().hex[:8]}")
    if name == "shards":
        make_dataset(partial, files, size)
    else:
        partial.mkdir(parents=True)
        pool = paragraphs(PROSE_BYTES)
        for number in range(files):
            MAKERS[name](partial, pool, number, size)
    partial.rename(place)
    return place


MAKERS: dict[str, Callable[[Path, list[str], int, int], None]] = {
    "parquet": lambda place, pool, number, size: write_parquet(place / f"{number:03}.parquet", pool, number, size),
    "distinct": lambda place, pool, number, size: write_parquet(
        place / f"{number:03}.parquet", pool, number, size, distinct=True
    ),
    "wide": lambda place, pool, number, size: write_parquet(
        place / f"{number:03}.parquet", pool, number, size, wide=True
    ),
    **{
        kind: lambda place, pool, number, size, kind=kind: write_jsonl(  # type: ignore[misc]
            place / f"{number:03}.{kind}", pool, number, size
        )
        for kind in ("jsonl", "jsonl.gz", "jsonl.zst")
    },
    "txt": lambda place, pool, number, size: write_txt(place / f"{number:03}.txt", pool, number, size),
}


def text_column_bytes(folder: Path) -> int:
    """Compressed bytes of the text column of a folder's parquet files."""
    total = 0
    for path in folder.glob("*.parquet"):
        meta = pq.ParquetFile(path).metadata
        total += sum(meta.row_group(group).column(0).total_compressed_size for group in range(meta.num_row_groups))
    return total


def main(arguments: list[str] | None = None) -> Path:
    """Parse, write; returns the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=2_000, help="of text; the files take half as much")
    args = parser.parse_args(arguments)
    files = max(1, round(args.megabytes / 200))
    folder = make(args.out, "distinct", files, int(args.megabytes * 5e5 / files))
    print(folder)
    return folder


if __name__ == "__main__":
    main()
