"""Every format that people have gives the same texts, packed or not, however it is cut; what it cannot give is one
line."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import os
import threading
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from file_server import serving
from hypothesis import given
from hypothesis import strategies as st
from source_data import TEXTS, chunk_texts, lines, packed, texts_of

from shardkit.errors import ShardkitWarning, SourceError, UsageError
from shardkit.sources import packed_stream
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import SourceNames, open_source
from shardkit.sources.packed_stream import PackedStream
from shardkit.sources.texts import BadRow


def separated(delimiter: str, texts: list[str]) -> bytes:
    quoted = ('"{}"'.format(text.replace('"', '""')) for text in texts)  # Python 3.10's csv writes no NUL
    rows = [delimiter.join(("id", "text")), *(f"{number}{delimiter}{text}" for number, text in enumerate(quoted))]
    return "".join(f"{row}\r\n" for row in rows).encode()


def array(texts: list[str], indent: int | None = None) -> bytes:
    return json.dumps([{"id": 1, "text": text} for text in texts], ensure_ascii=False, indent=indent).encode()


def arrow(texts: list[str], *, stream: bool) -> bytes:
    sink, table = pa.BufferOutputStream(), pa.table({"id": range(len(texts)), "text": texts})
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return bytes(sink.getvalue().to_pybytes())


ROWS = {
    "a.jsonl": lines(TEXTS),
    "a.ndjson": lines(TEXTS),
    "a.json": lines(TEXTS),
    "array.json": array(TEXTS),
    "indented.json": b"\xef\xbb\xbf" + array(TEXTS, 2),
    "objects.json": b"\n".join(json.dumps({"text": text}, indent=1).encode() for text in TEXTS),
    "strings.json": json.dumps(TEXTS).encode(),
    "a.csv": separated(",", TEXTS),
    "b.csv": b"\xef\xbb\xbf" + separated(",", TEXTS).replace(b"\r\n", b"\n\n"),
    "a.tsv": separated("\t", TEXTS),
}
CHECKED = (".gz", ".json", ".csv", ".tsv", "jsonl.xz", "jsonl.bz2")
FILES = ROWS | {f"{name}.{ending}": data for name, data in ROWS.items() for ending in ("gz", "zst", "bz2", "xz")}


def pack(name: str, data: bytes) -> bytes:
    """The bytes of a file of that name, packed in two streams."""
    half = len(data) // 2
    if name.endswith((".bz2", ".xz")):
        compress = bz2.compress if name.endswith(".bz2") else lzma.compress
        return compress(data[:half]) + compress(data[half:])
    return packed(name, data)


@pytest.mark.parametrize(
    "name", [n for n in FILES if n.endswith((".gz", ".json", ".csv", ".tsv", "jsonl.xz", "jsonl.bz2"))]
)
def test_rows_of_every_format_are_read_however_they_are_cut(tmp_path: Path, name: str) -> None:
    expected = [text.replace("\n\n", "\n") if name.startswith("b.csv") else text for text in TEXTS]
    if name.startswith("b.csv"):  # whose values have such line ends too
        expected = [text.replace("\r\n", "\n\n") for text in TEXTS]
    (tmp_path / name).write_bytes(pack(name, FILES[name]))
    for chunk_bytes in (40, 8 << 20):
        assert texts_of(tmp_path / name, chunk_bytes=chunk_bytes) == expected


def test_arrows_files_and_what_datasets_saves_are_read(tmp_path: Path) -> None:
    for name, stream in (("a.arrow", True), ("b.arrow", False)):
        (tmp_path / name).write_bytes(arrow(TEXTS, stream=stream))
        for chunk_bytes in (40, 8 << 20):
            assert texts_of(tmp_path / name, chunk_bytes=chunk_bytes) == TEXTS
    pyarrow.feather.write_feather(pa.table({"text": pa.array(TEXTS).dictionary_encode()}), tmp_path / "a.feather")
    assert texts_of(tmp_path / "a.feather") == TEXTS
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(60))
    with pytest.raises(SourceError, match=r"old\.feather is Feather of version 1: write it again"):
        texts_of(tmp_path / "old.feather")
    saved = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.disable_progress_bars()
    saved.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "cache-1.arrow").write_bytes(arrow(["no part of it"], stream=True))
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "splits")
    datasets.enable_progress_bars()
    assert texts_of(tmp_path / "saved") == texts_of(tmp_path / "splits") == TEXTS
    assert texts_of(tmp_path / "splits", split="test") == TEXTS[:1]
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    for wrong in ({"_data_files": [{"filename": "gone.arrow"}]}, {"_indices_data_files": [{"filename": "i.arrow"}]}):
        (tmp_path / "saved" / "state.json").write_text(json.dumps(state | wrong))
        with pytest.raises(SourceError, match=r"state\.json names files that are not there, or an order of rows"):
            open_source(str(tmp_path / "saved"))
    with pytest.raises(SourceError, match=r"has no split 'dev': expected one of train, test \(split=\)"):
        open_source(str(tmp_path / "splits"), split="dev")
    (tmp_path / "splits" / "dataset_dict.json").write_text("[" * 100_000)
    with pytest.raises(SourceError, match=r"dataset_dict\.json does not list the splits: save the dataset again"):
        open_source(str(tmp_path / "splits"))


@pytest.mark.parametrize("name", ["a.md", "a.html", "a.txt.gz", "a.md.zst", "a.txt.bz2", "a.html.xz"])
def test_a_text_file_is_one_document_packed_or_not(tmp_path: Path, name: str) -> None:
    text = "\ufeff# naïve 日本 " + "x\n" * 500
    (tmp_path / name).write_bytes(pack(name, text.encode()))
    assert texts_of(tmp_path / name) == [text[1:]]
    assert texts_of(tmp_path / name, separator="\n")[:2] == ["# naïve 日本 x", "x"]
    (tmp_path / name).write_bytes(pack(name, b"one\xff"))
    with pytest.raises(BadRow, match="not UTF-8"):
        texts_of(tmp_path / name)
    assert texts_of(tmp_path / name, skip_bad_rows=True) == []


@pytest.mark.parametrize("name", ["array.json", "a.json.gz", "a.csv.xz", "a.tsv", "a.ndjson.bz2", "strings.json.zst"])
def test_a_server_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pack(name, FILES[name]))
    with serving(tmp_path) as server:
        assert texts_of(f"{server.url}/{name}", chunk_bytes=50) == TEXTS


# fields --------------------------------------------------------------------------------------------------------------


def test_a_field_within_others_is_named_with_dots(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "a", "n": 1}}, {"meta": None}, {"meta": {"text": None, "n": 2}}, {"meta": {"text": "b"}}]
    (tmp_path / "a.jsonl").write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), tmp_path / "a.feather")
    for name in ("a.jsonl", "a.parquet", "a.feather"):
        assert texts_of(tmp_path / name, text_field="meta.text") == ["a", "", "", "b"]
        with pytest.raises((SourceError, BadRow), match=r"no (field|column) 'meta\.words'"):
            texts_of(tmp_path / name, text_field="meta.words")
        with pytest.raises((SourceError, BadRow), match=r"'meta' is .*name a field in it, as in .*meta\.text"):
            texts_of(tmp_path / name, text_field="meta")
    (tmp_path / "dots.jsonl").write_bytes(b'{"meta.text": "whole", "meta": {"text": "within"}}\n')
    assert texts_of(tmp_path / "dots.jsonl", text_field="meta.text") == ["whole"]
    (tmp_path / "twice.jsonl").write_bytes(b'{"text": 1, "meta": {"text": "a", "text": "b"}}\n')
    with pytest.raises(BadRow, match=r"field 'meta\.text' is there twice"):
        texts_of(tmp_path / "twice.jsonl", text_field="meta.text")
    (tmp_path / "once.jsonl").write_bytes(b'{"text": 1, "meta": {"text": "a"}}\n')
    assert texts_of(tmp_path / "once.jsonl", text_field="meta.text") == ["a"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (["a", "b"], r"join its parts, in Python, as in tokenize\(SOURCE, OUT, columns=\[.*text.*\], transform="),
        (
            [{"role": "user", "content": "hi"}],
            r"is a chat, not text: .*columns=\[.*text.*\], .*apply_chat_template\(row\['text'\]",
        ),
    ],
)
def test_a_list_or_a_chat_says_how_it_becomes_text(tmp_path: Path, value: Any, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": value}).encode())
    pq.write_table(pa.table({"text": [value]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises((BadRow, SourceError), match=says):
            texts_of(tmp_path / name)


def test_a_file_of_chats_without_a_text_says_how_they_become_text(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"id": 1, "messages": chat}).encode())
    pq.write_table(pa.table({"id": [1], "messages": [chat]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises((BadRow, SourceError), match="messages.* is a chat, not text: .*apply_chat_template"):
            texts_of(tmp_path / name)
        with pytest.raises((BadRow, SourceError), match="no (field|column) .*x.*columns"):
            texts_of(tmp_path / name, columns=("x",))


# what is wrong with a file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kept", "says"),
    [
        (b"id,text\n1,a\n2\n3,c\n", ["a", "c"], "1 values, the first row names 2 columns"),
        (b'id,text\n1,a\n2,"b"x\n3,c\n', ["a", "c"], "not csv (',' expected after '\"')"),
        (b"id,text\n1,a\n2,\xff\n3,c\n", ["a", "c"], "not UTF-8 (byte 0xff at offset 0)"),
        (b'id,text\n1,a\n3,"c\nd', ["a"], "not csv (unexpected end of data)"),
    ],
)
def test_a_row_of_a_table_that_is_wrong_is_named_or_skipped(
    tmp_path: Path, data: bytes, kept: list[str], says: str
) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(BadRow) as caught:
        texts_of(tmp_path / "a.csv")
    assert (caught.value.row, caught.value.why) == (1, says)
    for chunk_bytes in (1, 100):
        assert texts_of(tmp_path / "a.csv", chunk_bytes=chunk_bytes, skip_bad_rows=True) == kept


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"", "a.csv has no rows: expected one that names the columns"),
        ("a.csv", b"a;text\n1;x\n", "a.csv has no column 'text': expected one of a;text"),
        ("a.csv", b"text,text\n1,x\n", "a.csv has 2 columns 'text'"),
        ("a.csv", b'id,"te\nxt"\n1,x\n', "a.csv has no column 'text': expected one of id, te xt"),
        ("a.csv", "text\nx".encode("utf-16"), "a.csv: UTF-16, and not UTF-8"),
        (
            "a.json",
            b'[{"text": "a"}, {"text": "b"',
            "a.json, row 1: not JSON (Expecting ',' delim",
        ),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "row 1: not JSON (expected , or ] at character 16)"),
        ("a.json", b'[{"text": "a"}] [1]', "row 1: not JSON (something follows its array at character 17)"),
        ("a.json", b'[{"text": "a"},', "row 1: not JSON (it ends within its array at character 16)"),
        ("a.json", b"[" * 100_000, "row 0: not JSON (nested too deep to read at character 2)"),
        ("a.arrow", b"x" * 100, "cannot read a.arrow"),
        ("a.arrow", arrow(TEXTS, stream=True)[:-50], "cannot read a.arrow"),
        ("a.csv.xz", lzma.compress(b"text\nx")[:-5], "it ends within its stream 1: it was not written or sent whole"),
        ("a.txt.bz2", bz2.compress(b"x") + b"junk", "no bz2 in its stream 2, after 1 whole ones"),
        (
            "a.csv",
            b"text,text\na,b\n",
            "a.csv has 2 columns 'text': give each its own name in its first row",
        ),
        ("a.csv.gz", b"", "a.csv.gz has no bytes, and even an empty csv.gz file has some"),
    ],
)
def test_a_file_that_is_wrong_is_one_clear_line(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        texts_of(tmp_path / name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    streams=st.lists(st.binary(max_size=60), min_size=1, max_size=3),
    packing=st.sampled_from(["bz2", "xz"]),
    zeros=st.integers(0, 9),
    size=st.integers(1, 50),
    block=st.integers(1, 30),
)
def test_streams_are_read_however_they_are_cut(
    streams: list[bytes], packing: str, zeros: int, size: int, block: int
) -> None:
    compress = bz2.compress if packing == "bz2" else lzma.compress
    data = b"".join(compress(stream) + bytes(4 * zeros if packing == "xz" else 0) for stream in streams)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_stream, "_BLOCK_BYTES", block)
        stream = PackedStream(io.BytesIO(data), packing)
        parts = iter(lambda: stream.read(size), b"")
        assert b"".join(parts) == b"".join(streams)
        last = len(compress(streams[-1])) + bytes(4 * zeros if packing == "xz" else 0).count(0)
        with pytest.raises(OSError, match="ends within its stream"):
            PackedStream(io.BytesIO(data[: len(data) - last + 3]), packing).read()


@given(
    values=st.lists(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=5,
    ),
    indent=st.sampled_from([None, 0, 2]),
    is_array=st.booleans(),
    block=st.integers(1, 40),
)
def test_json_values_are_those_that_a_parser_of_the_whole_gives(
    values: list[Any], indent: int | None, is_array: bool, block: int
) -> None:
    from shardkit.sources.json_values import JsonValues
    from shardkit.sources.source import InputFile

    text = json.dumps(values, indent=indent) if is_array else "\n".join(json.dumps(v, indent=indent) for v in values)
    if not is_array and text.lstrip().startswith("["):  # which is an array, that something follows
        return
    file = InputFile(path="a.json", url="", bytes=0, format="json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardkit.sources.json_values.checked_read", lambda _, read: read())
        found = list(JsonValues(file, io.BytesIO(text.encode()), block))
    assert [json.loads(value) for value in found] == values
    assert all(b"\n" not in value for value in found)


# several sources, some files, pipes ----------------------------------------------------------------------------------


def test_several_sources_are_read_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 10):
        (tmp_path / f"{number}.jsonl").write_bytes(lines([f"{number}"]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.csv").write_bytes(separated(",", ["csv"]))
    pq.write_table(pa.table({"text": ["parquet"]}), tmp_path / "b.parquet")
    source = open_source(SourceNames(["b.parquet", "*.jsonl", "deep"]))
    assert [file.path for file in source.files] == ["b.parquet", "1.jsonl", "2.jsonl", "10.jsonl", "deep/a.csv"]
    assert (source.info.id, source.info.options) == (tmp_path.name, {})
    assert texts_of(SourceNames(["b.parquet", "*.jsonl", "deep"])) == ["parquet", "1", "2", "10", "csv"]
    with serving(tmp_path) as server:
        mixed = open_source(SourceNames(["deep", f"{server.url}/b.parquet"]))
        assert [file.path for file in mixed.files] == ["a.csv", f"{server.url}/b.parquet/b.parquet"]
        assert mixed.info.id == "deep and 1 more"
        assert mixed.info.options == {"sources": [{"id": "deep"}, {"id": f"{server.url}/b.parquet"}]}
        assert texts_of(SourceNames(["deep", f"{server.url}/b.parquet"])) == ["csv", "parquet"]
    with pytest.raises(UsageError, match="cannot tell what source 'nothing' is"):
        open_source(SourceNames(["b.parquet", "nothing"]))


def test_include_means_some_of_the_files(tmp_path: Path) -> None:
    for name in ("a/1.txt", "a/2.txt", "b/1.txt", "c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for pattern, found in (("1.txt", ["a/1.txt", "b/1.txt"]), ("a/*", ["a/1.txt", "a/2.txt"]), ("*.md", ["c.md"])):
        for place in (str(tmp_path), f"{tmp_path}/**"):
            source = open_source(place, include=pattern)
            assert [file.path.removeprefix(f"{tmp_path.name}/") for file in source.files][-1] == found[-1]
            assert source.info.options == {"include": pattern}
        assert [file.path for file in open_source(f"file://{tmp_path}", include=pattern).files] == [
            Path(name).name for name in found
        ]
    there = {str(tmp_path): r"a/1\.txt, a/2\.txt, b/1\.txt, c\.md", f"{tmp_path}/**": r"a/1\.txt, a/2\.txt, b/1\.txt"}
    there |= {str(tmp_path / "a" / "1.txt"): r"1\.txt$", f"file://{tmp_path}": "a/1.txt, a/2.txt, b/1.txt, c.md"}
    for place, names in there.items():
        with pytest.raises(SourceError, match=rf"include='x\*' means none of the files of .*: there are .*{names}"):
            open_source(place, include="x*")
    for number in range(10, 20):
        (tmp_path / "b" / f"{number}.txt").touch()
    with pytest.raises(SourceError, match=r"there are 1\.txt, 10\.txt, 11\.txt, 12\.txt, 13\.txt and 6 more$"):
        open_source(tmp_path / "b", include="x*")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.bin").touch()
    with pytest.raises(SourceError, match="d holds no files to read"):
        open_source(tmp_path / "d", include="x*")


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "txt"])
def test_what_comes_through_a_pipe_is_read_once_and_said_so(tmp_path: Path, format: str) -> None:
    data = {"jsonl": lines(TEXTS), "json": array(TEXTS), "csv": separated(",", TEXTS), "txt": "".join(TEXTS).encode()}
    os.mkfifo(tmp_path / "pipe")
    with pytest.warns(ShardkitWarning, match="pipe is read once: a run that is stopped goes on only if the same bytes"):
        source = open_source(str(tmp_path / "pipe"), format=format)
    digests = []
    for _ in range(2):
        threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data[format],), daemon=True).start()
        chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=60))
        texts = [text for chunk in chunks for text in chunk_texts(chunk, source.options)]
        assert texts == (["".join(TEXTS)] if format == "txt" else TEXTS)
        digests.append([chunk.digest for chunk in chunks])
    assert digests[0] == digests[1]
    assert "" not in digests[0]


def test_a_pipe_asks_for_its_format_and_a_file_for_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("-", str(tmp_path / "pipe")):
        with pytest.raises(UsageError, match="is a pipe: say what comes through it with format=, one of jsonl, json"):
            open_source(name)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"a\.txt is none: its name says its format"):
        open_source(str(tmp_path / "a.txt"), format="txt")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(UsageError, match="is a pipe among several sources"):
        open_source(SourceNames([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]))


def test_a_text_file_with_ends_of_text_in_it_asks_for_a_separator(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    with pytest.warns(ShardkitWarning, match=r"a\.txt has <\|endoftext\|> in it, .* give separator='<\|endoftext\|>'"):
        open_source(str(tmp_path / "a.txt"))
    assert texts_of(tmp_path / "a.txt", separator="\n<|endoftext|>\n") == ["one", "two"]
