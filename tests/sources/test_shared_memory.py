"""Memory that workers see too: where bytes are in it, that another process finds them there, and that none is used
again while anybody has it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.sources import read_ahead
from shardkit.sources.read_ahead import _BUFFER_BYTES, AHEAD_BYTES, SHARED_BYTES, _Memory
from shardkit.sources.shared_memory import SharedMemory

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


def test_no_buffer_is_used_again_while_anybody_has_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "SHARED_BYTES", 3 * _BUFFER_BYTES)
    shared = SharedMemory(3 * _BUFFER_BYTES)
    source = _Memory(shared)
    held = [source.get(1000) for _ in range(3)]
    places = [shared.place_of(data) for data in held]
    assert sorted(places, key=str) == sorted([0, _BUFFER_BYTES, 2 * _BUFFER_BYTES], key=str)
    assert shared.place_of(source.get(1000)) is None  # there is no more
    part = held[1][10:20]
    held[1] = part
    assert shared.place_of(source.get(1000)) is None
    del part
    held[1] = memoryview(b"")
    assert shared.place_of(source.get(1000)) == places[1]


def test_there_is_room_for_what_is_ahead_and_for_what_workers_have() -> None:
    assert SHARED_BYTES % _BUFFER_BYTES == 0
    assert SHARED_BYTES > 1.9 * AHEAD_BYTES
