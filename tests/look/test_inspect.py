"""`inspect`: what a folder holds, whether it is what it says, and what a document says."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_data import make_dataset
from reference import gpt2
from texts import documents, write_parquet

from shardkit import Manifest, convert, info, open_shard, peek, tokenize, verify
from shardkit.dataset.shards import MEND
from shardkit.errors import ManifestError, ShardError, TokenizerError, UsageError
from shardkit.look.peek import PeekedDocument, peek_document

TEXTS = documents(60)
SHARD_TOKENS = 4_000


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_parquet(folder / "a.parquet", TEXTS[:40])
    write_parquet(folder / "b.parquet", TEXTS[40:])
    tokenize(str(folder), folder / "out", shard_tokens=SHARD_TOKENS, workers=1, prefix="x")
    return folder / "out"


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    for path in dataset.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def bare(folder: Path) -> Path:
    (folder / "manifest.json").unlink()
    return folder


def text_of(text: str | None) -> str:
    return str(gpt2().decode(gpt2().encode_ordinary(text or "")))


def test_every_document_can_be_looked_at_with_the_row_that_it_came_from(dataset: Path) -> None:
    for number, text in enumerate(TEXTS):
        found = peek_document(dataset, number, max_tokens=10**9)
        assert found.text == text_of(text)
        assert (found.source_file, found.source_row) == (
            ("a.parquet", number) if number < 40 else ("b.parquet", number - 40)
        )
        assert open_shard(dataset / found.shard)[found.offset] == 50256


def test_a_folder_of_bare_shards_shows_the_same_documents(copy: Path) -> None:
    bare(copy)
    for number in (0, 7, len(TEXTS) - 1):
        found = peek_document(copy, number, max_tokens=10**9)
        assert found.text == text_of(TEXTS[number])
        assert found.source_file is None


@pytest.mark.parametrize("to", ["npy", "llmc"])
def test_the_end_of_text_of_bare_shards_can_be_named_for_a_document(dataset: Path, tmp_path: Path, to: str) -> None:
    others = tmp_path / "others"
    convert(dataset, others, to=to, progress=False)
    if to == "npy":
        bare(others)
    begins = gpt2().encode_ordinary(" the")[0]  # as if that began a document
    tokens = np.concatenate([open_shard(path) for path in sorted(others.glob("x_*"), key=lambda path: path.stem[-6:])])
    places = np.flatnonzero(tokens == begins)
    found = peek(others, document=3, eot_id=begins, tokens=10**9)
    assert isinstance(found, PeekedDocument)
    assert found.text == gpt2().decode(tokens[places[3] + 1 : places[4]].tolist())
    for nobodys in (50_255, 1 << 20):
        with pytest.raises(UsageError, match=f"holds no token {nobodys}.*: say which one does, with eot_id=NUMBER"):
            peek(others, eot_id=nobodys)


def test_another_end_of_text_than_the_manifests_is_refused(dataset: Path) -> None:
    with pytest.raises(UsageError, match="eot_id is 3, .* was made with 50256: leave it out"):
        peek(dataset, document=1, eot_id=3)
    assert peek(dataset, document=1, eot_id=50_256) == peek(dataset, document=1)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_document_is_shown_up_to_a_number_of_tokens(dataset: Path, count: int) -> None:
    number = next(i for i, text in enumerate(TEXTS) if text and len(text) > 200)
    found = peek_document(dataset, number, max_tokens=count)
    assert found.tokens_shown == count
    assert found.text == gpt2().decode(gpt2().encode_ordinary(TEXTS[number])[:count])


@pytest.mark.parametrize("number", [-1, len(TEXTS), 10**30])
def test_a_document_that_is_not_there_is_a_usage_error(dataset: Path, number: int) -> None:
    with pytest.raises(UsageError, match=f"no document {number}: .* holds {len(TEXTS)} documents, from 0"):
        peek_document(dataset, number)


def test_another_vocabulary_of_the_same_name_is_not_used_to_decode(copy: Path) -> None:
    manifest = (copy / "manifest.json").read_text()
    pinned = Manifest.load(copy).tokenizer
    assert pinned is not None
    (copy / "manifest.json").write_text(manifest.replace(pinned.ranks_sha256, "0" * 64))
    for named in (None, "gpt2"):
        with pytest.raises(TokenizerError, match="another vocabulary"):
            peek_document(copy, 0, tokenizer=named)


def test_info_says_what_is_there(dataset: Path, copy: Path) -> None:
    found = info(dataset)
    manifest = Manifest.load(dataset)
    assert (found.tokens, found.documents) == (manifest.tokens, len(TEXTS))
    assert [split.split for split in found.splits] == ["val", "train"]
    assert str(found.tokenizer) == "gpt2 (50,257 ids, EOT 50256)"
    assert found.fingerprint == manifest.fingerprint
    assert info(bare(copy)).tokens == manifest.tokens


def test_verify_passes_what_tokenize_made_and_says_what_it_could_not_check(dataset: Path, copy: Path) -> None:
    assert verify(dataset).shards_without_hash == 0
    shards = len(Manifest.load(dataset).shards)
    assert verify(dataset, hashes=False).shards_without_hash == shards
    assert verify(bare(copy)).shards_without_hash == shards


def rewrite(path: Path, tokens: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, tokens)
    path.write_bytes(buffer.getvalue())


def test_one_flipped_bit_is_found_by_its_hash(copy: Path) -> None:
    path = copy / "x_train_000001.npy"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"x_train_000001\.npy has SHA-256 .*, expected"):
        verify(copy)


def test_ids_beyond_the_vocabulary_and_a_wrong_number_of_documents_are_found_without_hashes(copy: Path) -> None:
    path = copy / "x_train_000001.npy"
    good = np.array(open_shard(path))
    for value, words in ((50257, "holds id 50257"), (50256, "EOT tokens, the manifest says")):
        tokens = good.copy()
        tokens[np.flatnonzero(tokens != 50256)[3]] = value
        rewrite(path, tokens)
        with pytest.raises(ShardError, match=words):
            verify(copy, hashes=False)


@pytest.mark.parametrize("damage", ["short", "missing", "dtype"])
def test_a_shard_that_is_not_there_whole_is_named(copy: Path, damage: str) -> None:
    path = copy / "x_train_000001.npy"
    if damage == "missing":
        path.unlink()
    else:
        rewrite(path, np.zeros(SHARD_TOKENS - (damage == "short"), "<u2" if damage == "short" else "<u4"))
    words = "000001.npy is missing: fetch or make it again" if damage == "missing" else "000001.npy"
    first = Manifest.load(copy).shards[0].documents  # of the next shard
    for look in (lambda: verify(copy, hashes=False), lambda: peek(copy, document=first)):
        with pytest.raises(ShardError, match=words):
            look()


def test_an_unfinished_run_and_a_folder_that_is_no_dataset_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / ".shardkit").mkdir()
    (copy / ".shardkit" / "journal.jsonl").touch()
    for command in (info, verify):
        (copy / "manifest.json").unlink(missing_ok=True)
        with pytest.raises(ManifestError, match="the dataset is unfinished"):
            command(copy)
        with pytest.raises(ManifestError):
            command(tmp_path / "nowhere")


@pytest.mark.parametrize("look", [info, verify])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/x", r"there is no folder user/x here: .* fetch it with `shardkit pull user/x`, and give the folder"),
        ("hf://datasets/user/x", r"fetch it with `shardkit pull hf://datasets/user/x`"),
        ("x", r"there is no folder x: check the path"),
        ("file", r"file is a file: give the folder of a dataset"),
    ],
)
def test_what_is_no_folder_here_is_not_called_unfinished(
    look: Callable[[Path], object], name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ManifestError, match=expected):
        look(Path(name))


def test_info_says_which_shards_are_missing_or_cut(tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    assert info(tmp_path / "a").damage is None
    (tmp_path / "a" / manifest.shards[0].file).unlink()
    gone = tmp_path / "a" / manifest.shards[0].file
    assert info(tmp_path / "a").damage == f"{gone} is missing: {ShardError(MEND)}"
    with open(tmp_path / "a" / manifest.shards[2].file, "r+b") as file:
        file.truncate(100)
    assert str(info(tmp_path / "a").damage).endswith(" (1 more of 4 shards too)")
