"""A shard that several write: the bytes of one that is written front to back, whatever the ranges, or an error."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardkit.dataset.shard_parts import Part, PartFile, finish_parts, part_of_bytes
from shardkit.files import DIRECT_BLOCK


def refuse_direct_opening(patch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opened(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, mode)  # type: ignore[arg-type]

    patch.setattr(os, "open", opened)


def write_a_little(patch: pytest.MonkeyPatch) -> None:
    """Each call writes some blocks at most."""
    real = os.pwrite
    patch.setattr(os, "pwrite", lambda fd, data, place: real(fd, data[: 3 * 4096], place))


SYSTEMS = [lambda _: None, refuse_direct_opening, write_a_little]
SIZES = st.lists(
    st.one_of(st.integers(1, 9000), st.sampled_from([4096, 8192, DIRECT_BLOCK - 128, DIRECT_BLOCK + 4097])),
    min_size=1,
    max_size=8,
)


def temp_file(folder: Path) -> str:
    (folder / "temp").write_bytes(b"")
    return str(folder / "temp")


@pytest.mark.parametrize("system", SYSTEMS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, order=st.randoms(use_true_random=False))
def test_ranges_written_in_any_order_by_several_give_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    order: object,
    system: Callable[[pytest.MonkeyPatch], None],
) -> None:
    path = temp_file(tmp_path_factory.mktemp("parts"))
    data = np.random.default_rng(sum(sizes)).bytes(128 + 2 * sum(sizes))
    ends = 128 + 2 * np.cumsum([0, *sizes])
    ranges = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    order.shuffle(ranges)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        system(patch)
        files = PartFile(path), PartFile(path)
        parts = [
            files[number % 2].write(begin, memoryview(data)[begin:end]) for number, (begin, end) in enumerate(ranges)
        ]
        size, sha256 = finish_parts(path, [*parts, part_of_bytes(0, data[:128])])
        for file in files:
            file.close()
    assert Path(path).read_bytes() == data
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(len(edge.data) for part in parts for edge in part.edges) <= 2 * 4096 * len(parts)


def written(path: str, data: bytes) -> list[Part]:
    file = PartFile(path)
    half = len(data) // 2
    parts = [file.write(128, memoryview(data)[128:half]), file.write(half, memoryview(data)[half:])]
    file.close()
    return [part_of_bytes(0, data[:128]), *parts]


@pytest.mark.parametrize("place", [0, 127, 128, 5_000, 20_479, 20_480, 39_999])
def test_a_byte_that_is_not_what_was_written_is_an_error_and_gets_no_hash(tmp_path: Path, place: int) -> None:
    path, data = temp_file(tmp_path), np.random.default_rng(0).bytes(40_960)
    parts = written(path, data)
    edges = [edge for part in parts for edge in part.edges]
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    if any(edge.place <= place < edge.place + len(edge.data) for edge in edges):
        assert finish_parts(path, parts)[1] == hashlib.sha256(data).hexdigest()  # it is written only now
        return
    with pytest.raises(OSError, match="other bytes than were written are in it"):
        finish_parts(path, parts)


def test_a_file_that_is_longer_or_shorter_than_what_was_written_is_an_error(tmp_path: Path) -> None:
    path, data = temp_file(tmp_path), bytes(40_960)
    parts = written(path, data)
    os.truncate(path, 50_000)
    with pytest.raises(OSError, match=r"50,000 bytes are there, 40,960 were written"):
        finish_parts(path, parts)


def test_a_range_that_is_missing_or_there_twice_is_a_bug(tmp_path: Path) -> None:
    path = temp_file(tmp_path)
    first, second, third = written(path, bytes(40_960))
    for parts in ([first, third], [first, second, second, third]):
        with pytest.raises(ValueError, match="is missing or written twice"):
            finish_parts(path, parts)


def test_whole_blocks_go_past_the_page_cache_and_edges_come_back(tmp_path: Path) -> None:
    path = temp_file(tmp_path)
    file = PartFile(path)
    if not file._direct:
        pytest.skip("this file system has no direct writes")
    part = file.write(4_000, memoryview(bytes(10_000)))
    file.close()
    assert [(edge.place, len(edge.data)) for edge in part.edges] == [(4_000, 96), (12_288, 1_712)]
    assert os.path.getsize(path) == 12_288
