"""The places that datasets are pushed to: the Hub, a bucket there, a folder, and S3, all of them here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardkit import network


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_server: str) -> Iterator[str]:
    """The URL of a place in a bucket of its own, with waits cut to milliseconds."""
    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{abs(hash(str(tmp_path))) % 10**12}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/sets/demo"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["hub", "hub bucket", "folder", "s3"])
def repo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place of each kind, with nothing in it."""
    if request.param == "hub":
        request.getfixturevalue("hub")
        yield "alice/demo"
    elif request.param == "hub bucket":
        request.getfixturevalue("hub")
        yield "hf://buckets/alice/demo/sets/tokens"
    elif request.param == "folder":
        yield str(tmp_path / "far")
    else:
        yield request.getfixturevalue("bucket")
