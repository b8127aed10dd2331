"""Small datasets for the loader's tests: bare shards, and shards with a true manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.dataset.manifest import Manifest, ShardInfo, SourceFile, SourceInfo, TokenizerInfo
from shardkit.files import sha256_file

EOT = 50256


def write_shards(folder: Path, lengths: list[int], *, vals: int = 0, dtype: str = "<u2") -> NDArray[np.int64]:
    """Bare shards of these lengths, every token its own number; returns the train stream."""
    folder.mkdir(parents=True, exist_ok=True)
    token = 0
    for index, length in enumerate(lengths):
        split = "val" if index < vals else "train"
        np.save(folder / f"x_{split}_{index:06d}.npy", np.arange(token, token + length).astype(dtype))
        token += length
    return np.arange(sum(lengths[:vals]), token)


def write_documents(
    folder: Path, rows: list[tuple[str, list[int]]], *, tokens_per_shard: int, skipped: int | None = None
) -> Manifest:
    """A dataset of documents, `(source file, tokens)` a row, as the tokenizer writes it: shard 0 is val.

    The row number `skipped` of the first file was bad and gave no document.
    """
    stream: list[int] = []
    starts: list[int] = []
    for _, tokens in rows:
        starts.append(len(stream))
        stream += [EOT, *tokens]
    shards = []
    for index, begin in enumerate(range(0, len(stream), tokens_per_shard)):
        part = np.array(stream[begin : begin + tokens_per_shard], dtype="<u2")
        path = folder / f"x_{'train' if index else 'val'}_{index:06d}.npy"
        np.save(path, part)
        shards.append(
            ShardInfo(
                file=path.name,
                split="train" if index else "val",
                index=index,
                tokens=len(part),
                documents=int(np.count_nonzero(part == EOT)),
                first_document=sum(start < begin for start in starts),
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
    files = []
    for name in dict.fromkeys(name for name, _ in rows):
        sizes = [len(tokens) + 1 for file, tokens in rows if file == name]
        bad = () if skipped is None or files else (skipped,)
        files.append(
            SourceFile(
                path=name,
                bytes=1,
                rows=len(sizes) + len(bad),
                documents=len(sizes),
                tokens=sum(sizes),
                skipped_rows=bad,
            )
        )
    manifest = Manifest(
        dtype="uint16",
        tokens_per_shard=tokens_per_shard,
        shards=tuple(shards),
        source=SourceInfo(id="local", files=tuple(files)),
        tokenizer=TokenizerInfo(name="gpt2", vocab_size=50257, eot_id=EOT, ranks_sha256="0" * 64),
    )
    manifest.save(folder)
    return Manifest.load(folder)


def write_tokens(folder: Path, *, documents: int = 40, tokens_per_shard: int = 500, seed: int = 0) -> Manifest:
    """A dataset of random documents of two source files, in about `30 * documents` tokens."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = [
        (f"part-{2 * n // documents}", rng.integers(0, 5000, int(rng.integers(5, 90))).tolist())
        for n in range(documents)
    ]
    return write_documents(folder, rows, tokens_per_shard=tokens_per_shard)
