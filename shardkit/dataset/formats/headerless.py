"""`.npy` files that are none: ids and nothing else, as Dolma's tokenizer writes them and OLMo maps them.

One EOT after each document (`python/dolma/tokenizer/tokenizer.py`, `add_special_tokens`). Nothing says the dtype
(`memmap_dtype` of `olmo/data/memmap_dataset.py`, uint16 if not given), so it must be given. Read only.
"""

from __future__ import annotations

from pathlib import Path

from shardkit.dataset.formats.interface import Given, Reading
from shardkit.dataset.formats.nanogpt import headerless_reading
from shardkit.dataset.formats.npy import has_header
from shardkit.dataset.formats.raw_tokens import raw_file
from shardkit.dataset.shards import DTYPES
from shardkit.errors import UsageError


def recognizes(path: Path) -> bool:
    """An `.npy` file without a header, or a folder of them."""
    return any(not has_header(file) for file in _files(path))


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.npy")) if path.is_dir() else [path] if path.is_file() and path.suffix == ".npy" else []


def read(path: Path, given: Given) -> Reading:
    """All of them as split train, in the order of their names. Raises `UsageError` without a dtype, `ShardError`."""
    if given.dtype is None:
        raise UsageError(
            f"{_files(path)[0]} has no .npy header: ids and nothing else, as Dolma and OLMo write them. Nothing in it "
            "says how long an id is: give --dtype=uint16 (a vocabulary of up to 65,536 ids) or --dtype=uint32"
        )
    dtype = DTYPES[given.dtype]
    return headerless_reading(path, given, [raw_file("train", file, dtype) for file in _files(path)])
