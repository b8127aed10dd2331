"""Small datasets for the tests of push and pull, and the folder as the tests compare it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.manifest import Manifest, ShardInfo, SourceInfo, TokenizerInfo
from shardkit.dataset.shards import ShardWriter, shard_name
from shardkit.remote.uploader import Uploader
from shardkit.tokenization.live_push import claim_place, fetch_journal


def make_dataset(folder: Path, shards: int = 4, tokens: int = 3000, seed: int = 0, prefix: str = "demo") -> Manifest:
    """A dataset of `shards` shards of random tokens, the last one short, as `tokenize` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, infos = np.random.default_rng(seed), []
    for index in range(shards):
        split = "val" if index == 0 else "train"
        writer = ShardWriter(folder / ".writing", np.dtype("<u2"), tokens)
        count = tokens if index < shards - 1 else tokens // 2 + 1
        writer.write(rng.integers(0, 50257, count, dtype=np.uint16))
        name = shard_name(prefix, split, index)
        made = writer.finish(folder / name)
        infos.append(
            ShardInfo(
                file=name, split=split, index=index, tokens=count, documents=3, first_document=3 * index,
                sha256=made.sha256, bytes=made.bytes,
            )
        )  # fmt: skip
    manifest = Manifest(
        dtype="uint16", tokens_per_shard=tokens, shards=tuple(infos), shardkit_version="0.1.0",
        tokenizer=TokenizerInfo(name="gpt2", vocab_size=50257, eot_id=50256, ranks_sha256="0" * 64),
        source=SourceInfo(id="HuggingFaceFW/fineweb-edu", config="sample-10BT", revision="f" * 40, text_field="text"),
    )  # fmt: skip
    manifest.save(folder)
    return manifest


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, working files and all."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def open_uploader(repo: str, journal: bytes, **options: Any) -> Uploader:
    """The uploader of a `tokenize --push` to `repo`, after it has claimed the place with `journal`."""
    run = fetch_journal(repo)
    claim_place(run, journal)
    return Uploader(run.remote, run.files, delete_local=options.get("max_bytes") is not None, **options)
