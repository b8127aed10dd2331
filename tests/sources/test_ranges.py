"""A remote file gives the bytes of a local one, or one clear line, whatever its server does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer, serving
from source_data import TEXTS, chunk_texts, lines, packed, texts_of

from shardkit import network
from shardkit.errors import AuthError, SourceError
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with serving(tmp_path) as running:
        yield running


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
    found = [t for c in iter_chunks(source, 0, 0, 0, chunk_bytes=5000) for t in chunk_texts(c, source.options)]
    assert found == expected
    assert len(server.faults) < max(1, len(faults))  # they did happen


def test_a_giant_remote_row_group_loses_no_row_when_the_connection_fails(tmp_path: Path, server: FileServer) -> None:
    texts = [os.urandom(200).hex() for _ in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", data_page_size=4096, use_dictionary=False)
    source = open_source(f"{server.url}/a.parquet")
    found = []
    for number, chunk in enumerate(iter_chunks(source, 0, 0, 0, chunk_bytes=20_000)):
        server.faults = ["drop", 503] if number % 3 == 0 else ["short"]
        found += chunk_texts(chunk, source.options)
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
    with pytest.raises(AuthError, match=r"cannot read a\.jsonl: .* does not allow it"):
        [chunk_texts(chunk, source.options) for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=5000)]
    assert server.faults == ["drop"]


@pytest.mark.parametrize("fault", [500, "drop", "short"])
def test_a_server_that_never_answers_whole_is_a_source_error(tmp_path: Path, server: FileServer, fault: Any) -> None:
    serve(tmp_path, "a.jsonl")
    source = open_source(f"{server.url}/a.jsonl")
    server.faults = [fault] * 50
    with pytest.raises(SourceError, match=r"cannot read a\.jsonl"):
        [chunk_texts(chunk, source.options) for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=5000)]
    assert len(server.faults) == 50 - network.TRIES


def test_a_server_without_ranges_is_refused_and_never_read_wrong(tmp_path: Path, server: FileServer) -> None:
    serve(tmp_path, "a.jsonl")
    server.ranges = False
    source = open_source(f"{server.url}/a.jsonl")
    with pytest.raises(SourceError, match=r"cannot read a\.jsonl: .*range"):
        [chunk_texts(chunk, source.options) for chunk in iter_chunks(source, 0, 0, 0, chunk_bytes=5000)]


def test_a_missing_url_and_an_unknown_scheme_are_one_clear_error(server: FileServer) -> None:
    with pytest.raises(SourceError, match="no such file"):
        open_source(f"{server.url}/none.parquet")
    with pytest.raises(SourceError, match="cannot open nonsense://x/a.parquet"):
        open_source("nonsense://x/a.parquet")
