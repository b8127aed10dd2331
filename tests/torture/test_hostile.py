"""What strangers send: repos, manifests, headers and archives that lie. Nothing is written outside the folder, nothing
is run, no claimed size is allocated, no token is shown; there is a dataset that verifies, or one clear line.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import pickle
import random
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from attacks import NASTY, contained, outcome, times
from loader_data import write_tokens
from source_data import texts_of

from shardkit import Manifest, ShardLoader, open_shard, pull, push
from shardkit.errors import ShardkitWarning, SourceError
from shardkit.look.verify import verify
from shardkit.remote.card import updated_card
from shardkit.sources.texts import BadRow

REPO = "alice/hostile"
NAMES = [
    *("../escaped.npy", "/tmp/escaped.npy", "a/../../escaped.npy", "x_train_000001.npy/../../escaped.npy"),
    *("..", ".", "", "C:\\escaped.npy", "\\\\host\\x.npy", "x\0.npy", "x_train_000001.npy\n", "~/.bashrc"),
    *(".shardkit/journal.jsonl", "manifest.json", "x_train_000001.npy", "a" * 300, "x_train_9" + "9" * 30 + ".npy"),
    *("\u202enpy.000001_niart_x", "con", "x_train_-00001.npy", "x_train_000001.npy ", "x_TRAIN_000001.npy"),
]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest")
    write_tokens(folder / "data")
    (folder / "secret").write_text("of the machine")
    return folder


def hostile_manifest(honest: Path, rng: random.Random) -> bytes:
    """The honest manifest with up to three values of an attacker's choice."""
    manifest = json.loads((honest / "data" / "manifest.json").read_text())
    shards = manifest["shards"]
    for _ in range(rng.randint(1, 3)):
        shard = rng.choice(shards)
        change = rng.randrange(6)
        if change == 0:
            shard["file"] = rng.choice(NAMES)
        elif change == 1:
            shard[rng.choice(sorted(shard))] = copy.deepcopy(rng.choice(NASTY))
        elif change == 2:
            manifest[rng.choice(sorted(manifest))] = copy.deepcopy(rng.choice(NASTY))
        elif change == 3:
            manifest["shards"] = shards * rng.choice([0, 2, 1000])
        elif change == 4:
            shard["bytes"] = shard["tokens"] = rng.choice([2**40, 2**62, 10**30])
        else:
            manifest.setdefault("tokenizer", {})
            manifest["source"] = {"id": rng.choice(NAMES), "files": rng.choice(NASTY)}
    text = json.dumps(manifest)
    if rng.random() < 0.1:
        text = text.replace('"shards"', f'"deep": {"[" * 60_000}{"]" * 60_000}, "shards"', 1)
    if rng.random() < 0.1:
        text = text.replace('"tokens"', '"tokens": ' + "9" * 5000 + ', "tokens"', 1)
    return text.encode()


def use_all(place: str, folder: Path) -> None:
    """All that a user does with a stranger's dataset. A refusal at one step leaves nothing for the next."""
    manifest = pull(place, folder)
    verify(folder)
    updated_card(None, manifest, "me/mine")
    with ShardLoader(folder, batch_size=2, seq_len=16) as loader:
        loader.next_batch()


def test_a_manifest_of_an_attacker_writes_nothing_outside_the_folder(honest: Path, tmp_path: Path, tally: Any) -> None:
    count = times(60, 1500)
    shutil.copytree(honest / "data", tmp_path / "remote")
    for seed in range(count):
        (tmp_path / "remote" / "manifest.json").write_bytes(hostile_manifest(honest, random.Random(seed)))
        with contained(tmp_path / "got"), _named(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore", ShardkitWarning)
            outcome(lambda: use_all(str(tmp_path / "remote"), tmp_path / "got"))
        shutil.rmtree(tmp_path / "got", ignore_errors=True)
    tally("a manifest of an attacker, pulled from a folder", count)


def test_a_repo_of_an_attacker_writes_nothing_outside_the_folder(
    honest: Path, tmp_path: Path, hub: Any, tally: Any
) -> None:
    count = times(10, 150)
    for seed in range(count):
        rng = random.Random(seed)
        files: dict[str, bytes | Path] = {path.name: path for path in (honest / "data").glob("*.npy")}
        files |= {rng.choice(NAMES).replace("\0", "") or "x": b"strange" for _ in range(3)}
        if rng.random() < 0.8:
            files["manifest.json"] = hostile_manifest(honest, rng)
        repo = f"alice/hostile{seed}"
        hub.seed_repo(repo, files)
        with contained(tmp_path / "got", Path(hub.root)), _named(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore", ShardkitWarning)
            outcome(lambda repo=repo: use_all(repo, tmp_path / "got"))
        shutil.rmtree(tmp_path / "got", ignore_errors=True)
    tally("a repo of an attacker, pulled from the Hub", count)


def header(rng: random.Random) -> bytes:
    """The start of a `.npy` file with a header of an attacker's choice."""
    shape = rng.choice(
        ["(10,)", "(1000000000000,)", "(-1,)", "()", "(2, 5)", "10", "(10.0,)", "('a',)", "(1e400,)", "(True,)", "{}"]
    )
    descr = rng.choice(
        ["'<u2'", "'<u4'", "'|O'", "'<f8'", "'>u2'", "[('a', '<u2')]", "'<u2000000000'", "1", "__import__"]
    )
    order = rng.choice(["False", "True", "0", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        text = rng.choice(["(" * 5000, "__import__('os').system('touch escaped')", "[" * 200, "9" * 5000, "{", "\xff"])
    raw = text.encode("latin-1")
    length = len(raw) if rng.random() < 0.7 else rng.choice([0, 65535, 10**6])
    version = rng.choice([(1, 0), (2, 0), (3, 0), (9, 9)])
    packed = struct.pack("<I", length) if version[0] > 1 else struct.pack("<H", min(length, 65535))
    return b"\x93NUMPY" + bytes(version) + packed + raw


def test_headers_that_lie_are_refused_or_read_as_numpy_reads_them(tmp_path: Path, tally: Any) -> None:
    count = times(200, 4000)
    path = tmp_path / "x_train_000000.npy"
    for seed in range(count):
        path.write_bytes(header(random.Random(seed)) + bytes(20))
        with contained(tmp_path), _named(seed):
            got: list[Any] = []
            if outcome(lambda got=got: got.append(open_shard(path))) is None:
                with open(path, "rb") as file:
                    assert np.array_equal(got[0], np.load(file))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ShardkitWarning)
                outcome(lambda: ShardLoader(tmp_path, batch_size=1, seq_len=4).next_batch())
    tally("a .npy header of an attacker", count)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('escaped', 'w')",)


def archive(rng: random.Random) -> tuple[str, bytes]:
    """The name and the bytes of a source that is a bomb, not what its name says, or cut off."""
    zeros = bytes(1 << 20)
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a" * 100_000] * 50}), sink)
    made: list[tuple[str, bytes]] = [
        ("a.jsonl.gz", gzip.compress(b"\n" * (8 << 20))),
        ("a.jsonl.gz", gzip.compress(zeros) * 3),
        ("a.jsonl.zst", zstandard.compress(zeros * 8)),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "a"}\n' * 1000)[: rng.randrange(1, 60)]),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[: rng.randrange(1, 60)]),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000),
        ("a.jsonl", b'{"text": "' + b"\\ud800" * 1000 + b'"}\n'),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n"),
        ("a.jsonl", pickle.dumps(Evil())),
        ("a.jsonl.gz", pickle.dumps(Evil())),
        ("a.parquet", pickle.dumps(Evil())),
        ("a.parquet", sink.getvalue()[: rng.randrange(1, len(sink.getvalue()))]),
        ("a.parquet", b"PAR1" + rng.randbytes(200) + struct.pack("<I", rng.choice([2**31, 2**32 - 1, 10])) + b"PAR1"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd\xa0\xff\xff\xff\xff" + rng.randbytes(50)),
        ("a.jsonl", rng.randbytes(1000)),
        ("a.txt", rng.randbytes(1000)),
        ("a.jsonl.gz", rng.randbytes(1000)),
    ]
    return rng.choice(made)


def read_source(path: Path) -> int:
    try:
        return len(texts_of(path, chunk_bytes=1 << 16))
    except BadRow as error:
        raise SourceError(error.why) from error


def test_archives_that_are_bombs_or_none_end_in_bounded_memory(tmp_path: Path, tally: Any) -> None:
    count = times(40, 600)
    for seed in range(count):
        name, content = archive(random.Random(seed))
        (tmp_path / name).write_bytes(content)
        with contained(tmp_path), _named(seed):
            outcome(lambda name=name: read_source(tmp_path / name))
        (tmp_path / name).unlink()
    tally("an archive or table of an attacker", count)


def test_a_storm_of_network_faults_ends_in_the_dataset_or_in_one_line(
    honest: Path, tmp_path: Path, hub: Any, tally: Any
) -> None:
    count, fired = times(3, 60), 0
    for seed in range(count):
        rng = random.Random(seed)
        repo = f"alice/storm{seed}"
        kinds = ["status", "drop", "drop_midway", "truncate", "corrupt", "lost_answer"]
        faults = hub.random_faults(seed, rng.choice([0.02, 0.1, 0.3]), kinds)
        pushed = outcome(lambda repo=repo: push(honest / "data", repo))
        pulled = outcome(lambda repo=repo, seed=seed: pull(repo, tmp_path / str(seed)))
        fired += sum(fault.fired for fault in faults)
        hub.faults.clear()
        if pushed is not None:
            push(honest / "data", repo)
        if pulled is not None:
            assert not (tmp_path / str(seed) / "manifest.json").exists()
            pull(repo, tmp_path / str(seed))
        assert Manifest.load(tmp_path / str(seed)) == Manifest.load(honest / "data")
        verify(tmp_path / str(seed))
    tally("push and pull in a storm: faults of the network", fired)


@contextlib.contextmanager
def _named(seed: int) -> Any:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r}") from error
