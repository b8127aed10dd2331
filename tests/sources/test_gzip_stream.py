"""Gzip as it is met: several members, zeros that fill up a file, and what is no gzip at all."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_data import lines, texts_of

from shardkit.errors import SourceError
from shardkit.sources import gzip_stream
from shardkit.sources.gzip_stream import GzipStream


@given(
    members=st.lists(st.binary(max_size=60), min_size=1, max_size=4),
    zeros=st.integers(0, 40),
    size=st.integers(1, 50),
    block=st.integers(1, 30),
    level=st.sampled_from([0, 9]),
)
def test_members_and_the_zeros_after_them_are_read_however_they_are_cut(
    members: list[bytes], zeros: int, size: int, block: int, level: int
) -> None:
    packed = b"".join(gzip.compress(member, level) for member in members) + bytes(zeros)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip_stream, "_BLOCK_BYTES", block)
        stream = GzipStream(io.BytesIO(packed))
        parts = []
        while part := stream.read(size):
            parts.append(part)
        assert b"".join(parts) == b"".join(members) == gzip.decompress(packed)
        assert all(len(part) == size for part in parts[:-1])
        assert stream.read(size) == b""


@given(data=st.binary(max_size=300), cut=st.floats(0.01, 0.99))
def test_a_file_that_was_cut_off_is_never_a_short_one(data: bytes, cut: float) -> None:
    whole = gzip.compress(data)
    with pytest.raises(OSError, match="ends within its member 1"):
        GzipStream(io.BytesIO(whole[: max(1, int(len(whole) * cut))])).read()


@given(data=st.binary(max_size=300), at=st.integers(0, 10**6), bit=st.integers(0, 7), level=st.sampled_from([0, 9]))
def test_damage_is_found_where_pythons_zlib_finds_it(data: bytes, at: int, bit: int, level: int) -> None:
    packed = bytearray(gzip.compress(data, level))
    packed[at % len(packed)] ^= 1 << bit
    try:
        expected = zlib.decompressobj(16 + zlib.MAX_WBITS)
        found: bytes | None = expected.decompress(bytes(packed))
    except zlib.error:
        found = None
    if found is None or not expected.eof or expected.unused_data:
        with pytest.raises(OSError, match="."):
            GzipStream(io.BytesIO(bytes(packed))).read()
    else:
        assert GzipStream(io.BytesIO(bytes(packed))).read() == found


@pytest.mark.parametrize("zeros", [1, 511, 1 << 20])
def test_a_gzip_file_that_is_filled_up_with_zeros_gives_its_rows(tmp_path: Path, zeros: int) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["a", "b"])) + bytes(zeros))
    assert texts_of(tmp_path / "a.jsonl.gz") == ["a", "b"]


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (b"PK and more", "what follows its last whole member is no gzip; `gzip -dc` writes what comes before"),
        (bytes(40) + b"x" * 20, "what follows its last whole member is no gzip; `gzip -dc` writes what comes before"),
        (gzip.compress(b"{}")[:-4], "it ends within its member 2: it was not written or sent whole"),
    ],
    ids=["bytes", "zeros and bytes", "half a member"],
)
def test_what_follows_a_gzip_file_and_is_neither_zeros_nor_gzip_is_one_line(
    tmp_path: Path, after: bytes, why: str
) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["a", "b"])) + after)
    with pytest.raises(SourceError, match=rf"^cannot read a\.jsonl\.gz: .*{re.escape(why)}"):
        texts_of(tmp_path / "a.jsonl.gz")


def test_plain_text_under_the_name_of_a_gzip_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(lines(["a"]))
    with pytest.raises(SourceError, match="incorrect header check"):
        texts_of(tmp_path / "a.jsonl.gz")
