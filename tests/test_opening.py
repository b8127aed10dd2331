"""What is opened over the network (a source, a model, a place) is opened with the patience with which it is read.

Each test counts the requests of one opening, and then fails them in turn: no request is forgotten here because nobody
thought of it. Each request is failed in one of the ways, by `make torture` in all of them.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attacks import LONG
from hub_data import make_dataset, tree_of
from hub_server import HubServer
from s3_relay import S3Relay
from vocabulary_data import train_vocabulary

from shardkit import network, pull, push, rate_limits
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.sources.texts import read_chunk
from shardkit.tokenization.pushed_run import fetch_journal
from shardkit.tokenization.vocabulary import load_vocabulary

FAULTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "503": ("status", {"code": 503}),
    "429 with Retry-After": ("status", {"code": 429, "retry_after": 1}),
    "a reset connection": ("drop", {}),
    "a closed connection": ("drop", {"reset": False}),
}
NUMBERS = itertools.count()  # of the process, which knows where files of earlier tests' Hubs lay
CARD = b'---\nconfigs:\n- config_name: default\n  data_files: [{split: train, path: "data/*.parquet"}]\n---\n'


@pytest.fixture(autouse=True)
def _short_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server says to come back in a second, a hundredth of it is waited."""
    asked = rate_limits._retry_after
    monkeypatch.setattr(rate_limits, "_retry_after", lambda value: asked(value) / 100)


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


def texts_of(source: str) -> list[str]:
    opened = open_source(source)
    chunks = iter_chunks(opened, 0, 0, 0, chunk_bytes=1 << 20)
    return [text for chunk in chunks for piece in read_chunk(chunk, opened.options) for text in piece.texts]


def numbers(requests: int, fault: int, faults: int) -> range:
    """Which requests fail with fault number `fault` of so many, where all together fail each request."""
    return range(1, requests + 1) if LONG else range(1 + fault, requests + 1, faults)


class Openings:
    """Ways to open something, each time a new one with the same content, that no cache knows."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.made, self.model = folder / "made", folder / "model" / "tokenizer.json"
        make_dataset(self.made, shards=1, tokens=200)

    def new(self) -> str:
        return f"n{next(NUMBERS)}"

    def a_dataset(self) -> Any:
        name = f"alice/{self.new()}"
        self.hub.seed_repo(name, {"README.md": CARD, "data/0.parquet": parquet(["a"]), "other.parquet": parquet(["b"])})
        return lambda: texts_of(name)

    def files_of_a_dataset(self) -> Any:
        name = f"alice/{self.new()}"
        self.hub.seed_repo(name, {"data/0.parquet": parquet(["a"]), "data/1.parquet": parquet(["b"])})
        return lambda: texts_of(f"hf://datasets/{name}/data")

    def a_url(self) -> Any:
        name = self.new()
        (self.hub.root / "files").mkdir(exist_ok=True)
        (self.hub.root / "files" / f"{name}.parquet").write_bytes(parquet(["a", "b"]))
        return lambda: texts_of(f"{self.hub.cdn}/_files/{name}.parquet")

    def a_model(self) -> Any:
        name = f"alice/{self.new()}"
        file = self.model if self.model.exists() else train_vocabulary(self.model)
        config = b'{"eos_token": "<|endoftext|>"}'
        self.hub.seed_repo(name, {"tokenizer.json": file, "tokenizer_config.json": config}, repo_type="model")
        return lambda: load_vocabulary(name).info.vocab_size

    def a_place_to_push_to(self) -> Any:
        name = f"alice/{self.new()}"
        return lambda: push(self.made, name).sent_files

    def a_place_to_pull_from(self) -> Any:
        name = f"alice/{self.new()}"
        self.hub.seed_repo(name, {path.name: path for path in self.made.iterdir()})
        return lambda: (pull(name, self.folder / name), {*tree_of(self.folder / name)})[1]

    def a_place_of_a_run(self) -> Any:
        name = f"alice/{self.new()}"
        self.hub.seed_repo(name, {"README.md": b"mine"})
        return lambda: {*fetch_journal(name).files} - {".gitattributes"}

    def a_bucket(self) -> Any:
        name = f"hf://buckets/alice/{self.new()}/set"
        return lambda: push(self.made, name).sent_files


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Relay]:
    """An S3 server behind a relay that fails on demand, with the bucket `shards`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(network, "FIRST_WAIT_SECONDS", 0.001)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    for name, value in zip(keys, ("testing", "testing", "us-east-1"), strict=True):
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        with S3Relay(server.get_host_and_port()[1]) as relay:
            monkeypatch.setenv("AWS_ENDPOINT_URL", relay.endpoint)
            s3fs.S3FileSystem.clear_instance_cache()
            with suppress(FileExistsError):  # moto's servers of one process share what they hold
                s3fs.S3FileSystem().mkdir("shards")
            yield relay
            assert relay.errors == []
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.mark.parametrize("fault", ["503", "a reset connection"])
@pytest.mark.parametrize("way", ["a source", "a place"])
def test_any_one_request_of_an_opening_of_s3_may_fail(s3: S3Relay, tmp_path: Path, way: str, fault: str) -> None:
    import s3fs

    made = tmp_path / "made"
    make_dataset(made, shards=1, tokens=200)
    action, options = FAULTS[fault]

    def prepare() -> Callable[[], Any]:
        name = f"s3://shards/n{next(NUMBERS)}"
        if way == "a place":
            return lambda: push(made, name).sent_files
        s3fs.S3FileSystem().pipe_file(f"{name}/a.parquet", parquet(["a", "b"]))
        s3fs.S3FileSystem.clear_instance_cache()
        return lambda: texts_of(f"{name}/a.parquet")

    opening = prepare()
    s3.reset_log()
    expected = opening()
    requests = len(s3.log)
    assert requests > 0
    for number in numbers(requests, ["503", "a reset connection"].index(fault), 2):
        opening = prepare()
        s3.reset_log()
        failing = s3.fault(action, nth=number, **options)
        assert opening() == expected, (number, s3.log)
        s3.faults.remove(failing)


WAYS = [name for name in vars(Openings) if name.startswith(("a_", "files_"))]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", WAYS)
def test_any_one_request_of_an_opening_may_fail(hub: HubServer, tmp_path: Path, way: str, fault: str) -> None:
    prepare: Callable[[], Callable[[], Any]] = getattr(Openings(hub, tmp_path), way)
    action, options = FAULTS[fault]
    opening = prepare()
    hub.reset_log()
    expected = opening()
    requests = len(hub.log)
    assert requests > 0
    for number in numbers(requests, list(FAULTS).index(fault), len(FAULTS)):
        opening = prepare()
        hub.reset_log()
        failing = hub.fault(action, nth=number, **options)
        assert opening() == expected, (number, hub.log)
        hub.faults.remove(failing)
        assert failing.fired <= 1
