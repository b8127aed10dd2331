"""The pipe between the main process and a worker: what goes down it, in its order, whether anybody reads or not."""

from __future__ import annotations

import os
import socket
import struct

import numpy as np
import pytest
from multiprocess.connection import Pipe

from shardkit.tokenization.pipes import Outbox, as_bytes, receive, receive_bytes


def test_messages_arrive_in_their_order_whatever_room_the_pipe_has_for_them() -> None:
    ours, theirs = Pipe()
    outbox, bulk = Outbox(ours), np.arange(3_000_000, dtype=np.uint8)
    sizes = [10, 60_000, 60_000, 60_000, 60_000, 60_000, 10, 2_000_000, 10]  # more than there is room for, unread
    for size in sizes:
        outbox.put(as_bytes(b"x" * size))
    outbox.messages += ["a", "b"]
    outbox.flush()
    outbox.flush()  # of nothing
    outbox.put(bulk.data)
    assert [len(receive(theirs)) for _ in sizes] == sizes
    assert receive(theirs) == ["a", "b"]
    into = np.empty(len(bulk), np.uint8)
    receive_bytes(theirs, into.data)
    assert np.array_equal(into, bulk)
    outbox.put(as_bytes("again"))
    assert receive(theirs) == "again"
    theirs.close()
    outbox.put(as_bytes("to nobody"))
    outbox.close()
    ours.close()


@pytest.mark.parametrize("sent", [0, 2, 4, 9])
def test_a_message_that_is_cut_off_anywhere_is_the_end(sent: int) -> None:
    ours, theirs = Pipe()
    os.write(ours.fileno(), (struct.pack("!i", 10) + b"0123456789")[:sent])
    ours.close()
    with pytest.raises(EOFError):
        receive(theirs)


def test_a_program_that_sets_a_time_limit_for_its_sockets_sets_none_for_pipes() -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(1.0)
    try:
        ours, theirs = Pipe()
        outbox = Outbox(ours)
        assert outbox._socket.gettimeout() is None
        assert socket.socket.getblocking(outbox._socket)
        outbox.put(as_bytes(1))
        assert receive(theirs) == 1
    finally:
        socket.setdefaulttimeout(before)
    theirs.close()
    outbox.close()
    ours.close()
