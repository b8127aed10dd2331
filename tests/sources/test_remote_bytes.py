"""The bytes of a remote file come whole over a network that breaks, stalls and limits, and are not fetched twice."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, Link

from shardkit import network
from shardkit.errors import SourceError
from shardkit.sources import http_session, remote_bytes
from shardkit.sources.remote_bytes import read_into, traffic
from shardkit.sources.source import InputFile

SIZE = 4 << 20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    with HubServer() as server:
        yield server


def served(hub: HubServer, data: bytes) -> InputFile:
    """A file with these bytes, behind an address without a Hub."""
    commit = hub.seed_repo("alice/bytes", {"a.bin": data})
    place = f"{hub.cdn}/_cdn/datasets/alice/bytes/{commit.files['a.bin'].sha256}/a.bin"
    return InputFile(path="a.bin", url=place, bytes=len(data), format="txt")


def read(file: InputFile, start: int = 0, stop: int | None = None) -> bytes:
    into = bytearray((file.bytes if stop is None else stop) - start)
    read_into(file, start, memoryview(into))
    return bytes(into)


@pytest.mark.parametrize("fault", ["stall", "drop_midway"])
def test_a_connection_that_breaks_or_goes_silent_is_taken_up_at_the_byte_where_it_ended(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(remote_bytes, "SILENT_SECONDS", 0.5)
    data = os.urandom(SIZE)
    file = served(hub, data)
    happened = hub.fault(fault, "GET", "/_cdn/", at=0.8)
    hub.reset_log()
    before = traffic()
    assert read(file) == data
    assert happened.fired == 1
    assert traffic().since(before).requests == 2
    assert hub.bytes_sent("/_cdn/") < 1.5 * SIZE  # a reset loses what was on its way, and no more


def test_a_connection_that_breaks_again_and_again_is_no_failure_while_it_brings_something(hub: HubServer) -> None:
    data = os.urandom(SIZE)
    file = served(hub, data)
    happened = hub.fault("drop_midway", "GET", "/_cdn/", at=0.3, times=network.TRIES + 2)
    assert read(file) == data
    assert happened.fired == network.TRIES + 2


def test_a_connection_that_never_brings_anything_is_given_up(hub: HubServer) -> None:
    file = served(hub, os.urandom(1000))
    happened = hub.fault("drop_midway", "GET", "/_cdn/", at=0.0, times=None)
    with pytest.raises(SourceError, match=r"cannot read a\.bin"):
        read(file)
    assert happened.fired == network.TRIES


def test_bytes_that_came_before_each_break_count_also_if_they_are_few(hub: HubServer) -> None:
    data = os.urandom(40_000)
    file = served(hub, data)
    happened = hub.fault("drop_midway", "GET", "/_cdn/", at=0.5, times=3, reset=False)
    hub.reset_log()
    assert read(file) == data
    assert happened.fired == 3
    assert hub.bytes_sent("/_cdn/") == len(data)


def test_a_connection_that_trickles_is_given_up(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_bytes, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(remote_bytes, "SLOWEST_BYTES", 1 << 30)  # whatever comes is too slow
    file = served(hub, os.urandom(SIZE))
    hub.link = Link(connection_rate=1_000_000)
    monkeypatch.setattr(remote_bytes, "PROGRESS_BYTES", SIZE)
    with pytest.raises(SourceError, match=r"cannot read a\.bin: .* sent [0-9,]+ bytes in [0-9]+ seconds"):
        read(file)


def test_no_part_of_a_signed_address_is_in_an_error_or_a_log(caplog: pytest.LogCaptureFixture, hub: HubServer) -> None:
    signed = "X-Amz-Signature=5ecret5ecret"
    url = hub.cdn.replace("http://", "https://")  # which it does not speak
    file = InputFile(path="a.bin", url=f"{url}/a.bin?{signed}", bytes=10, format="txt")
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError, match=r"cannot read a\.bin") as caught:
        read(file)
    plain = InputFile(path="b.bin", url=f"{hub.cdn}/b.bin?{signed}", bytes=10, format="txt")
    with caplog.at_level(logging.DEBUG), pytest.raises(SourceError, match=r"cannot read b\.bin"):
        read(plain)
    assert "5ecret" not in str(caught.value) + caplog.text
    assert "urllib3" in caplog.text


def test_a_netrc_of_the_user_takes_no_hub_token_s_place(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[str | None] = []
    with http_session.get(
        f"{hub.endpoint}/api/whoami-v2", {"Authorization": "Bearer hf_read"}, 5, netrc=False
    ) as answer:
        seen.append(answer.request.headers.get("Authorization"))
    with http_session.get(f"{hub.endpoint}/api/whoami-v2", {}, 5) as answer:
        seen.append(answer.request.headers.get("Authorization"))
    assert seen[0] == "Bearer hf_read"
    assert str(seen[1]).startswith("Basic ")


def test_the_part_that_was_asked_for_comes_and_no_other(hub: HubServer) -> None:
    data = os.urandom(100_000)
    file = served(hub, data)
    assert read(file, 17, 99_000) == data[17:99_000]
    assert read(file, 99_999) == data[-1:]


def test_reading_stops_when_it_is_told_to(hub: HubServer) -> None:
    file, stop = served(hub, os.urandom(SIZE)), threading.Event()
    stop.set()
    with pytest.raises(SourceError, match="stopped"):
        read_into(file, 0, memoryview(bytearray(SIZE)), stop=stop)


def test_what_an_fsspec_driver_reads_is_counted_and_whole_too(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    file = InputFile(path="a.bin", url=f"local://{tmp_path}/a.bin", bytes=10, format="txt")
    before = traffic()
    assert read(file, 2, 7) == b"23456"
    assert traffic().since(before) == (5, 1)
