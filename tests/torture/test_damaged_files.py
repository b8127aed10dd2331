"""Every file that is read back, damaged by a seed: the right result or one clear line, and nothing else.

Each kind of file has a folder in which it is whole, and a `use` of it that returns what a user gets. Of a damaged file
that must be the same as of the whole one, an error line, or, where a hash says so, `NOT_VERIFIED`.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import source_data
import torch
import zstandard
from attacks import contained, damaged, outcome, times
from loader_data import EOT, write_shards, write_tokens
from trainer_data import whole_state

from shardkit import Manifest, ShardLoader, Tokenizer, merge_ledger, open_shard, pull, push
from shardkit.dataset.token_stream import open_split
from shardkit.errors import ShardkitError, ShardkitWarning, SourceError
from shardkit.look.verify import verify
from shardkit.sources.texts import BadRow
from shardkit.tokenization.fast_json import fast_tokenizer_json
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.config import make_config, read_toml

Use = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """A kind of file: how a folder with one is made, which file it is, what a user does with it, and whether another
    result is right too (a source whose bytes nobody vouches for says what it says)."""

    make: Callable[[Path], object]
    file: str
    use: Use
    checked: bool = True


def tokens_of(folder: Path) -> list[list[int]]:
    """What every split holds, shard by shard, if `verify` has nothing against it."""
    assert verify(folder).verified in (True, False)
    manifest = Manifest.load(folder)
    return [open_shard(folder / shard.file).tolist() for shard in manifest.shards]


def batches_of(folder: Path, **options: Any) -> list[list[int]]:
    with ShardLoader(folder, batch_size=2, seq_len=16, shuffle=False, **options) as loader:
        return [loader.next_batch()[0].flatten().tolist() for _ in range(4)]


def packed(folder: Path) -> list[list[int]]:
    return batches_of(folder, layout="packed")


def with_plan(folder: Path) -> None:
    write_tokens(folder)
    packed(folder)


def bare(folder: Path) -> None:
    write_shards(folder, [300, 300, 200], vals=1)


def llmc(folder: Path) -> None:
    folder.mkdir()
    for name, count in (("x_val_000000.bin", 400), ("x_train_000001.bin", 300)):
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, count
        (folder / name).write_bytes(header.tobytes() + np.arange(count, dtype="<u2").tobytes())


def pulled_bare(folder: Path) -> list[list[int]]:
    target = folder.with_name("pulled")
    shutil.rmtree(target, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ShardkitWarning)
        manifest = pull(str(folder), target)
    return [open_shard(target / shard.file).tolist() for shard in manifest.shards]


def at_a_remote(folder: Path) -> None:
    write_tokens(folder / "data")
    push(folder / "data", str(folder / "remote"))


def pulled(folder: Path) -> list[list[int]]:
    target = folder.with_name("pulled")
    shutil.rmtree(target, ignore_errors=True)
    pull(str(folder / "remote"), target)
    return tokens_of(target)


def pushed_again(folder: Path) -> list[list[int]]:
    push(folder / "data", str(folder / "remote"))
    return pulled(folder)


def ledger(folder: Path) -> None:
    write_tokens(folder)
    with ShardLoader(folder, batch_size=2, seq_len=16, ledger=folder / "ledger") as loader:
        for _ in range(8):
            loader.next_batch()


def merged(folder: Path) -> list[tuple[int, str]]:
    return list(merge_ledger(folder / "ledger").running.items())


def saved_state(folder: Path) -> None:
    write_tokens(folder)
    with ShardLoader(folder, batch_size=2, seq_len=16) as loader:
        for _ in range(3):
            loader.next_batch()
        (folder / "state.json").write_text(json.dumps(loader.state_dict()))


def gone_on(folder: Path) -> list[int]:
    with ShardLoader(folder, batch_size=2, seq_len=16) as loader:
        try:
            state = json.loads((folder / "state.json").read_bytes())
        except (ValueError, RecursionError) as error:  # the user's own reading of their file
            raise ShardkitError(f"not JSON: {type(error).__name__}") from error
        loader.load_state_dict(state)
        return loader.next_batch()[0].flatten().tolist()


TEXTS = [f"document {n} of the source, with ünïcode and {'words ' * (n % 7)}" for n in range(120)]


def source(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(content())

    return make


def lines() -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


def parquet(**options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=30, **options)
    return bytes(sink.getvalue())


def texts_of(folder: Path) -> list[str]:
    try:
        return source_data.texts_of(next(folder.iterdir()), chunk_bytes=2000)
    except BadRow as error:  # the pipeline names the file and the row
        raise SourceError(error.why) from error


def checkpoint(folder: Path) -> None:
    save_checkpoint(folder, whole_state(4), keep=1)


def loaded(folder: Path) -> str:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return value.tolist() if isinstance(value, torch.Tensor) else value

    return repr(plain(load_checkpoint(folder / "step_00000004.pt")))


def a_tokenizer(folder: Path) -> None:
    folder.mkdir()
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257}
    vocabulary = json.loads(fast_tokenizer_json(ranks, r"\\w+|\\W"))
    vocabulary["added_tokens"] = [
        {"id": 258, "content": "</s>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))


def encoded(folder: Path) -> list[int]:
    return Tokenizer(str(folder / "tokenizer.json"), encoder="tiktoken").encode_ordinary("the thing is \u00e9")


def settings(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.toml").write_text(make_config({"data": "d", "out": "o"}).to_toml())


KINDS = {
    "manifest.json, verified": Kind(write_tokens, "manifest.json", tokens_of),
    "manifest.json, read by a loader": Kind(write_tokens, "manifest.json", batches_of),
    "manifest.json at a remote, pulled": Kind(at_a_remote, "remote/manifest.json", pulled),
    "a shard, verified": Kind(write_tokens, "x_train_000001.npy", tokens_of),
    "a shard at a remote, pulled": Kind(at_a_remote, "remote/x_train_000001.npy", pulled),
    "a bare shard, read by a loader": Kind(bare, "x_train_000001.npy", batches_of, checked=False),
    "an llm.c shard at a remote, pulled": Kind(llmc, "x_train_000001.bin", pulled_bare, checked=False),
    "a dataset card, pushed over": Kind(at_a_remote, "remote/README.md", pushed_again),
    "a loader's state": Kind(saved_state, "state.json", gone_on),
    "a ledger": Kind(ledger, "ledger/from000000000000000_batch2_rank00000_of00001.jsonl", merged),
    "a packing plan's key": Kind(with_plan, ".shardkit/plans/packed-*/kept.json", packed),
    "a packing plan's array": Kind(with_plan, ".shardkit/plans/packed-*/piece_starts.npy", packed),
    "a checkpoint": Kind(checkpoint, "step_00000004.pt", loaded),
    "a run's config.toml": Kind(
        settings, "config.toml", lambda at: make_config(read_toml(at / "config.toml")).to_toml(), checked=False
    ),
    "a tokenizer.json": Kind(a_tokenizer, "tokenizer.json", encoded, checked=False),
    "a .jsonl source": Kind(source("a.jsonl", lines), "a.jsonl", texts_of, checked=False),
    "a .jsonl.gz source": Kind(source("a.jsonl.gz", lambda: gzip.compress(lines())), "a.jsonl.gz", texts_of),
    "a .jsonl.zst source": Kind(
        source("a.jsonl.zst", lambda: zstandard.ZstdCompressor(write_checksum=True).compress(lines())),
        "a.jsonl.zst",
        texts_of,
    ),
    "a .txt source": Kind(source("a.txt", lambda: "".join(TEXTS).encode()), "a.txt", texts_of, checked=False),
    "a .parquet source": Kind(source("a.parquet", parquet), "a.parquet", texts_of, checked=False),
    "a .parquet source with page checksums": Kind(
        source("a.parquet", lambda: parquet(write_page_checksum=True)), "a.parquet", texts_of, checked=False
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_right_or_refused_in_one_line(name: str, tmp_path: Path, tally: Any) -> None:
    kind = KINDS[name]
    kind.make(tmp_path / "whole")
    right = kind.use(tmp_path / "whole")
    shutil.rmtree(tmp_path / "pulled", ignore_errors=True)
    [file] = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob(kind.file)]
    content = (tmp_path / "whole" / file).read_bytes()
    count = times(20, 500)
    for seed in range(count):
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", folder)
        (folder / file).write_bytes(damaged(content, random.Random(f"{name} {seed}")))
        got: list[object] = []
        with contained(tmp_path), _named(f"{name}, seed {seed}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ShardkitWarning)
            refused = outcome(lambda folder=folder, got=got: got.append(kind.use(folder)))
            assert refused is not None or not kind.checked or _is_part(got[0], right), "wrong data, silently"
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "pulled", ignore_errors=True)
    tally(f"damage to {name}", count)


def _is_part(got: Any, right: Any) -> bool:
    """Equal, or, as a manifest may list fewer shards (a part that was pulled) and a ledger fewer batches (of a run that
    was killed), all of it in the right order."""
    if got == right or not isinstance(right, list):
        return bool(got == right)
    rest = iter(right)
    return all(any(shard == other for other in rest) for shard in got)


@contextlib.contextmanager
def _named(what: str) -> Any:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


def test_the_right_result_is_what_the_whole_files_give(tmp_path: Path) -> None:
    """Else a `use` that always gives nothing would be found right of every damaged file."""
    for number, kind in enumerate(KINDS.values()):
        kind.make(tmp_path / str(number))
        assert kind.use(tmp_path / str(number))
    assert EOT in np.concatenate([open_shard(path) for path in (tmp_path / "0").glob("*.npy")])
    assert open_split(tmp_path / "0", "train", verify=True)[1].tokens > 0
