"""nanoGPT's `train.bin` and `val.bin`: uint16 ids and nothing else, one EOT after each document.

As its `data/openwebtext/prepare.py` writes them (`ids.append(enc.eot_token)`) and `train.py` maps them (`np.uint16`).
`train.py` takes the size of the vocabulary from `meta.pkl` where there is one, else GPT-2's; it is written here for
other vocabularies, and never read: a pickle runs what it holds.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np

from shardkit.dataset.bin_files import BARE_NAMES, bin_files, is_llmc
from shardkit.dataset.formats.eot import eot_after
from shardkit.dataset.formats.interface import Blocks, Given, Reading, Shape
from shardkit.dataset.formats.raw_tokens import RawWriter, TokenFile, file_blocks, moved, raw_file
from shardkit.dataset.shards import DTYPES
from shardkit.errors import ShardkitWarning, UsageError
from shardkit.files import atomic_write

GPT2_IDS = 50_257


def recognizes(path: Path) -> bool:
    """A folder with `train.bin` or `val.bin`, or such a file, without a header and without an `.idx` beside it."""
    return bool(_files(path))


def _files(path: Path) -> list[tuple[str, Path]]:
    found = [file.path for file in bin_files(path)] if path.is_dir() else [path] if path.is_file() else []
    return [(file.stem, file) for file in found if file.name in BARE_NAMES and not is_llmc(file)]


def read(path: Path, given: Given) -> Reading:
    """Both files, val first. Raises `ShardError`. Warns where nobody says which id is the EOT: then no token moves."""
    dtype = DTYPES[given.dtype or "uint16"]
    found = dict(_files(path))
    splits = given.lengths if given.lengths is not None else found
    files = [raw_file(split, found[split], dtype) for split in splits if split in found]
    return headerless_reading(path, given, files)


def headerless_reading(path: Path, given: Given, files: list[TokenFile]) -> Reading:
    """A reading of files without headers, with one EOT after each document."""
    dtype = DTYPES[files[0].dtype.name] if files else DTYPES["uint16"]
    if given.eot_id is None and given.lengths is None:
        warnings.warn(
            f"nothing says which token ends a document in {path}: the tokens stay as they are, and no documents are "
            "known; --tokenizer NAME or --eot-id NUMBER says it",
            ShardkitWarning,
            stacklevel=5,
        )
    return Reading(
        dtype=dtype,
        tokens=sum(file.tokens for file in files),
        blocks=moved(partial(file_blocks, files, dtype), given, sum(file.tokens for file in files), path),
        eot_id=given.eot_id,
        manifest=given.manifest,
    )


def write(reading: Reading, blocks: Blocks, folder: Path, shape: Shape) -> None:
    """A file a split, and `meta.pkl` for a vocabulary that is not GPT-2's. Raises `OutputError`, and `UsageError` for
    ids that are no uint16."""
    if reading.dtype != np.dtype("<u2"):
        raise UsageError("nanoGPT reads uint16 ids only, and these are uint32: choose another --to, such as llmc")
    tokenizer = shape.tokenizer or (reading.manifest.tokenizer if reading.manifest is not None else None)
    turned = blocks if reading.eot_id is None else eot_after(blocks, reading.eot_id)
    writer, current = None, ""
    try:
        for split, block in turned:
            if not len(block):  # of a split that is one EOT nothing is left
                continue
            if split != current:
                if writer is not None:
                    writer.finish()
                if f"{split}.bin" not in BARE_NAMES:
                    raise UsageError(f"nanoGPT has the splits train and val, not {split!r}: choose another --to")
                writer, current = RawWriter(folder / f"{split}.bin"), split
            if writer is not None:
                writer.write(block)
        if writer is not None:
            writer.finish()
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    if tokenizer is not None and tokenizer.vocab_size != GPT2_IDS:
        atomic_write(folder / "meta.pkl", _meta(tokenizer.vocab_size))


def _meta(vocab_size: int) -> bytes:
    """The pickle (protocol 2) of `{"vocab_size": vocab_size}`."""
    return b"\x80\x02}X\x0a\x00\x00\x00vocab_sizeJ" + vocab_size.to_bytes(4, "little") + b"s."
