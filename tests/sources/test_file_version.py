"""A source that changes while it is read is refused by name, before anything of the new version is used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import FileServer, serving
from source_data import chunk_texts, lines, packed, texts_of

from shardkit import network
from shardkit.errors import SourceError
from shardkit.sources import read_ahead
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source

NAMES = ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"]
CHUNK_BYTES = 2000


def write(path: Path, letter: str) -> None:
    """A file of that name with 400 texts, of the same size for every letter."""
    texts = [f"{number:04} {letter * 40}" for number in range(400)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=40, compression="none", use_dictionary=False)
    else:
        path.write_bytes("\n".join(texts).encode() if path.suffix == ".txt" else packed(path.name, lines(texts)))


def replaced(path: Path) -> None:
    new = path.with_name("new" + path.name)
    write(new, "n")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # told by its inode alone
    os.replace(new, path)


def overwritten(path: Path) -> None:
    before = path.stat().st_mtime_ns
    inode = path.stat().st_ino
    write(path, "n")
    os.utime(path, ns=(before, before + 1))
    assert path.stat().st_ino == inode  # told by its time alone


def appended_to(path: Path) -> None:
    before = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # told by its size alone


def cut_short(path: Path) -> None:
    os.truncate(path, 1500)


def removed(path: Path) -> None:
    path.unlink()


def read_on(source: str, change: Callable[[], None]) -> list[str]:
    """The texts of a source that changes after its first chunk was read."""
    opened = open_source(source)
    chunks = iter_chunks(opened, 0, 0, 0, chunk_bytes=CHUNK_BYTES)
    early = list(islice(chunks, 2))  # cut before, read after the change
    texts = chunk_texts(early[0], opened.options)
    change()
    for chunk in early[1:]:
        texts += chunk_texts(chunk, opened.options)
    return [*texts, *(text for chunk in chunks for text in chunk_texts(chunk, opened.options))]


@pytest.mark.parametrize("change", [replaced, overwritten, appended_to, cut_short, removed])
@pytest.mark.parametrize("name", NAMES)
def test_a_local_file_that_changes_while_it_is_read_is_refused_by_name(
    tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path, "o")
    source = open_source(str(path))
    chunks = iter_chunks(source, 0, 0, 0, chunk_bytes=CHUNK_BYTES)
    ahead = list(islice(chunks, 2))
    if name != "a.txt":
        assert all("o" in text for text in chunk_texts(ahead[0], source.options))
    change(path)
    rest = chain((chunk for chunk in ahead[1:] or ahead if chunk.payload is None), chunks)
    with pytest.raises(SourceError, match=rf"{re.escape(name)} has changed since the run began .* overwrite=True"):
        [chunk_texts(chunk, source.options) for chunk in rest]


def test_a_file_that_was_only_read_meanwhile_has_not_changed(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name
        write(path, "o")
        expected = texts_of(path)
        assert read_on(str(path), lambda path=path: os.utime(path, ns=(1, path.stat().st_mtime_ns))) == expected  # type: ignore[misc]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with serving(tmp_path) as running:
        yield running


@pytest.mark.parametrize("states", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_behind_http_is_known_by_what_every_answer_states(
    tmp_path: Path, server: FileServer, name: str, states: str
) -> None:
    path = tmp_path / name
    server.states = states
    write(path, "o")
    expected = texts_of(path)
    assert read_on(f"{server.url}/{name}", lambda: None) == expected

    def change() -> None:
        write(path, "n")
        os.utime(path, (1_000_000_000, 1_000_000_000))

    with pytest.raises(SourceError, match=rf"{re.escape(name)} has changed since the run began .*{states} "):
        read_on(f"{server.url}/{name}", change)


def test_a_compressed_file_behind_http_is_one_version_from_its_first_request_to_its_last(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("SPAN_BYTES", "FIRST_SPAN_BYTES", "AHEAD_BYTES"):
        monkeypatch.setattr(read_ahead, bound, 4000)
    server.states = "ETag"

    def change() -> None:
        texts = [os.urandom(3000).hex() for _ in range(200)]
        (tmp_path / "a.jsonl.gz").write_bytes(packed("a.gz", lines(texts)))

    change()
    with pytest.raises(SourceError, match=r"a\.jsonl\.gz has changed since the run began"):
        read_on(f"{server.url}/a.jsonl.gz", change)


def test_a_server_that_states_nothing_still_tells_a_file_of_another_length(tmp_path: Path, server: FileServer) -> None:
    write(tmp_path / "a.jsonl", "o")
    with pytest.raises(SourceError, match=r"a\.jsonl has changed since the run began .*it is 3 bytes"):
        read_on(f"{server.url}/a.jsonl", lambda: (tmp_path / "a.jsonl").write_bytes(b"{}\n") and None)


def test_what_fsspec_reaches_is_known_by_what_its_driver_states(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.parquet", "a.jsonl"):
        write(tmp_path / name, "o")
        memory.put(str(tmp_path / name), f"/versions/{name}")
        assert read_on(f"memory://versions/{name}", lambda: None) == texts_of(tmp_path / name)
        write(tmp_path / name, "n")
        with pytest.raises(SourceError, match=rf"{re.escape(name)} has changed since the run began"):
            read_on(
                f"memory://versions/{name}",
                lambda name=name: memory.put(str(tmp_path / name), f"/versions/{name}"),  # type: ignore[misc]
            )
