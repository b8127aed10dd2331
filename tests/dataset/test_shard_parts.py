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

from shardkit.dataset.shard_parts import FileParts, Part, PartWriter, finish_parts, part_of_bytes
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
    st.one_of(st.integers(1, 90_000), st.sampled_from([4096, 1 << 15, 1 << 16, DIRECT_BLOCK - 128, DIRECT_BLOCK + 97])),
    min_size=1,
    max_size=8,
)


def temp_file(folder: Path) -> str:
    (folder / "temp").write_bytes(b"")
    return str(folder / "temp")


@pytest.mark.parametrize("system", SYSTEMS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, order=st.randoms(use_true_random=False), joined=st.booleans())
def test_ranges_written_in_any_order_by_several_give_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    order: object,
    joined: bool,
    system: Callable[[pytest.MonkeyPatch], None],
) -> None:
    path = temp_file(tmp_path_factory.mktemp("parts"))
    data = np.random.default_rng(sum(sizes)).bytes(128 + 2 * sum(sizes))
    ends = 128 + 2 * np.cumsum([0, *sizes])
    ranges = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    order.shuffle(ranges)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        system(patch)
        writer, came_back = PartWriter(), FileParts(path)
        for begin, end in ranges:
            came_back.add(writer.write(path, begin, memoryview(data)[begin:end]), writer)
        parts = came_back.parts if joined else writer.join(path, came_back.parts)
        size, sha256 = finish_parts(path, [*parts, part_of_bytes(0, data[:128])])
    assert Path(path).read_bytes() == data
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest())


def written(path: str, data: bytes) -> list[Part]:
    writer, half = PartWriter(), len(data) // 2
    parts = [writer.write(path, 128, memoryview(data)[128:half]), writer.write(path, half, memoryview(data)[half:])]
    return [part_of_bytes(0, data[:128]), *parts]


@pytest.mark.parametrize("place", [0, 127, 128, 5_000, 204_799, 204_800, 399_999])
def test_a_byte_that_is_not_what_was_written_is_an_error_and_gets_no_hash(tmp_path: Path, place: int) -> None:
    path, data = temp_file(tmp_path), np.random.default_rng(0).bytes(409_600)
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
    path, data = temp_file(tmp_path), bytes(409_600)
    parts = written(path, data)
    os.truncate(path, 500_000)
    with pytest.raises(OSError, match=r"500,000 bytes are there, 409,600 were written"):
        finish_parts(path, parts)


def test_a_range_that_is_missing_or_there_twice_is_a_bug(tmp_path: Path) -> None:
    path = temp_file(tmp_path)
    first, second, third = written(path, bytes(409_600))
    for parts in ([first, third], [first, second, second, third]):
        with pytest.raises(ValueError, match="is missing or written twice"):
            finish_parts(path, parts)


def test_whole_blocks_go_past_the_page_cache_and_edges_come_back(tmp_path: Path) -> None:
    path = temp_file(tmp_path)
    part = PartWriter().write(path, 4_000, memoryview(bytes(100_000)))
    assert [(edge.place, len(edge.data)) for edge in part.edges] == [(4_000, 96), (102_400, 1_600)]
    assert os.path.getsize(path) == 102_400


def test_many_small_ranges_are_few_and_take_little_memory(tmp_path: Path) -> None:
    path, size, writer = temp_file(tmp_path), 900, PartWriter()
    data = np.random.default_rng(0).bytes(10_000 * size)
    came_back = FileParts(path)
    for number in range(10_000):
        begin = size * (number ^ 1)  # as they come from two workers
        came_back.add(writer.write(path, begin, memoryview(data)[begin : begin + size]), writer)
        assert len(came_back.parts) < 2_000
    assert came_back.written > 3 * DIRECT_BLOCK
    assert finish_parts(path, came_back.parts) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_file_that_was_written_to_and_is_removed_keeps_no_room(tmp_path: Path) -> None:
    path = temp_file(tmp_path)
    PartWriter().write(path, 0, memoryview(bytes(100_000)))
    assert not [name for name in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{name}") == path]
