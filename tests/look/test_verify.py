"""`verify`: everything that may be wrong with a dataset is found, in a folder and at a remote, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import LONG
from click.testing import CliRunner, Result
from hub_data import make_dataset
from hub_server import HubServer
from vocabulary_data import train_vocabulary

from shardkit import Manifest, convert, open_shard, push, tokenize, verify
from shardkit.cli import main
from shardkit.errors import DiskFull, HubError, ManifestError, ShardError, ShardkitError, UsageError
from shardkit.files import sha256_file
from shardkit.tokenization.tokenizer import Tokenizer

EOT = 256
Damage = Callable[[Path, random.Random], object]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of the bytes of two files; no document has a byte twice."""
    folder = tmp_path_factory.mktemp("verify")
    for name, count in (("a", 70), ("b", 50)):
        lines = [json.dumps({"text": "".join(random.Random(n).sample("abcdefghijklmnop", 12))}) for n in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenize(str(folder / "*.jsonl"), folder / "out", tokenizer="bytes", shard_tokens=300, prefix="x", workers=1)
    return folder / "out"


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def a_shard(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.glob("*.npy")))


def put(path: Path, tokens: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    path.write_bytes(buffer.getvalue())


def vouch(folder: Path) -> None:
    """Write the manifest anew, with the hashes and sizes of what is there."""
    manifest = Manifest.load(folder)
    shards = (
        dataclasses.replace(shard, sha256=sha256_file(folder / shard.file), bytes=(folder / shard.file).stat().st_size)
        for shard in manifest.shards
    )
    dataclasses.replace(manifest, shards=tuple(shards)).save(folder)


def flip(folder: Path, chance: random.Random) -> None:
    path = a_shard(folder, chance)
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def cut(folder: Path, chance: random.Random) -> None:
    path = a_shard(folder, chance)
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def swap(folder: Path, chance: random.Random) -> None:
    one, other = chance.sample(sorted(folder.glob("*.npy")), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def widen(folder: Path, chance: random.Random) -> None:
    path = a_shard(folder, chance)
    put(path, np.array(open_shard(path)).astype("<u4"))


def change(folder: Path, chance: random.Random, where: Callable[[np.ndarray], np.ndarray], value: int) -> None:
    """Put `value` into one of the places `where`, and have the manifest vouch for it."""
    path = a_shard(folder, chance)
    tokens = np.array(open_shard(path))
    tokens[chance.choice(np.flatnonzero(where(tokens)).tolist())] = value
    put(path, tokens)
    vouch(folder)


def foreign(folder: Path, chance: random.Random) -> None:
    put(folder / f"y_train_{chance.randrange(1000):06d}.npy", np.zeros(chance.randrange(1, 9), "<u2"))


def remove(folder: Path, chance: random.Random) -> None:
    a_shard(folder, chance).unlink()


def edit(folder: Path, chance: random.Random) -> None:
    """Another number, hash or type in the manifest."""
    path = folder / "manifest.json"
    stated = json.loads(path.read_text())
    of_shard = chance.choice(stated["shards"])
    record, name = chance.choice(
        [
            *[(of_shard, name) for name in ("tokens", "documents", "first_document", "bytes", "sha256", "index")],
            *[(stated["source"]["files"][0], name) for name in ("documents", "tokens")],
            *[(stated, name) for name in ("tokens", "documents", "fingerprint", "dtype", "format_version")],
            (stated["tokenizer"], "eot_id"),
        ]
    )
    old = record[name]
    record[name] = "".join(reversed(old)) if isinstance(old, str) else abs(old + chance.choice([-1, 1, 7]))
    path.write_text(json.dumps(stated))


DAMAGES: dict[str, Damage] = {
    "flipped bit": flip,
    "truncation": cut,
    "swapped shards": swap,
    "wrong dtype": widen,
    "id over the vocabulary": lambda folder, chance: change(folder, chance, lambda t: t >= 0, 257),
    "missing EOT": lambda folder, chance: change(folder, chance, lambda t: t == EOT, 97),
    "doubled EOT": lambda folder, chance: change(folder, chance, lambda t: t != EOT, EOT),
    "foreign file": foreign,
    "missing shard": remove,
    "edited manifest": edit,
}


def is_found(folder: Path) -> bool:
    try:
        verify(folder, deep=True, progress=False)
    except ShardkitError:
        return True
    return False


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_of_a_kind_is_found(kind: str, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for seed in range(50 if LONG else 12):
        shutil.copytree(dataset, folder)
        DAMAGES[kind](folder, random.Random(seed))
        assert is_found(folder), (kind, seed)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 777},
        {"max_docs": 71},
        {"filter": lambda text: "a" in text},
        {"transform": str.upper, "val_shards": 2},
        {"tokenizer": "gpt2"},
        {"tokenizer": "chars"},
        {"shard_tokens": 10_000},
    ],
)
def test_what_tokenize_made_has_no_problem(options: dict[str, Any], dataset: Path, tmp_path: Path) -> None:
    usual = {"tokenizer": "bytes", "shard_tokens": 300, "workers": 1}
    tokenize(str(dataset.parent / "*.jsonl"), tmp_path / "out", **{**usual, **options})
    found = verify(tmp_path / "out", deep=True, progress=False)
    assert found.verified
    assert found.problems == ()
    assert found.reencoded_documents
    assert found.not_reencoded is None


def test_a_part_of_a_dataset_has_no_problem(copy: Path) -> None:
    manifest = Manifest.load(copy)
    dataclasses.replace(manifest, shards=manifest.shards[1:3]).save(copy)
    for shard in (*manifest.shards[:1], *manifest.shards[3:]):
        (copy / shard.file).unlink()
    assert verify(copy, deep=True, progress=False).verified


def test_a_document_that_its_text_does_not_give_is_found_by_encoding_it_again(copy: Path) -> None:
    path = copy / "x_train_000002.npy"
    tokens = np.array(open_shard(path))
    tokens[np.flatnonzero(tokens == EOT) + 1] = 255  # no text has that byte
    put(path, tokens)
    vouch(copy)
    assert verify(copy, progress=False).verified
    with pytest.raises(ShardError, match=r"x_train_000002\.npy: the document at token \d+ is not what bytes makes of"):
        verify(copy, deep=True, progress=False)


def test_without_the_tokenizer_it_is_said_that_nothing_was_encoded_again(copy: Path) -> None:
    manifest = Manifest.load(copy)
    assert manifest.tokenizer is not None
    other = dataclasses.replace(manifest.tokenizer, ranks_sha256="0" * 64)
    dataclasses.replace(manifest, tokenizer=other).save(copy)
    found = verify(copy, deep=True, progress=False)
    assert (found.verified, found.reencoded_documents) == (True, 0)
    assert "another vocabulary" in str(found.not_reencoded)


@pytest.mark.parametrize(("chats", "reencoded"), [(range(40), 0), (range(10), 30)])
def test_chats_that_others_encoded_hold_special_tokens_and_are_no_damage(
    chats: range, reencoded: int, tmp_path: Path
) -> None:
    made = Tokenizer(str(train_vocabulary(tmp_path / "tokenizer.json")))
    turn, end = made.vocabulary.special_ids
    assert end == made.eot_id
    rows = [[turn] * (number in chats) + made.encode_ordinary(f"chat {number}") for number in range(40)]
    (tmp_path / "ids").mkdir()
    pq.write_table(pa.table({"input_ids": [*rows, [5]]}), tmp_path / "ids" / "train-00000.parquet")
    convert(tmp_path / "ids", tmp_path / "tok", to="npy", tokenizer=str(tmp_path / "tokenizer.json"), progress=False)
    found = verify(tmp_path / "tok", deep=True, progress=False)
    assert found.verified
    assert (found.not_reencoded is None) == bool(found.reencoded_documents) == bool(reencoded)
    assert found.not_reencoded in (None, "they hold special tokens, which no text gives")


def command(*words: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, words)], catch_exceptions=False)


def test_the_command_says_each_problem_in_a_line_of_its_own(copy: Path) -> None:
    for number in (2, 4):
        put(copy / f"x_train_{number:06d}.npy", np.zeros(300, "<u2"))
    done = command(copy, "--json")
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert [line.split(" has ")[0] for line in lines] == [f"error: {copy}/x_train_{n:06d}.npy" for n in (2, 4)]
    found = json.loads(done.stdout)
    assert not found["verified"]
    assert [f"error: {problem}" for problem in found["problems"]] == lines
    assert command(copy).stdout == ""
    with pytest.raises(ShardError, match=r"x_train_000002.*\(1 more of 6 shards too\)"):
        verify(copy, progress=False)


def test_progress_ends_with_all_bytes(dataset: Path) -> None:
    told: list[tuple[str, int, int]] = []
    verify(dataset, progress=lambda *now: told.append(now))
    assert [file for file, _, _ in told] == [shard.file for shard in Manifest.load(dataset).shards]
    assert told[-1][1] == told[-1][2] == sum(path.stat().st_size for path in dataset.glob("*.npy"))


def test_a_remote_is_verified_from_what_it_serves(copy: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    push(copy, f"file://{far}", progress=False)
    found = verify(f"file://{far}", deep=True, progress=False)
    assert (found.verified, found.fingerprint) == (True, Manifest.load(copy).fingerprint)
    data = bytearray((far / "x_train_000003.npy").read_bytes())
    data[400] ^= 1
    (far / "x_train_000003.npy").write_bytes(data)
    (far / "x_train_000004.npy").unlink()
    done = command(f"file://{far}")
    assert done.exit_code == 1
    assert "x_train_000003.npy arrives with other bytes than its manifest.json promises" in done.stderr
    assert "x_train_000004.npy is not there" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    with pytest.raises(UsageError, match="is a remote, and what that serves is always hashed"):
        verify(f"file://{far}", hashes=False, progress=False)


def test_a_shard_that_the_disk_has_no_room_for_is_said_before_it_is_fetched(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "made", shards=2, tokens=800_000)
    push(tmp_path / "made", f"file://{tmp_path}/far", progress=False)
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(DiskFull, match=r"no room in .*disk for a shard of 1\.6 MB, .* or set TMPDIR"):
        verify(f"file://{tmp_path}/far", progress=False)


def test_a_repo_is_verified_and_nothing_of_it_stays(
    dataset: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    push(dataset, "alice/data", progress=False)
    assert verify("alice/data", deep=True, progress=False).verified
    assert list(tmp_path.iterdir()) == []
    hub.seed_repo("alice/bare", {"x_train_000000.npy": (dataset / "x_train_000001.npy").read_bytes()})
    with pytest.raises(HubError, match=r"has no manifest.json"):
        verify("alice/bare", progress=False)
    with pytest.raises(ManifestError, match="there is no folder"):
        verify(Path("alice/data"), progress=False)
