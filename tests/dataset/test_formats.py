"""Datasets in other trainers' formats: golden bytes, round trips, what others wrote, what is damaged."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import Manifest
from shardkit.dataset.convert import WRITERS, Counted, convert_folder
from shardkit.dataset.formats import megatron, parquet, raw_tokens
from shardkit.dataset.formats.interface import Given
from shardkit.dataset.records import ShardInfo, TokenizerInfo
from shardkit.files import sha256_file

EOT = 9
OTHERS = [name for name in WRITERS if name != "npy"]
VOCABULARY = TokenizerInfo(name="ten", vocab_size=10, eot_id=EOT, ranks_sha256="0" * 64)


def convert(source: Path, out: Path, to: str, shard_tokens: int | None = None, **known: object) -> Counted:
    return convert_folder(source, out, to, Given(**known), shard_tokens=shard_tokens)


def write_npy(
    folder: Path, stream: Sequence[int], cuts: Sequence[int], *, vals: int = 1, dtype: str = "<u2", first: int = 0
) -> Path:
    """A dataset with a manifest: `stream` in shards that end at `cuts`, the first `vals` of them val; `first` is the
    number of the first document that begins in it, of a part of a dataset."""
    folder.mkdir(parents=True)
    shards, documents = [], first
    for index, (begin, end) in enumerate(zip([0, *cuts], [*cuts, len(stream)], strict=True)):
        split = "val" if index < vals else "train"
        index += 5 if first else 0
        path = folder / f"x_{split}_{index:06d}.npy"
        tokens = np.array(stream[begin:end], dtype)
        np.save(path, tokens)
        starting = int(np.count_nonzero(tokens == EOT))
        shards.append(
            ShardInfo(
                file=path.name,
                split=split,
                index=index,
                tokens=len(tokens),
                documents=starting,
                first_document=documents,
                sha256=sha256_file(path),
                bytes=path.stat().st_size,
            )
        )
        documents += starting
    Manifest(
        dtype=np.dtype(dtype).name,
        tokens_per_shard=max(shard.tokens for shard in shards),
        shards=tuple(shards),
        tokenizer=VOCABULARY,
    ).save(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


streams = st.lists(st.one_of(st.just(EOT), st.integers(0, 8)), min_size=0, max_size=40).map(lambda rest: [EOT, *rest])


@pytest.mark.parametrize("to", OTHERS)
@settings(max_examples=40)
@given(data=st.data(), inside=st.booleans(), vals=st.integers(0, 2), block=st.integers(1, 7))
def test_to_another_format_and_back_is_byte_for_byte_the_same(
    to: str, data: st.DataObject, inside: bool, vals: int, block: int
) -> None:
    stream = data.draw(streams)[1 if inside else 0 :] or [1]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=4)) - {len(stream)})
    dtype = "<u2" if to == "nanogpt" else data.draw(st.sampled_from(["<u2", "<u4"]))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        for module in (raw_tokens, megatron):
            patch.setattr(module, "BLOCK_TOKENS", block)
        patch.setattr(parquet, "_GROUP_TOKENS", block)
        patch.setattr(parquet, "_READ_ROWS", block)
        source = write_npy(Path(name) / "a", stream, cuts, vals=vals, dtype=dtype, first=3 if inside else 0)
        convert(source, Path(name) / "b", to)
        convert(Path(name) / "b", Path(name) / "c", "npy")
        assert contents(Path(name) / "c") == contents(source)
