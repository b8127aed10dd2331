"""A stranger's `manifest.json`: whatever is in it, one clear line or a manifest that holds together; never a bug."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile_json import mutated
from hub_data import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import Manifest
from shardkit.cli import main
from shardkit.dataset.documents import source_of
from shardkit.dataset.manifest import SourceFile, SourceInfo
from shardkit.errors import ManifestError
from shardkit.remote.card import updated_card


def with_its_sums(data: Any) -> Any:
    """`data` with the totals and the fingerprint that its shards give: a mutation that knows the format."""
    try:
        shards = data["shards"]
        content = [data["dtype"], *([s["split"], s["tokens"], s["sha256"] or s.get("edges", "")] for s in shards)]
        sums = {name: sum(shard[name] for shard in shards) for name in ("tokens", "documents")}
        return {**data, **sums, "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()}
    except (TypeError, KeyError, AttributeError, RecursionError):
        return data


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    manifest = make_dataset(tmp_path_factory.mktemp("valid"), shards=3, tokens=50)
    data: dict[str, Any] = json.loads(manifest.to_json())
    source = SourceInfo(id="a", files=(SourceFile(path="a", bytes=1, rows=9, documents=8, skipped_rows=(2,)),))
    data["source"] = json.loads(Manifest(dtype="uint16", tokens_per_shard=1, shards=(), source=source).to_json())[
        "source"
    ]
    data["tokenizer"] = {"name": "bytes", "vocab_size": 65_000, "eot_id": 256, "ranks_sha256": "0" * 64}
    assert Manifest.from_json(json.dumps(data)).documents == 9
    return data


def check_held(text: str | bytes) -> bool:
    """Whether it is taken; that it is refused in one line, or can be written again and worked with."""
    try:
        manifest = Manifest.from_json(text, where="far/manifest.json")
    except ManifestError as error:
        assert str(error).startswith("far/manifest.json ")
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 700
        return False
    assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert [shard.index for shard in manifest.shards] == sorted(shard.index for shard in manifest.shards)
    assert all(os.path.basename(shard.file) == shard.file and "\0" not in shard.file for shard in manifest.shards)
    for document in (0, 3, manifest.documents):
        source_of(manifest, document)
    if manifest.shards:
        updated_card(None, manifest, "me/it")
    return True


@settings(max_examples=800, deadline=None)
@given(seed=st.integers(0, 2**32), changes=st.integers(1, 3), knowing=st.booleans())
def test_a_manifest_with_anything_in_it_is_refused_in_one_line_or_holds_together(
    valid: dict[str, Any], seed: int, changes: int, knowing: bool
) -> None:
    rng, data = random.Random(seed), valid
    for _ in range(changes):
        data = mutated(data, rng)
    check_held(json.dumps(with_its_sums(data) if knowing else data))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 10**6), cut=st.integers(0, 20), junk=st.binary(max_size=20))
def test_a_manifest_whose_bytes_were_damaged_is_refused_or_says_the_same_of_its_shards(
    valid: dict[str, Any], at: int, cut: int, junk: bytes
) -> None:
    text = json.dumps(valid).encode()
    at %= len(text)
    check_held(text[:at] + junk + text[at + cut :])


def test_the_commands_survive_any_manifest(valid: dict[str, Any], tmp_path: Path) -> None:
    folder, rng, taken = tmp_path / "data", random.Random(7), 0
    make_dataset(folder, shards=3, tokens=50)
    for number in range(60):
        data = with_its_sums(mutated(valid, rng))
        (folder / "manifest.json").write_text(json.dumps(data))
        taken += check_held(json.dumps(data))
        target = str(tmp_path / f"there-{number}")
        for command in (["info"], ["verify"], ["peek", "--document", "4"], ["pull", target], ["push", target + "-too"]):
            result = CliRunner().invoke(main, [command[0], str(folder), *command[1:]])
            assert result.exception is None or isinstance(result.exception, SystemExit), (command, data)
            assert result.exit_code in (0, 1, 2)
    assert taken  # else nothing beyond the first check was tried


def test_a_manifest_of_many_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    make_dataset(tmp_path / "far", shards=2, tokens=50)
    with open(tmp_path / "far" / "manifest.json", "r+b") as file:
        file.truncate(6 << 30)  # sparse: it takes no room on the disk
    with pytest.raises(ManifestError, match=r"cannot read .*manifest\.json: it has 6\.4 GB, more than 268\.4 MB"):
        Manifest.load(tmp_path / "far")
    result = CliRunner().invoke(main, ["pull", str(tmp_path / "far"), str(tmp_path / "here")])
    assert isinstance(result.exception, SystemExit)
    assert "manifest.json has 6.4 GB there, more than 268.4 MB" in result.output


def test_what_has_no_hashes_is_never_called_verified(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", shards=3, tokens=50)
    Manifest.from_shards(tmp_path / "data").save(tmp_path / "data")
    for command in (["verify"], ["pull", str(tmp_path / "copy")]):
        result = CliRunner().invoke(main, [command[0], str(tmp_path / "data"), *command[1:], "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["verified"] is False
    first = tmp_path / "data" / "demo_val_000000.npy"
    first.write_bytes(first.read_bytes()[:-1] + b"\1")  # what there is instead of a hash is compared
    said = CliRunner().invoke(main, ["verify", str(tmp_path / "data")]).output
    assert "demo_val_000000.npy is not the file that its manifest was made of" in said
