"""Memory that workers see too: where bytes are in it, that another process finds them there, and that none is used
again while anybody has it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.sources.shared_memory import MemoryPool, SharedMemory

SIZE = 1 << 16


@pytest.fixture(scope="module")
def memory() -> SharedMemory:
    return SharedMemory(SIZE)


@given(st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_bytes_have_their_place(memory: SharedMemory, start: int, count: int) -> None:
    data = memory.array.data[start : start + count]
    assert memory.place_of(data) == start
    assert memory.place_of(data[len(data) // 2 :]) == start + len(data) // 2


def test_other_bytes_have_none(memory: SharedMemory) -> None:
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc"), np.zeros(9, np.uint8).data, memory.array.data[:0]):
        assert memory.place_of(data) is None


def test_another_process_finds_them_there_also_when_the_descriptor_is_closed_here() -> None:
    memory = SharedMemory(SIZE)
    memory.array[100:105] = np.frombuffer(b"hello", np.uint8)
    code = "import mmap, sys; print(mmap.mmap(int(sys.argv[1]), 0, prot=mmap.PROT_READ)[100:105].decode())"
    command = [sys.executable, "-c", code, str(memory.descriptor)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[memory.descriptor])
    memory.forget_descriptor()
    assert child.communicate()[0] == "hello\n"
    assert memory.array[100:105].tobytes() == b"hello"


def test_where_there_is_no_such_memory_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    assert SharedMemory.make(1 << 62) is None
    assert len(os.listdir("/proc/self/fd")) == open_before
    monkeypatch.delattr(os, "memfd_create")
    assert SharedMemory.make(SIZE) is None


@pytest.mark.parametrize("is_shared", [True, False])
def test_memory_is_used_again_when_no_part_of_it_is_looked_at_any_more(is_shared: bool) -> None:
    pool = MemoryPool(SIZE, SharedMemory(SIZE) if is_shared else None)
    first = pool.get(SIZE // 2)
    address = np.frombuffer(first, np.uint8).ctypes.data
    first[:] = b"a" * len(first)
    part = first[10:20]
    del first
    others = [pool.get(SIZE // 2), pool.get(SIZE // 2)]  # the second finds no room
    for other in others:
        other[:] = b"b" * len(other)
    assert bytes(part) == b"a" * 10
    del part
    assert np.frombuffer(pool.get(500), np.uint8).ctypes.data == address


@given(st.lists(st.one_of(st.integers(0, SIZE), st.integers(-SIZE, -1)), max_size=60))
def test_no_byte_of_a_pool_is_given_twice_and_all_of_it_comes_back(memory: SharedMemory, steps: list[int]) -> None:
    """A step gets so many bytes, or (negative) drops one of those that are held."""
    pool = MemoryPool(0, memory)
    held: list[memoryview] = []
    for step in steps:
        if step >= 0:
            held.append(pool.get(step))
            assert len(held[-1]) == step
        elif held:
            del held[step % len(held)]
        places = sorted((place, len(data)) for data in held if (place := memory.place_of(data)) is not None)
        assert all(first + size <= second for (first, size), (second, _) in pairwise(places))
    held.clear()
    assert memory.place_of(pool.get(SIZE)) == 0


def test_what_finds_no_room_in_a_pool_lies_elsewhere(memory: SharedMemory) -> None:
    pool = MemoryPool(0, memory)
    held = [pool.get(SIZE - 64), pool.get(65), pool.get(64), pool.get(1)]
    assert [memory.place_of(data) for data in held] == [0, None, SIZE - 64, None]


def test_a_pool_that_forgets_leaves_what_is_held() -> None:
    pool = MemoryPool(SIZE)
    held = pool.get(100)
    held[:] = b"a" * 100
    pool.forget()
    assert bytes(held) == b"a" * 100
    assert len(pool.get(200)) == 200


def test_where_there_is_not_so_much_memory_each_piece_lies_elsewhere() -> None:
    pool = MemoryPool(1 << 62)
    held = [pool.get(1000), pool.get(1000)]
    assert [len(data) for data in held] == [1000, 1000]
