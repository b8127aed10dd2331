"""`sources`: every format gives the same rows however it is cut, and says in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from shardkit import network
from shardkit.errors import ShardkitError, SourceError, UsageError
from shardkit.sources.chunks import BadRow, read_chunk, split_source
from shardkit.sources.open import natural_key, open_source
from shardkit.sources.source import Source

TEXTS = ["first", "", "naïve \u2028 日本", "x<|endoftext|>y", "a\nb\r\n", " ", "\0", "last " * 50]


def texts_of(source: Any, *, chunk_bytes: int = 8 << 20, **options: Any) -> list[str]:
    """Every document, by way of chunks that are resumed in the middle: what a run and its resume would read."""
    opened: Source = open_source(source if not isinstance(source, Path) else str(source), **options)
    chunks = list(split_source(opened, 0, 0, 0, chunk_bytes=chunk_bytes))
    if chunks:
        middle = chunks[len(chunks) // 2]
        again = list(split_source(opened, middle.file, middle.start, middle.part, chunk_bytes=chunk_bytes))
        assert [c.where for c in again] == [c.where for c in chunks[len(chunks) // 2 :]]
        assert [c.payload for c in again] == [c.payload for c in chunks[len(chunks) // 2 :]]
    return [text for chunk in chunks for text in read_chunk(chunk, opened.options).texts]


def lines(texts: list[str], end: str = "\n") -> bytes:
    return "".join(json.dumps({"id": 1, "text": t}, ensure_ascii=False) + end for t in texts).encode()


def packed(name: str, data: bytes) -> bytes:
    """The bytes of a file of that name; compressed ones in two members or frames."""
    half = len(data) // 2
    if name.endswith(".gz"):
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    if name.endswith(".zst"):
        return zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    return data


# parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=["string", "large_string", "string_view", "dictionary"],
)
def test_every_arrow_kind_of_text_is_read_and_null_is_the_empty_document(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array([*TEXTS, None, "end"], pa.string())
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    pq.write_table(pa.table({"n": range(10), "text": column}), tmp_path / "a.parquet", row_group_size=3)
    assert texts_of(tmp_path / "a.parquet") == [*TEXTS, "", "end"]


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 50_000, 1 << 23])
def test_row_groups_are_joined_or_cut_into_chunks_without_a_row_lost(tmp_path: Path, chunk_bytes: int) -> None:
    noise = np.random.default_rng(0)
    texts = [noise.bytes(int(size)).hex() for size in noise.integers(0, 400, 700)]
    for rows in (1, 50, 700):
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{rows}.parquet", row_group_size=rows)
        assert texts_of(tmp_path / f"{rows}.parquet", chunk_bytes=chunk_bytes) == texts


def test_parquet_files_without_rows_give_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "1.parquet")
    assert texts_of(tmp_path) == ["x"]


def test_a_parquet_file_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    for texts in (["one"], ["two", "three"]):
        pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
        assert texts_of(tmp_path / "a.parquet") == texts


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"body": ["x"], "id": [1]}, r"a\.parquet has no column 'text': expected one of body, id \(--text-field\)"),
        ({"text": [1, 2]}, r"a\.parquet: column 'text' is int64, not text"),
        ({"text": [b"x"]}, "is binary, not text"),
        ({"text": [["x"]]}, "is list<.*, not text"),
    ],
)
def test_a_column_that_is_missing_or_no_text_is_named(tmp_path: Path, table: dict[str, Any], words: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=words):
        texts_of(tmp_path / "a.parquet")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_parquet_file_is_one_clear_error(tmp_path: Path, keep: float) -> None:
    pq.write_table(pa.table({"text": TEXTS * 100}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(SourceError, match=r"a\.parquet is no whole parquet file .*: fetch or make it again"):
        texts_of(tmp_path / "a.parquet")


def test_damage_inside_a_parquet_file_is_a_source_error(tmp_path: Path) -> None:
    noise = [np.random.default_rng(1).bytes(300).hex() for _ in range(200)]
    pq.write_table(pa.table({"text": noise}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.parquet"):
        texts_of(tmp_path / "a.parquet")


def invalid_column(kind: str) -> pa.Array:
    offsets = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    column = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    return column.dictionary_encode() if kind == "dictionary" else column


@pytest.mark.parametrize("kind", ["string", "dictionary"])
def test_invalid_utf8_in_parquet_names_the_row_or_is_skipped(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.table({"text": invalid_column(kind)}), tmp_path / "a.parquet")
    with pytest.raises(BadRow) as caught:
        texts_of(tmp_path / "a.parquet")
    assert (caught.value.row, caught.value.why) == (1, "not UTF-8 (byte 0xff at offset 0)")
    assert texts_of(tmp_path / "a.parquet", skip_bad_rows=True) == ["a", "b"]


# lines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), max_size=12),
    blank=st.sampled_from([b"", b"\n", b" \r\n\n"]),
    cut=st.booleans(),
    chunk_bytes=st.integers(1, 200),
)
def test_jsonl_gives_the_same_rows_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, name: str, texts: list[str], blank: bytes, cut: bool, chunk_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / name
    data = blank.join(lines([text]) for text in texts)
    path.write_bytes(packed(name, data[:-1] if cut else data))
    assert texts_of(path, chunk_bytes=chunk_bytes) == texts


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_crlf_a_byte_order_mark_and_blank_lines_are_understood(tmp_path: Path, chunk_bytes: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(["a", "b"], "\r\n") + b"\r\n  \n" + lines(["c"])[:-1])
    assert texts_of(tmp_path / "a.jsonl", chunk_bytes=chunk_bytes) == ["a", "b", "c"]


def test_null_text_is_the_empty_document_and_surrogate_escapes_survive(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": null}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\ud800"}\n')
    assert texts_of(tmp_path / "a.jsonl") == ["", "\U0001f600", "\ud800"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON ("),
        (b"nonsense", "not JSON (Expecting value at column 1)"),
        (b'{"text": "a\xff"}', "not UTF-8 (byte 0xff at offset 11)"),
        (b'{"text": "a\xed\xa0\x80"}', "not UTF-8 (byte 0xed"),
        ('{"text": "a"}'.encode("utf-16-le").replace(b"\n", b""), "not JSON ("),
        (b'["text"]', "a JSON list, not an object"),
        (b'{"body": "x"}', "no field 'text' among 'body' (--text-field)"),
        (b'{"text": 3}', "field 'text' is a int, not text"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON nested too deep to read"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_line_that_is_no_document_is_named_or_skipped(tmp_path: Path, name: str, line: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(packed(name, lines(["good"]) + line + b"\n" + lines(["also"])))
    with pytest.raises(BadRow) as caught:
        texts_of(tmp_path / name)
    assert caught.value.row == 1
    assert caught.value.why.startswith(why)
    assert texts_of(tmp_path / name, skip_bad_rows=True) == ["good", "also"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "trailer", "plain"])
def test_a_damaged_compressed_file_is_an_error_and_never_a_short_one(tmp_path: Path, name: str, damage: str) -> None:
    data = lines(TEXTS * 200)
    whole = packed(name, data)
    (tmp_path / name).write_bytes(
        {"cut": whole[: len(whole) * 3 // 4], "trailer": whole + b"x" * 40, "plain": data}[damage]
    )
    with pytest.raises(SourceError, match=rf"cannot read {re.escape(name)}"):
        texts_of(tmp_path / name, chunk_bytes=500)


def test_empty_files_hold_no_rows_but_an_empty_txt_is_a_document(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    assert texts_of(tmp_path) == [""]


def test_a_file_that_shrank_since_it_was_listed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(["x" * 50] * 100))
    source = open_source(str(path))
    chunks = list(split_source(source, 0, 0, 0, chunk_bytes=1000))
    os.truncate(path, 2500)
    with pytest.raises(SourceError, match=r"a\.jsonl is shorter than when the run began"):
        [read_chunk(chunk, source.options) for chunk in chunks]


# txt ---------------------------------------------------------------------------------------------------------------


def test_a_txt_file_is_one_document_whatever_is_in_it(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_bytes(text.encode())
    assert texts_of(tmp_path) == TEXTS
    (tmp_path / "1.txt").write_bytes(b"ab\xff")
    with pytest.raises(BadRow, match="not UTF-8"):
        texts_of(tmp_path)


@settings(max_examples=150, deadline=None)
@given(
    data=st.text(st.sampled_from("ab\n"), max_size=40),
    separator=st.sampled_from(["\n", "\n\n", "aa", "aba", "ab\n"]),
    chunk_bytes=st.integers(1, 50),
)
def test_separated_text_is_split_as_str_split_does(
    tmp_path_factory: pytest.TempPathFactory, data: str, separator: str, chunk_bytes: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "separated.txt"
    path.write_text(data)
    expected = data.split(separator)
    found = texts_of(path, separator=separator, chunk_bytes=chunk_bytes)
    assert found == (expected if expected[-1] else expected[:-1])


def test_a_separator_is_for_txt_files_and_not_empty(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match=r"--separator is for \.txt files, a\.jsonl is jsonl"):
        open_source(str(tmp_path), separator="x")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="--separator is empty"):
        open_source(str(tmp_path), separator="")


# files -------------------------------------------------------------------------------------------------------------


def names_of(source: Path | str) -> list[str]:
    return [file.path for file in open_source(str(source)).files]


def test_files_are_in_natural_order_and_ties_are_broken_by_name(tmp_path: Path) -> None:
    names = ["a1.txt", "a01.txt", "a2.txt", "a10.txt", "b/1.txt", "1²2.txt", "ü.txt", "sp ace.txt", "new\nline.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = names_of(tmp_path)
    assert sorted(found) == sorted(names)
    assert found == sorted(names, key=natural_key)
    assert [n for n in found if n.startswith("a")] == ["a01.txt", "a1.txt", "a2.txt", "a10.txt"]
    assert texts_of(tmp_path) == found


def test_hidden_and_unknown_files_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.txt", ".b.txt", ".git/c.txt", "README.md", "x_train_000000.npy", "manifest.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert names_of(tmp_path) == ["a.txt"]


def test_links_that_loop_are_followed_once_by_folder_and_glob(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("x")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    (tmp_path / "dead.txt").symlink_to(tmp_path / "nowhere")
    assert names_of(tmp_path) == ["deep/a.txt"]
    assert names_of(f"{tmp_path}/**/*.txt") == ["a.txt"]


def test_the_same_folder_has_one_identity_from_wherever_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "corpus")
    for name in (".", "../corpus", "./", str(tmp_path / "corpus"), str(tmp_path / "corpus") + "/"):
        source = open_source(name)
        assert (source.info.id, [f.path for f in source.files]) == ("corpus", ["a.txt"])
    assert open_source(Path("a.txt")).info == open_source(str(tmp_path / "corpus" / "a.txt")).info


@pytest.mark.parametrize(
    "name", ["none.parquet", "none/", "./none", "/none", "none/*.txt", "~none", "x" * 300 + ".txt"]
)
def test_a_path_that_is_not_there_is_one_clear_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SourceError, UsageError), match=r"no such (file or folder|local path)"):
        open_source(name)


def test_a_folder_or_file_of_no_known_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(SourceError, match=r"holds no files to read: expected \.parquet"):
        open_source(str(tmp_path))
    for name in ("a.csv", "*.csv"):
        with pytest.raises(SourceError, match=r"a\.csv has a name that says no known format"):
            open_source(str(tmp_path / name))


def test_a_file_name_that_no_manifest_could_hold_is_refused_at_the_door(tmp_path: Path) -> None:
    with contextlib.suppress(OSError):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("x")
        with pytest.raises(SourceError, match="a file name that is not UTF-8"):
            open_source(str(tmp_path))


# iterables ---------------------------------------------------------------------------------------------------------


def test_lists_generators_and_datasets_give_their_texts() -> None:
    rows = [{"text": text, "id": 1} for text in TEXTS]
    assert texts_of([*TEXTS, None], chunk_bytes=10) == [*TEXTS, ""]
    assert texts_of(datasets.Dataset.from_list(rows)) == TEXTS
    assert texts_of(datasets.Dataset.from_list(rows).to_iterable_dataset()) == TEXTS
    (chunk,) = split_source(open_source(text for text in TEXTS), 0, 0, 0, chunk_bytes=1 << 20)
    assert chunk.payload == tuple(TEXTS)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x", "source is a bytes"),
        (3, "source is a int"),
        ({"train": ["x"]}, r"source is a dict with train: give one of its values"),
        (datasets.DatasetDict(), "source is a DatasetDict"),
        ({"b", "a"}, "source is a set, whose order changes"),
        ([1], "document 0 is a int: expected text"),
        (["a", {"body": "x"}], "document 1 is a dict: expected text, or a row with 'text'"),
    ],
)
def test_what_is_no_iterable_of_texts_is_refused(source: Any, words: str) -> None:
    with pytest.raises(ShardkitError, match=words):
        texts_of(source)


# remote ------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Files of a folder over HTTP with Range; `faults` says what goes wrong with the next GETs."""

    protocol_version = "HTTP/1.1"
    server: FileServer

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        fault = self.server.faults.pop(0) if body and self.server.faults else None
        if not path.is_file() or isinstance(fault, int):
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, asked = path.read_bytes(), self.headers.get("Range")
        self.server.asked.append(asked)
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "") if self.server.ranges else None
        start = int(ranged[1]) if ranged else 0
        part = data[start : int(ranged[2]) + 1 if ranged and ranged[2] else None]
        sent = part[: len(part) // 2] if fault else part
        self.send_response(206 if ranged else 200)
        if self.server.sized or body:
            self.send_header("Content-Length", str(len(sent if fault == "short" else part)))
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(sent)
        self.close_connection = self.close_connection or fault == "drop"


class FileServer(ThreadingHTTPServer):
    """`faults` holds, for each GET in turn, None, a status, `drop` (cut midway) or `short` (half, as if all)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.sized = folder, True, True
        self.faults: list[int | str | None] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "_FIRST_DELAY", 0.001)
    with FileServer(tmp_path) as running:
        thread = threading.Thread(target=partial(running.serve_forever, poll_interval=0.01))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


REMOTE = ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"]
MANY = [f"{number} " + text for number in range(40) for text in TEXTS]


def serve(folder: Path, name: str) -> list[str]:
    """Put a file of that format there; its documents."""
    if name.endswith(".parquet"):
        pq.write_table(
            pa.table({"n": [os.urandom(90).hex()] * len(MANY), "text": MANY}), folder / name, row_group_size=64
        )
        return MANY
    if name == "a.txt":
        (folder / name).write_text("\n".join(MANY), newline="")
        return ["\n".join(MANY)]
    (folder / name).write_bytes(packed(name, lines(MANY)))
    return MANY


@pytest.mark.parametrize("name", REMOTE)
@pytest.mark.parametrize(
    "faults", [[], [503, None, 503], ["drop", "drop"], ["short", None, "short", "drop", 500]], ids=str
)
def test_a_remote_file_gives_the_local_texts_through_failures_drops_and_short_bodies(
    tmp_path: Path, server: FileServer, name: str, faults: list[int | str | None]
) -> None:
    expected = serve(tmp_path, name)
    assert texts_of(tmp_path / name, chunk_bytes=5000) == expected
    source = open_source(f"{server.url}/{name}")
    server.faults = list(faults)
    found = [t for c in split_source(source, 0, 0, 0, chunk_bytes=5000) for t in read_chunk(c, source.options).texts]
    assert found == expected
    assert len(server.faults) < max(1, len(faults))  # they did happen


def test_a_giant_remote_row_group_loses_no_row_when_the_connection_fails(tmp_path: Path, server: FileServer) -> None:
    texts = [os.urandom(200).hex() for _ in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", data_page_size=4096, use_dictionary=False)
    source = open_source(f"{server.url}/a.parquet")
    found = []
    for number, chunk in enumerate(split_source(source, 0, 0, 0, chunk_bytes=20_000)):
        server.faults = ["drop", 503] if number % 3 == 0 else ["short"]
        found += read_chunk(chunk, source.options).texts
    assert number > 5
    assert found == texts


def test_only_the_text_column_of_a_remote_parquet_file_is_fetched(tmp_path: Path, server: FileServer) -> None:
    table = {"big": [os.urandom(3000).hex() for _ in range(300)], "text": ["small"] * 300}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=100)
    assert texts_of(f"{server.url}/a.parquet") == ["small"] * 300
    size = (tmp_path / "a.parquet").stat().st_size
    ranges = [tuple(map(int, asked[6:].split("-"))) for asked in server.asked if asked]
    assert sum(stop - start + 1 for start, stop in ranges) < size / 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_tried_again(tmp_path: Path, server: FileServer, status: int) -> None:
    serve(tmp_path, "a.jsonl")
    source = open_source(f"{server.url}/a.jsonl")
    server.faults = [status, "drop"]
    with pytest.raises(SourceError, match=r"cannot read a\.jsonl"):
        [read_chunk(chunk, source.options) for chunk in split_source(source, 0, 0, 0, chunk_bytes=5000)]
    assert server.faults == ["drop"]


@pytest.mark.parametrize("fault", [500, "drop", "short"])
def test_a_server_that_never_answers_whole_is_a_source_error(tmp_path: Path, server: FileServer, fault: Any) -> None:
    serve(tmp_path, "a.jsonl")
    source = open_source(f"{server.url}/a.jsonl")
    server.faults = [fault] * 50
    with pytest.raises(SourceError, match=r"cannot read a\.jsonl"):
        [read_chunk(chunk, source.options) for chunk in split_source(source, 0, 0, 0, chunk_bytes=5000)]
    assert len(server.faults) == 44


def test_a_server_without_ranges_is_refused_and_never_read_wrong(tmp_path: Path, server: FileServer) -> None:
    serve(tmp_path, "a.jsonl")
    server.ranges = False
    source = open_source(f"{server.url}/a.jsonl")
    with pytest.raises(SourceError, match=r"cannot read a\.jsonl: .*range"):
        [read_chunk(chunk, source.options) for chunk in split_source(source, 0, 0, 0, chunk_bytes=5000)]


def test_a_missing_url_and_an_unknown_scheme_are_one_clear_error(server: FileServer) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"{server.url}/none.parquet")
    with pytest.raises(SourceError, match="cannot open nonsense://x/a.parquet"):
        open_source("nonsense://x/a.parquet")


def test_fsspec_folders_are_listed_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        (tmp_path / f"{number}.txt").write_text(str(number))
    assert texts_of(f"file://{tmp_path}") == ["1", "9", "10"]
    assert texts_of(f"file://{tmp_path}/1*.txt") == ["1", "10"]


def test_a_word_that_is_no_source_says_what_one_is() -> None:
    with pytest.raises(UsageError, match=r"cannot tell what source 'nonsense' is"):
        open_source("nonsense")
