"""Datasets in other trainers' formats: golden bytes, round trips, what others wrote, what is damaged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shardkit.dataset.shards
from shardkit import Manifest, ShardLoader, info
from shardkit.dataset.convert import RECORD_NAME, WRITERS, Counted, convert_folder
from shardkit.dataset.formats import llmc, megatron, parquet
from shardkit.dataset.formats.interface import Given
from shardkit.dataset.records import ShardInfo, TokenizerInfo
from shardkit.errors import (
    ManifestError,
    OutputError,
    ShardError,
    ShardkitError,
    ShardkitWarning,
    SourceError,
    UsageError,
)
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
        patch.setattr(os, "fsync", lambda _: None)  # a hundred small files
        for module in (shardkit.dataset.shards, megatron):
            patch.setattr(module, "BLOCK_TOKENS", block)
        patch.setattr(parquet, "_GROUP_TOKENS", block)
        patch.setattr(parquet, "_READ_ROWS", block)
        source = write_npy(Path(name) / "a", stream, cuts, vals=vals, dtype=dtype, first=3 if inside else 0)
        convert(source, Path(name) / "b", to)
        convert(Path(name) / "b", Path(name) / "c", "npy")
        assert contents(Path(name) / "c") == contents(source)


HEAD = (20240520).to_bytes(4, "little") + (1).to_bytes(4, "little")
GOLDEN = [EOT, 1, 2, EOT, 3, EOT, EOT, 4]  # 1 2 | 3 | nothing | 4, of which the second goes on in the train split


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden stream, val `9 1 2 9`, train `3 9 9` and `4`, in every format."""
    folder = tmp_path_factory.mktemp("formats")
    write_npy(folder / "npy", GOLDEN, [4, 7])
    for to in OTHERS:
        convert(folder / "npy", folder / to, to)
    return folder


def u16(*ids: int) -> bytes:
    return np.array(ids, "<u2").tobytes()


def test_llmc_files_have_a_header_of_256_int32_and_then_the_stream_as_it_is(made: Path) -> None:
    def shard(*ids: int) -> bytes:
        return HEAD + len(ids).to_bytes(4, "little") + bytes(1012) + u16(*ids)

    files = contents(made / "llmc")
    del files[RECORD_NAME]
    assert files == {
        "x_val_000000.bin": shard(9, 1, 2, 9),
        "x_train_000001.bin": shard(3, 9, 9),
        "x_train_000002.bin": shard(4),
    }


C_READER = r"""
#include <stdio.h>
#include <stdint.h>
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        int header[256];
        if (!file || fread(header, sizeof(int), 256, file) != 256) return 1;
        if (header[0] != 20240520 || header[1] != 1 || header[2] <= 0) return 2;
        fseek(file, 0, SEEK_END);
        if (ftell(file) != (long)(256 * sizeof(int) + header[2] * sizeof(uint16_t))) return 3;
        fseek(file, 256 * sizeof(int), SEEK_SET);
        uint16_t token;
        while (fread(&token, sizeof(token), 1, file) == 1) printf("%d ", token);
    }
}
"""


@pytest.mark.parametrize(
    ("name", "split"),
    [("val.bin", "val"), ("x_val.bin", "val"), ("x_val_000003.bin", "val"), ("x_value_train_000000.bin", "train")],
)
def test_one_file_of_llmc_is_of_the_split_that_it_is_in_a_folder(
    made: Path, tmp_path: Path, name: str, split: str
) -> None:
    (tmp_path / "f").mkdir()
    shutil.copy(made / "llmc" / "x_train_000001.bin", tmp_path / "f" / name)
    given = Given(eot_id=EOT)
    for source in (tmp_path / "f" / name, tmp_path / "f"):
        assert [found for found, _ in llmc.read(source, given).blocks()] == [split]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_reader_in_c_by_the_rules_of_llmc_accepts_the_files(made: Path, tmp_path: Path) -> None:
    (tmp_path / "reader.c").write_text(C_READER)
    subprocess.run(["cc", "-o", "reader", "reader.c"], cwd=tmp_path, check=True)
    files = sorted((made / "llmc").glob("*.bin"), key=lambda path: path.name.rpartition("_")[2])
    read = subprocess.run([tmp_path / "reader", *files], capture_output=True, text=True, check=True)
    assert [int(token) for token in read.stdout.split()] == GOLDEN


def test_the_loading_arithmetic_of_modded_nanogpt_accepts_the_files(made: Path) -> None:
    import torch

    path = made / "llmc" / "x_train_000001.bin"
    header = torch.from_file(str(path), False, 256, dtype=torch.int32)
    tokens = torch.empty(int(header[2]), dtype=torch.uint16)
    with path.open("rb", buffering=0) as file:
        file.seek(256 * 4)
        assert file.readinto(tokens.numpy()) == 2 * len(tokens)
    assert (header[0], header[1], tokens.tolist()) == (20240520, 1, [3, 9, 9])


def test_nanogpt_files_are_the_tokens_with_the_eot_after_each_document(made: Path) -> None:
    files = contents(made / "nanogpt")
    assert files["val.bin"] == u16(1, 2, 9)
    assert files["train.bin"] == u16(3, 9, 9, 4, 9)
    assert pickle.loads(files["meta.pkl"]) == {"vocab_size": 10}


def test_nanogpt_has_no_meta_for_gpt2_since_it_takes_its_vocabulary_then(tmp_path: Path) -> None:
    gpt2 = dataclasses.replace(VOCABULARY, vocab_size=50257, eot_id=50256)
    folder = write_npy(tmp_path / "a", [50256, 1], [])
    dataclasses.replace(Manifest.load(folder), tokenizer=gpt2).save(folder)
    convert(folder, tmp_path / "b", "nanogpt")
    assert not (tmp_path / "b" / "meta.pkl").exists()


def test_megatron_files_have_a_sequence_for_each_document(made: Path) -> None:
    files = contents(made / "megatron")
    assert files["val.bin"] == u16(1, 2, 9)
    assert files["train.bin"] == u16(3, 9, 9, 4, 9)
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little") + (4).to_bytes(8, "little")
    lengths = np.array([2, 1, 2], "<i4").tobytes()
    assert files["train.idx"] == head + lengths + np.array([0, 4, 6, 0, 1, 2, 3], "<i8").tobytes()


def test_parquet_has_a_row_for_each_document_and_the_same_number_for_one_that_goes_on(made: Path) -> None:
    tables = {path.name: pq.read_table(path) for path in (made / "parquet").glob("*.parquet")}
    assert {name: table.to_pydict() for name, table in tables.items()} == {
        "val-00000.parquet": {"document": [0, 1], "input_ids": [[1, 2], []]},
        "train-00000.parquet": {"document": [1, 2, 3], "input_ids": [[3], [], [4]]},
    }
    assert tables["val-00000.parquet"].schema.field("input_ids").type == pa.list_(pa.uint16())


def test_a_record_keeps_what_the_files_cannot_hold(made: Path) -> None:
    record = json.loads((made / "megatron" / RECORD_NAME).read_text())
    assert record["format"] == "megatron"
    assert record["tokens"] == {"val": 4, "train": 4}
    assert record["manifest"] == json.loads((made / "npy" / "manifest.json").read_text())


@pytest.mark.parametrize("start", OTHERS)
def test_a_way_through_all_formats_ends_where_it_began(made: Path, tmp_path: Path, start: str) -> None:
    way = [*OTHERS[OTHERS.index(start) :], *OTHERS[: OTHERS.index(start)], "npy"]
    source = made / "npy"
    for number, to in enumerate(way):
        convert(source, tmp_path / str(number), to)
        source = tmp_path / str(number)
    assert contents(source) == contents(made / "npy")


def test_shards_of_another_length_hold_the_same_splits(made: Path, tmp_path: Path) -> None:
    again = convert(made / "megatron", tmp_path / "again", "npy", shard_tokens=3).manifest
    assert again is not None
    assert {split: [shard.tokens for shard in shards] for split, shards in again.splits.items()} == {
        "val": [3, 1],
        "train": [3, 1],
    }
    assert [shard.first_document for shard in again.shards] == [0, 1, 2, 4]
    assert np.concatenate([np.load(tmp_path / "again" / shard.file) for shard in again.shards]).tolist() == GOLDEN
    assert again.tokens_per_shard == 3
    assert Manifest.load(tmp_path / "again") == again


def stream_of(counted: Counted) -> list[int]:
    assert counted.manifest is not None
    assert counted.manifest.directory is not None
    return np.concatenate([np.load(counted.manifest.directory / s.file) for s in counted.manifest.shards]).tolist()


def test_llmc_shards_of_others_keep_their_names_and_lengths(tmp_path: Path) -> None:
    convert(write_npy(tmp_path / "n", GOLDEN, [3, 6]), tmp_path / "b", "llmc")
    foreign = copy_of(tmp_path / "b", tmp_path / "l", **{RECORD_NAME: None})
    back = convert(foreign, tmp_path / "a", "npy").manifest
    assert back is not None
    shards = contents(tmp_path / "n")
    del shards["manifest.json"]
    assert {shard.file: (tmp_path / "a" / shard.file).read_bytes() for shard in back.shards} == shards
    (foreign / "x_train_000001.bin").unlink()
    with pytest.raises(ManifestError, match="lacks 1: fetch them"):
        convert(foreign, tmp_path / "c", "npy")


def test_nanogpt_files_of_others_get_an_eot_before_each_document(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "train.bin").write_bytes(u16(3, 9, 9, 4))  # the last document has no EOT
    (tmp_path / "n" / "val.bin").write_bytes(u16(1, 2, 9))
    made = convert(tmp_path / "n", tmp_path / "a", "npy", eot_id=9)
    assert stream_of(made) == [9, 1, 2, 9, 3, 9, 9, 4]
    assert made.tokens == {"val": 3, "train": 5}
    assert made.documents == 4


def test_without_an_eot_the_tokens_of_nanogpt_stay_as_they_are_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "train.bin").write_bytes(u16(3, 9, 4))
    with pytest.warns(ShardkitWarning, match="which token ends a document"):
        made = convert(tmp_path / "n", tmp_path / "a", "npy")
    assert stream_of(made) == [3, 9, 4]
    assert made.documents is None


megatron_documents = st.lists(st.lists(st.lists(st.integers(0, 8), max_size=4), max_size=3), min_size=1, max_size=8)


@settings(max_examples=60)
@given(documents=megatron_documents, eod=st.booleans(), block=st.integers(1, 5), code=st.sampled_from([4, 5, 8]))
@example(documents=[[], [[1]], [[]], []], eod=False, block=1, code=4)
def test_megatron_files_of_others_may_have_sentences_empty_documents_and_no_eot(
    documents: list[list[list[int]]], eod: bool, block: int, code: int
) -> None:
    for sentences in documents:
        if eod and any(sentences):
            sentences[-1].append(EOT)
    sequences = [sequence for sentences in documents for sequence in sentences]
    ids = np.array([i for sequence in sequences for i in sequence], {4: "<i4", 5: "<i8", 8: "<u2"}[code])
    if not len(ids):
        return
    lengths = np.array([len(sequence) for sequence in sequences])
    pointers = (np.cumsum(lengths) - lengths) * ids.itemsize
    bounds = np.cumsum([0, *map(len, documents)])
    head = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + bytes([code])
    counts = np.array([len(lengths), len(bounds)], "<u8").tobytes()
    arrays = lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + bounds.astype("<i8").tobytes()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # a hundred small files
        for module in (shardkit.dataset.shards, megatron):
            patch.setattr(module, "BLOCK_TOKENS", block)
        Path(name, "x_text_document.bin").write_bytes(ids.tobytes())
        Path(name, "x_text_document.idx").write_bytes(head + counts + arrays)
        made = convert(Path(name, "x_text_document"), Path(name, "a"), "npy", eot_id=EOT)
        plain = [[i for sequence in sentences for i in sequence if i != EOT] for sentences in documents]
        assert stream_of(made) == [i for document in plain for i in (EOT, *document)]


def test_parquet_of_others_may_have_an_eot_at_either_end_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    rows = [[1, 2, EOT], [EOT, 3], [EOT], [4]]
    pq.write_table(pa.table({"tokens": rows, "n": [1, 2, 3, 4]}), tmp_path / "p" / "train-00000-of-00001.parquet")
    made = convert(tmp_path / "p", tmp_path / "a", "npy", eot_id=EOT, tokenizer=VOCABULARY)
    assert stream_of(made) == [9, 1, 2, 9, 3, 9, 9, 4]
    assert made.manifest is not None
    assert made.manifest.dtype == "uint16"


def test_numbers_of_others_join_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_READ_ROWS", 2)
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"input_ids": [[1], [2], [3]], "document": [7, 7, 7]}), tmp_path / "p" / "x.parquet")
    assert stream_of(convert(tmp_path / "p", tmp_path / "a", "npy", eot_id=EOT)) == [9, 1, 9, 2, 9, 3]


def test_rows_are_written_also_where_all_documents_are_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_TOKENS", 4)
    monkeypatch.setattr(shardkit.dataset.shards, "BLOCK_TOKENS", 2)
    convert(write_npy(tmp_path / "a", [EOT] * 20, []), tmp_path / "b", "parquet")
    file = pq.ParquetFile(tmp_path / "b" / "val-00000.parquet")
    assert file.metadata.num_rows == 20
    assert file.metadata.num_row_groups > 4


@pytest.mark.parametrize("to", OTHERS)
def test_bare_shards_come_back_too_and_get_a_manifest(made: Path, tmp_path: Path, to: str) -> None:
    bare = copy_of(made / "npy", tmp_path / "bare", **{"manifest.json": None})
    convert(bare, tmp_path / "b", to, eot_id=EOT)
    back = convert(tmp_path / "b", tmp_path / "c", "npy").manifest
    shards = contents(tmp_path / "c")
    assert Manifest.from_json(shards.pop("manifest.json")) == back
    assert shards == contents(bare)
    assert back is not None
    assert [(shard.documents, shard.first_document) for shard in back.shards] == [(2, 0), (2, 2), (0, 4)]


def test_bare_shards_that_come_back_otherwise_are_refused(made: Path, tmp_path: Path) -> None:
    bare = copy_of(made / "npy", tmp_path / "bare", **{"manifest.json": None})
    convert(bare, tmp_path / "b", "nanogpt", eot_id=EOT)
    (tmp_path / "b" / "val.bin").write_bytes(u16(1, 3, 9))
    with pytest.raises(ShardError, match="x_val_000000.npy does not come back"):
        convert(tmp_path / "b", tmp_path / "c", "npy")


def test_an_id_that_megatron_cannot_hold_is_refused(tmp_path: Path) -> None:
    large = dataclasses.replace(VOCABULARY, vocab_size=1 << 32)
    folder = write_npy(tmp_path / "a", [EOT, 1 << 31], [], dtype="<u4")
    dataclasses.replace(Manifest.load(folder), tokenizer=large).save(folder)
    with pytest.raises(ShardError, match="the tokens hold 2147483648, Megatron's ids are below"):
        convert(folder, tmp_path / "b", "megatron")


@pytest.mark.parametrize("format", OTHERS)
def test_a_record_without_its_files_is_refused(made: Path, tmp_path: Path, format: str) -> None:
    gone = {name: None for name in contents(made / format) if name != RECORD_NAME}
    source = copy_of(made / format, tmp_path / "s", **gone)
    with pytest.raises(ShardError):
        convert(source, tmp_path / "out", "npy")


def test_datasets_loads_the_parquet_folder_with_its_splits(made: Path, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(made / "parquet"), cache_dir=str(tmp_path))
    assert loaded["train"]["input_ids"][:] == [[3], [], [4]]
    assert loaded["val"]["document"][:] == [0, 1]


def test_headerless_npy_files_of_dolma_are_shards_once_their_dtype_is_given(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "part-0-00000.npy").write_bytes(u16(1, 2, 9, 3))
    (tmp_path / "d" / "part-0-00001.npy").write_bytes(u16(4, 9))
    with pytest.raises(ManifestError, match="part-0-00000.npy: is it ids and nothing else, as Dolma and OLMo"):
        Manifest.of_folder(tmp_path / "d")
    with pytest.raises(UsageError, match="Dolma and OLMo write them.* give dtype='uint16'"):
        convert(tmp_path / "d", tmp_path / "a", "npy", eot_id=9)
    made = convert(tmp_path / "d", tmp_path / "a", "npy", eot_id=9, dtype="uint16")
    assert stream_of(made) == [9, 1, 2, 9, 3, 4]


def copy_of(folder: Path, place: Path, **changed: bytes | None) -> Path:
    """A copy with other content in some files, and without those of None."""
    place.mkdir()
    for name, data in {**contents(folder), **changed}.items():
        if data is not None:
            (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize(
    ("format", "name", "content", "error", "message"),
    [
        (
            "llmc",
            "x_train_000001.bin",
            HEAD + bytes(1020),
            ShardError,
            "has no llm.c header|its header says.*: .*make it again",
        ),
        ("nanogpt", "train.bin", u16(3, 9, 9, 4), ShardError, "does not end with the end-of-text token 9|holds"),
        ("nanogpt", "train.bin", u16(3, 9, 9, 5, 9), ShardError, "x_train_000002.npy does not come back"),
        ("nanogpt", "train.bin", b"123", ShardError, "no whole number of uint16"),
        ("nanogpt", "train.bin", u16(3, 9, 12, 4, 9), ShardError, "holds id 12, the vocabulary has 10"),
        ("megatron", "train.idx", b"MMIDIDX", ShardError, "is no index of Megatron-LM"),
        ("megatron", "train.bin", u16(3, 9, 9, 4), ShardError, "do not go together"),
        ("parquet", "train-00000.parquet", b"PAR1", ShardError, "is no whole parquet file.*: fetch or make it again"),
        ("npy", "x_train_000001.npy", None, ShardError, "SHA-256 that its manifest states"),
        ("nanogpt", RECORD_NAME, b"{}", ManifestError, "is not what `shardkit convert` writes"),
    ],
)
def test_damage_is_one_line_and_leaves_no_folder(
    made: Path, tmp_path: Path, format: str, name: str, content: bytes | None, error: type[ShardkitError], message: str
) -> None:
    if content is None:
        data = bytearray((made / format / name).read_bytes())
        data[-2] ^= 1
        content = bytes(data)
    source = copy_of(made / format, tmp_path / "s", **{name: content})
    with pytest.raises(error, match=message):
        convert(source, tmp_path / "out", "llmc" if format == "npy" else "npy")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize(
    "changed",
    [
        {"tokens": {"../../val": 4, "train": 4}},
        {"tokens": {"val": 3, "train": 5}},
        {"format": "headerless"},
        {"eot_id": 70000},
        {"tokens": {}},
        {"manifest": 3},
    ],
)
def test_a_record_that_cannot_be_is_refused(made: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    record = json.loads((made / "megatron" / RECORD_NAME).read_text()) | changed
    source = copy_of(made / "megatron", tmp_path / "s", **{RECORD_NAME: json.dumps(record).encode()})
    with pytest.raises((ManifestError, UsageError)):
        convert(source, tmp_path / "out", "nanogpt")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_empty_folder_that_is_there_is_filled(made: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_ino
    convert(made / "llmc", tmp_path / "out", "npy")
    assert contents(tmp_path / "out") == contents(made / "npy")
    assert (tmp_path / "out").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", OTHERS)
@settings(max_examples=25)
@given(data=st.data())
def test_any_other_byte_is_refused_or_changes_nothing(made: Path, format: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(contents(made / format))))
    content = bytearray((made / format / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        source = copy_of(made / format, Path(folder) / "s", **{name: bytes(content)})
        with contextlib.suppress(ShardkitError):
            convert(source, Path(folder) / "out", "npy")
            back, shards = contents(Path(folder) / "out"), contents(made / "npy")
            if name == RECORD_NAME:  # the name of the vocabulary, for one, is checked by nothing
                del back["manifest.json"], shards["manifest.json"]
            assert back == shards


def test_what_a_killed_conversion_left_is_not_in_the_next_one(made: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.converting").mkdir()
    (tmp_path / ".out.converting" / "junk.bin").write_bytes(b"junk")
    convert(made / "npy", tmp_path / "out", "llmc")
    assert contents(tmp_path / "out") == contents(made / "llmc")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("bad", ["index", "bounds", "pointers"])
def test_an_index_that_cannot_be_is_refused(made: Path, tmp_path: Path, bad: str) -> None:
    data = bytearray((made / "megatron" / "train.idx").read_bytes())
    place = {"index": 9, "bounds": len(data) - 16, "pointers": 34 + 12 + 8}[bad]
    data[place] += 3
    source = copy_of(made / "megatron", tmp_path / "s", **{"train.idx": bytes(data)})
    with pytest.raises(ShardError, match=r"train\.idx"):
        convert(source, tmp_path / "out", "npy")


@pytest.mark.parametrize(
    ("lost", "source"),
    [
        (["train.idx"], ""),
        (["train.idx"], "train.bin"),
        (["train.idx", RECORD_NAME], ""),
        (["train.idx", RECORD_NAME], "train.bin"),
        (["train.idx", "val.idx"], ""),
        (["train.idx", "val.idx"], "train.bin"),
    ],
)
def test_a_file_of_megatron_without_its_index_is_refused_and_is_not_taken_for_nanogpts(
    made: Path, tmp_path: Path, lost: list[str], source: str
) -> None:
    folder = copy_of(made / "megatron", tmp_path / "m", **dict.fromkeys(lost))
    with pytest.raises(ShardError, match=r"m/(train|val)\.bin has no (train|val)\.idx beside it.*: fetch"):
        convert(folder / source, tmp_path / "out", "npy", eot_id=EOT)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["", "x_text_document.bin", "x_text_document"])
def test_a_bin_file_of_no_known_name_needs_its_index(made: Path, tmp_path: Path, source: str) -> None:
    (tmp_path / "m").mkdir()
    shutil.copy(made / "megatron" / "train.bin", tmp_path / "m" / "x_text_document.bin")
    with pytest.raises(ShardError, match=r"x_text_document\.bin has no x_text_document\.idx beside it"):
        convert(tmp_path / "m" / source, tmp_path / "out", "npy", eot_id=EOT)
    shutil.copy(made / "megatron" / "train.idx", tmp_path / "m" / "x_text_document.idx")
    made_of_it = convert(tmp_path / "m" / source, tmp_path / "out", "npy", eot_id=EOT)
    assert stream_of(made_of_it) == [9, 3, 9, 9, 4]


def test_a_split_whose_file_is_gone_is_told_by_the_tokens_that_are_there(made: Path, tmp_path: Path) -> None:
    source = copy_of(made / "nanogpt", tmp_path / "s", **{"train.bin": None})
    with pytest.raises(ShardError, match="s holds 3 tokens, its shardkit.json says 8"):
        convert(source, tmp_path / "out", "npy")


@pytest.mark.parametrize("format", ["npy", *OTHERS])
def test_a_dtype_is_refused_where_the_files_say_another(made: Path, tmp_path: Path, format: str) -> None:
    with pytest.raises(UsageError, match=r"uint16, not uint32|dtype is uint32, the ids of .* are uint16"):
        convert(made / format, tmp_path / "a", "llmc", dtype="uint32")
    assert not (tmp_path / "a").exists()
    assert convert(made / format, tmp_path / "a", "llmc", dtype="uint16").tokens == {"val": 4, "train": 4}


@pytest.mark.parametrize("format", ["npy", "llmc", "megatron"])
def test_files_of_others_that_say_their_dtype_take_no_other(made: Path, tmp_path: Path, format: str) -> None:
    source = copy_of(made / format, tmp_path / "s", **{RECORD_NAME: None})
    with pytest.raises(UsageError, match=r"dtype is uint32, the ids of .* are uint16: leave dtype= out"):
        convert(source, tmp_path / "a", "llmc", dtype="uint32", eot_id=EOT)


@pytest.mark.parametrize("way", ["x", "a/b", "../m/x"])
def test_an_output_folder_within_the_source_is_refused(made: Path, tmp_path: Path, way: str) -> None:
    source = copy_of(made / "megatron", tmp_path / "m")
    with pytest.raises(OutputError, match="is inside .*m, which is read: choose a folder beside it"):
        convert(source, source / way, "npy")
    assert contents(source) == contents(made / "megatron")
    assert convert(source, tmp_path / "mx", "npy").tokens == {"val": 4, "train": 4}


def test_a_place_that_is_not_empty_or_no_dataset_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not an empty folder"):
        convert(made / "npy", tmp_path / "full", "llmc")
    with pytest.raises(SourceError, match="holds no dataset of tokens"):
        convert(tmp_path / "full", tmp_path / "out", "npy")
    with pytest.raises(SourceError, match="is not there"):
        convert(tmp_path / "none", tmp_path / "out", "npy")
    foreign = copy_of(made / "megatron", tmp_path / "m", **{RECORD_NAME: None})
    with pytest.raises(UsageError, match="needs to know which token ends a document"):
        convert(foreign, tmp_path / "out", "npy")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_or_eot_than_the_datasets_own_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="own tokenizer is ten"):
        convert(made / "npy", tmp_path / "a", "llmc", tokenizer=dataclasses.replace(VOCABULARY, vocab_size=11))
    with pytest.raises(UsageError, match="own tokenizer is ten .*: leave eot_id= out"):
        convert(made / "npy", tmp_path / "a", "llmc", eot_id=3)
    with pytest.raises(UsageError, match="says that 9 ends a document, not 3"):
        convert(made / "nanogpt", tmp_path / "a", "npy", eot_id=3)


def test_nanogpt_cannot_have_uint32(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="uint16 ids only"):
        convert(write_npy(tmp_path / "a", [EOT, 1], [], dtype="<u4"), tmp_path / "b", "nanogpt")


@pytest.mark.parametrize(("format", "val", "train"), [("llmc", 4, [3, 9, 9, 4]), ("nanogpt", 3, [3, 9, 9, 4, 9])])
def test_bin_files_are_opened_in_place(made: Path, format: str, val: int, train: list[int]) -> None:
    assert [(part.split, part.tokens) for part in info(made / format).splits] == [("val", val), ("train", len(train))]
    with ShardLoader(made / format, batch_size=1, seq_len=3, shuffle=False, rank=0, world_size=1) as loader:
        inputs, targets = loader.next_batch()
    assert [*inputs[0].tolist(), int(targets[0, -1])] == train[:4]


def test_a_bin_file_that_is_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x_train_000000.bin").write_bytes(bytes(2000))
    with pytest.raises(ShardError, match="no llm.c header"):
        Manifest.of_folder(tmp_path)
