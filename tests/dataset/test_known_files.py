"""A folder whose files are replaced while they are read: what is read is the dataset that was opened, or an error."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from loader_data import write_documents, write_shards

from shardkit.dataset.known_files import unchanged
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest
from shardkit.dataset.token_stream import TokenStream, open_split
from shardkit.errors import ManifestError, ShardError

REPLACED = "is another file than when the dataset was opened"


def make(folder: Path, token: int) -> Path:
    """A dataset of shards of 20 tokens, all of them `token` or EOT; of the same sizes whatever `token` is."""
    folder.mkdir(parents=True)
    write_documents(folder, [("a", [token] * 9)] * 12, tokens_per_shard=20)
    return folder


def replace(old: Path, new: Path) -> None:
    """Put the dataset `new` where `old` is, as our own commands do: manifest away, shards by rename, manifest."""
    (old / MANIFEST_NAME).unlink(missing_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
        shutil.copy(path, old / "part")
        os.replace(old / "part", old / path.name)


def read_all(stream: TokenStream) -> set[int]:
    out = np.empty(stream.tokens, stream.dtype)
    stream.read(0, out)
    return set(out.tolist())


@pytest.mark.parametrize("opened_before", [False, True])
def test_the_shards_of_another_dataset_of_the_same_sizes_are_refused(opened_before: bool, tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    _, stream = open_split(one, "train", verify=False)
    if opened_before:
        assert read_all(stream) == {1, 50256}
        stream.close()
    replace(one, two)
    for _ in range(2):  # nor is it read the second time
        with pytest.raises(ShardError, match=f"x_train_000001.npy {REPLACED}"):
            read_all(stream)
    assert read_all(open_split(one, "train", verify=False)[1]) == {2, 50256}


def test_links_that_lead_nowhere_beside_the_shards_hide_no_replacement(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    for number in range(30):
        (one / f"{number}.npy").symlink_to("nowhere")
    _, stream = open_split(one, "train", verify=False)
    replace(one, two)
    with pytest.raises(ShardError, match=REPLACED):
        read_all(stream)


def test_a_shard_that_is_open_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    _, stream = open_split(one, "train", verify=False)
    assert stream.run(0, 20) is not None
    replace(one, two)
    out = np.empty(20, stream.dtype)
    stream.read(0, out)
    assert 1 in out.tolist()
    with pytest.raises(ShardError, match=f"x_train_000002.npy {REPLACED}"):
        stream.run(20, 20)


def test_the_same_shard_fetched_again_is_read_on(tmp_path: Path) -> None:
    one, again = make(tmp_path / "one", 1), make(tmp_path / "again", 1)
    _, stream = open_split(one, "train", verify=False)
    read_all(stream)
    stream.close()
    replace(one, again)
    assert read_all(stream) == {1, 50256}


def test_another_file_under_the_name_of_a_bare_shard_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    shutil.copy(tmp_path / "x_train_000001.npy", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "x_train_000001.npy")
    with pytest.raises(ShardError, match=f"x_train_000001.npy {REPLACED}"):
        read_all(stream)


def test_a_shard_that_is_written_over_in_place_is_another_file(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    _, stream = open_split(tmp_path, "train", verify=False)
    path = tmp_path / "x_train_000001.npy"
    path.write_bytes(path.read_bytes()[:-20] + b"\1\0" * 10)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ShardError, match=REPLACED):
        read_all(stream)


def test_a_copy_of_a_reader_reads_only_the_same_files(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    _, stream = open_split(one, "train", verify=False)
    copy = pickle.loads(pickle.dumps(stream))
    replace(one, two)
    with pytest.raises(ShardError, match=REPLACED):
        read_all(copy)


def test_a_manifest_that_was_read_before_the_folder_was_replaced_is_refused(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    manifest = Manifest.load(one)
    (one / MANIFEST_NAME).unlink()  # somebody is about to
    with pytest.raises(ManifestError, match="has no manifest.json"):
        open_split(manifest, "train", verify=False)
    replace(one, two)
    with pytest.raises(ManifestError, match="holds another dataset .* read it again, with Manifest.load"):
        open_split(manifest, "train", verify=False)


def test_bare_shards_that_were_replaced_since_their_manifest_was_made_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, [10, 10])
    manifest = Manifest.from_shards(tmp_path)
    np.save(tmp_path / "x_train_000001.npy", np.zeros(10, "<u2"))
    with pytest.raises(ShardError, match="is not the file that its manifest was made of"):
        read_all(open_split(manifest, "train", verify=False)[1])


def test_a_folder_that_is_replaced_between_its_listing_and_its_manifest_is_read_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = make(tmp_path / "one", 1), make(tmp_path / "two", 2)
    load = Manifest.of_folder

    def replace_and_load(directory: Path) -> Manifest:
        replace(one, two)
        return load(directory)

    monkeypatch.setattr(Manifest, "of_folder", replace_and_load)
    assert read_all(open_split(one, "train", verify=False)[1]) == {2, 50256}


def test_a_file_that_is_replaced_between_two_reads_of_it_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    with unchanged(path):
        path.read_text()
    (tmp_path / "new").write_text("two")
    with pytest.raises(ShardError, match="file was replaced while it was read"), unchanged(path):
        os.replace(tmp_path / "new", path)
