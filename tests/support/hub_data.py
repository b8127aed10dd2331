"""Small datasets for the tests of push and pull, and the folder as the tests compare it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardkit.dataset.journal import JOURNAL_FILE
from shardkit.dataset.manifest import Manifest, ShardInfo, SourceInfo, TokenizerInfo
from shardkit.dataset.shards import ShardWriter, shard_name
from shardkit.remote.address import open_remote
from shardkit.remote.uploader import TransferProgress, Uploader


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
                file=name,
                split=split,
                index=index,
                tokens=count,
                documents=3,
                first_document=3 * index,
                sha256=made.sha256,
                bytes=made.bytes,
            )
        )
    manifest = Manifest(
        dtype="uint16",
        tokens_per_shard=tokens,
        shards=tuple(infos),
        shardkit_version="0.1.0",
        tokenizer=TokenizerInfo(name="gpt2", vocab_size=50257, eot_id=50256, ranks_sha256="0" * 64),
        source=SourceInfo(id="HuggingFaceFW/fineweb-edu", config="sample-10BT", revision="f" * 40, text_field="text"),
    )
    manifest.save(folder)
    return manifest


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, working files and all."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def open_uploader(
    repo: str, journal: bytes = b"", *, max_bytes: int | None = None, progress: TransferProgress | None = None
) -> Uploader:
    """An uploader as `tokenize --push` has it: `journal` claims the place; with `max_bytes` sent files are deleted."""
    remote = open_remote(repo)
    remote.create(private=False)
    remote_files = remote.files()
    if JOURNAL_FILE not in remote_files:
        remote.commit([], {JOURNAL_FILE: journal}, "Begin")
    return Uploader(
        remote,
        remote_files,
        workers=2,
        delete_local=max_bytes is not None,
        max_bytes=max_bytes,
        progress=progress,
    )


def journal_at(repo: str) -> bytes | None:
    """The journal of an unfinished run at a remote."""
    remote = open_remote(repo)
    return remote.read(JOURNAL_FILE) if remote.exists() and JOURNAL_FILE in remote.files() else None
