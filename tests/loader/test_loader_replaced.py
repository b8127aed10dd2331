"""A folder that our own commands give another dataset while it is in use: never a token of the other one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardkit import Manifest, push, tokenize
from shardkit.dataset.known_files import KnownFiles
from shardkit.errors import ShardError
from shardkit.loader.loader import ShardLoader
from shardkit.look.peek import peek_document
from shardkit.look.verify import verify
from shardkit.remote.storage import FsspecRemote

REPLACED = "is another file than when the dataset was opened"


def make(folder: Path, byte: str, *, overwrite: bool = False) -> Path:
    """A dataset of shards of 500 tokens, each token the byte (or EOT): of the same sizes for any byte."""
    options: dict[str, Any] = {"shard_tokens": 500, "tokenizer": "bytes", "workers": 1, "prefix": "x"}
    tokenize([byte * 99] * 40, folder, overwrite=overwrite, **options)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("made")
    make(home / "a", "a")
    make(home / "b", "b")
    assert [s.bytes for s in Manifest.load(home / "a").shards] == [s.bytes for s in Manifest.load(home / "b").shards]
    return home


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "a", tmp_path / "folder"))


def by_push(folder: Path, made: Path) -> None:
    push(made / "b", str(folder), overwrite=True)


def by_tokenize(folder: Path, made: Path) -> None:
    make(folder, "b", overwrite=True)


@pytest.mark.parametrize("replace", [by_push, by_tokenize])
@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_never_gives_a_token_of_another_dataset(
    replace: Callable[[Path, Path], None], shuffle: bool, made: Path, folder: Path
) -> None:
    loader = ShardLoader(folder, batch_size=2, seq_len=50, shuffle=shuffle)
    loader.next_batch()
    replace(folder, made)
    given: set[int] = set()

    def read_on() -> None:
        for _ in range(50):
            given.update(loader.next_batch()[0].unique().tolist())

    with pytest.raises(ShardError, match=REPLACED):
        read_on()
    assert ord("b") not in given
    loader.close()
    assert ord("b") in ShardLoader(folder, batch_size=2, seq_len=50).next_batch()[0]


def test_a_packing_plan_is_used_with_the_shards_that_it_was_made_of(made: Path, folder: Path) -> None:
    loader = ShardLoader(folder, batch_size=2, seq_len=50, layout="packed")
    by_push(folder, made)
    given = {token for _ in range(50) for token in loader.next_batch()[0].unique().tolist()}
    assert given == {ord("a"), 256}  # the plan had every shard opened
    loader._sequence.sources[0].stream.close()
    with pytest.raises(ShardError, match=REPLACED):
        loader.next_batch()


def test_verify_of_a_folder_that_is_replaced_meanwhile_does_not_pass(
    made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_first(self: KnownFiles, *args: Any) -> Any:
        monkeypatch.setattr(KnownFiles, "open", opened)
        by_push(folder, made)
        return opened(self, *args)

    opened = KnownFiles.open
    monkeypatch.setattr(KnownFiles, "open", replace_first)
    with pytest.raises(ShardError, match=REPLACED):
        verify(folder, hashes=False)


def test_peek_at_a_folder_that_is_replaced_meanwhile_shows_nothing_of_the_other(
    made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = KnownFiles.map

    def replace_after(self: KnownFiles, *args: Any) -> NDArray[Any]:
        tokens = mapped(self, *args)
        monkeypatch.setattr(KnownFiles, "map", mapped)
        by_push(folder, made)
        return tokens

    monkeypatch.setattr(KnownFiles, "map", replace_after)
    with pytest.raises(ShardError, match=REPLACED):
        peek_document(folder, 4)  # which goes on in the next shard


def test_push_of_a_folder_that_is_replaced_meanwhile_publishes_nothing(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = FsspecRemote.upload

    def replace_first(self: FsspecRemote, path: Path, shard: Any) -> None:
        if path.parent == folder and path.name == "x_train_000003.npy":
            shutil.copy(made / "b" / path.name, tmp_path / "new")
            os.replace(tmp_path / "new", path)
        upload(self, path, shard)

    monkeypatch.setattr(FsspecRemote, "upload", replace_first)
    with pytest.raises(ShardError, match=r"x_train_000003.npy was replaced while it was read: run the same command"):
        push(folder, str(tmp_path / "remote"))
    assert not (tmp_path / "remote" / "manifest.json").exists()


def test_push_publishes_the_manifest_of_what_it_sent(
    made: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = FsspecRemote.upload

    def replace_the_manifest(self: FsspecRemote, path: Path, shard: Any) -> None:
        upload(self, path, shard)
        shutil.copy(made / "b" / "manifest.json", folder / "manifest.json")

    monkeypatch.setattr(FsspecRemote, "upload", replace_the_manifest)
    push(folder, str(tmp_path / "remote"))
    assert verify(tmp_path / "remote").fingerprint == Manifest.load(made / "a").fingerprint
    assert np.load(tmp_path / "remote" / "x_val_000000.npy").max() in (ord("a"), 256)
