"""Which runner a run has, and that a cluster which cannot be is said at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardkit.cli import main
from shardkit.errors import WorkerError
from shardkit.tokenization.start_runner import check_cluster


@pytest.fixture(autouse=True)
def no_cluster_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def closed_port() -> int:
    """One of this machine at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize(
    "address", ["nonsense", "", "host", "host:", ":6379", "host:0", "host:99999", "host:x", "a b:1"]
)
def test_an_address_that_is_none_is_said_before_anybody_is_asked(address: str) -> None:
    with pytest.raises(WorkerError, match="address is .*: expected HOST:PORT of a Ray cluster"):
        check_cluster(address)


def test_a_cluster_that_nobody_is_at_ends_the_command_in_one_line(closed_port: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    words = ["tokenize", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--runner", "ray", "--address"]
    for address, why in ((f"127.0.0.1:{closed_port}", "Connection refused"), ("nonsense", "expected HOST:PORT")):
        done = CliRunner().invoke(main, [*words, address])
        assert done.exit_code == 1
        assert why in done.stderr.splitlines()[-1]
        assert address in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [None, "auto"])
def test_the_cluster_of_the_environment_is_asked_too(
    named: str | None, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_cluster(named)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(WorkerError, match="no Ray cluster answers at 127.0.0.1:.*RAY_ADDRESS"):
        check_cluster(named)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # a word of Ray's
    check_cluster(named)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_place_where_somebody_listens_is_left_to_ray(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_cluster(form.format(server.getsockname()[1]))


def test_a_name_that_nobody_has_is_one_line() -> None:
    for name in ("nowhere.invalid", "x" * 70):  # the second is no name at all
        with pytest.raises(WorkerError, match=f"no Ray cluster answers at {name}:6379"):
            check_cluster(f"{name}:6379")
