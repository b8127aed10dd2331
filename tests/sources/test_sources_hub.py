"""A Hub dataset as a source, through the real clients against a Hub on loopback."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

REPO = "alice/texts"
NOWHERE = "http://127.0.0.1:9"
READERS: dict[str, subprocess.Popen[str]] = {}  # by endpoint
CARD = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: "data/*.parquet"}]
- config_name: small
  data_files: [{split: train, path: "small/*.parquet"}, {split: test, path: "test/*.jsonl"}]
---
"""
READ = """
import datasets, json, os, sys, traceback
from shardkit.errors import ShardkitError
from shardkit import network
from shardkit.sources.open import open_source
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.texts import read_chunk
network.FIRST_WAIT_SECONDS = 0.001

def read(source, options):
    try:
        bars = [datasets.utils.is_progress_bar_enabled()]
        opened = open_source(source, **options)
        bars.append(datasets.utils.is_progress_bar_enabled())
        chunks = iter_chunks(opened, 0, 0, 0, chunk_bytes=3000)
        texts = [text for c in chunks for piece in read_chunk(c, opened.options) for text in piece.texts]
        info, files = opened.info, [file.path for file in opened.files]
        return {"texts": texts, "info": [info.id, info.config, info.split, info.revision], "files": files, "bars": bars}
    except ShardkitError as error:
        return {"error": type(error).__name__, "message": str(error)}

for line in sys.stdin:
    source, options, environment = json.loads(line)
    if os.fork() == 0:
        os.environ.update(environment)
        try:
            print(json.dumps(read(source, options)), flush=True)
        except BaseException:
            print(json.dumps({"bug": traceback.format_exc()}), flush=True)
        os._exit(0)
    os.wait()
"""


def parquet(texts: list[str], rows: int = 40) -> bytes:
    sink = BytesIO()
    noise = [os.urandom(10_000).hex() for _ in texts]  # between two row groups more than a request is worth
    pq.write_table(pa.table({"noise": noise, "text": texts}), sink, row_group_size=rows)
    return sink.getvalue()


def prose(name: str, count: int = 100) -> list[str]:
    return [f"{name} document {number} naïve" for number in range(count)]


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        data = {f"data/part-{n}.parquet": parquet(prose(f"part-{n}")) for n in (0, 1, 2)}
        lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in prose("test"))
        files = {"README.md": CARD, **data, "small/0.parquet": parquet(prose("small")), "test/0.jsonl": lines}
        server.seed_repo(REPO, files)
        yield server


def reader(endpoint: str) -> subprocess.Popen[str]:
    """A process that has imported everything and read nothing, from which those that read are forked."""
    if endpoint not in READERS:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "PYTHONPATH": str(Path(__file__).parents[2])}
        READERS[endpoint] = subprocess.Popen(
            [sys.executable, "-c", READ], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    return READERS[endpoint]


@pytest.fixture(scope="module", autouse=True)
def _readers() -> Iterator[None]:
    yield
    while READERS:
        READERS.popitem()[1].communicate()


def read(hub: HubServer | str, source: str = REPO, token: str | None = None, **options: Any) -> dict[str, Any]:
    """What a fresh process reads from that source."""
    process = reader(hub if isinstance(hub, str) else hub.endpoint)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([source, options, {"HF_TOKEN": token} if token else {}]) + "\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    assert "bug" not in found, found["bug"]
    return found


def test_a_dataset_is_resolved_to_a_commit_and_read_in_the_order_of_its_files(hub: HubServer) -> None:
    hub.reset_log()
    found = read(hub)
    head = hub.commits(REPO)[0].oid
    assert found["info"] == [REPO, "default", "train", head]
    assert found["files"] == [f"data/part-{n}.parquet" for n in (0, 1, 2)]
    assert found["texts"] == [text for n in (0, 1, 2) for text in prose(f"part-{n}")]
    whole = sum(
        len(hub.repo(REPO).blob(e.sha256).read_bytes()) for p, e in hub.commits(REPO)[0].files.items() if "data" in p
    )
    assert hub.bytes_sent("/_cdn/") < whole / 2  # the text column alone


def test_some_of_a_configs_files_and_rows_are_read(hub: HubServer) -> None:
    every = read(hub)
    name = every["files"][-1]
    some = read(hub, include=name.rpartition("/")[2])
    assert some["files"] == [name]
    assert some["info"] == every["info"]
    assert some["texts"] == every["texts"][-len(some["texts"]) :]
    tenth = read(hub, sample=0.1)["texts"]
    assert set(tenth) < set(read(hub, sample=0.3)["texts"]) < set(every["texts"])
    assert 0 < len(tenth) < len(every["texts"]) // 4
    assert "'x*' means none of the files of alice/texts" in read(hub, include="x*")["message"]


def test_config_split_and_an_old_revision_are_found(hub: HubServer) -> None:
    found = read(hub, name="small", split="test")
    assert found["info"][:3] == [REPO, "small", "test"]
    assert found["texts"] == prose("test")
    hub.seed_repo("alice/old", {"data/a.parquet": parquet(["old"])})
    old = hub.commits("alice/old")[0].oid
    hub.seed_repo("alice/old", {"data/a.parquet": parquet(["new"])})
    assert read(hub, "alice/old")["texts"] == ["new"]
    pinned = read(hub, "alice/old", revision=old)
    assert (pinned["texts"], pinned["info"][3]) == (["old"], old)


def test_the_texts_are_whole_when_the_network_fails_drops_and_shortens(hub: HubServer) -> None:
    faults = [
        hub.fault("truncate", "GET", "/_cdn/", nth=2),
        hub.fault("drop_midway", "GET", "/_cdn/", nth=4),
        hub.fault("status", "GET", "/_cdn/", nth=6, code=403),
        hub.fault("drop", "HEAD", "/resolve/", nth=2),
    ]
    assert read(hub)["texts"] == [text for n in (0, 1, 2) for text in prose(f"part-{n}")]
    assert [fault.fired for fault in faults] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("source", "options", "kind", "words"),
    [
        ("alice/none", {}, "AuthError", "hf://datasets/alice/none does not exist, or is private and there is no token"),
        (REPO, {"name": "large"}, "SourceError", "large"),
        (REPO, {"split": "validation"}, "SourceError", "has no split 'validation': expected one of train"),
        (
            REPO,
            {"revision": "v9"},
            "SourceError",
            "hf://datasets/alice/texts@v9 has no such revision: check revision=",
        ),
        (REPO, {"text_field": "body"}, "SourceError", "has no column 'body': expected one of noise, text"),
        ("alice/..", {}, "SourceError", "hf://datasets/alice/.. is not a name the Hub takes"),
    ],
)
def test_what_is_not_there_is_one_clear_error(
    hub: HubServer, source: str, options: dict[str, Any], kind: str, words: str
) -> None:
    found = read(hub, source, **options)
    assert found.get("error") == kind
    assert words in found["message"]
    assert "\n" not in found["message"]


def test_private_and_gated_datasets_say_to_log_in(hub: HubServer) -> None:
    hub.seed_repo("alice/shut", {"data/a.parquet": parquet(["secret"])})
    hub.repo("alice/shut").private = True
    assert "is private and there is no token: check the name, `hf auth login`" in read(hub, "alice/shut")["message"]
    assert read(hub, "alice/shut", token="hf_read")["texts"] == ["secret"]
    hub.seed_repo("alice/gate", {"data/a.parquet": parquet(["terms"])})
    hub.repo("alice/gate").gated = True
    refused = read(hub, "alice/gate", token="hf_other")
    assert refused.get("error") == "AuthError", refused
    assert "gated" in refused["message"]
    assert read(hub, "alice/gate", token="hf_read")["texts"] == ["terms"]


def test_without_a_network_there_is_one_line() -> None:
    found = read(NOWHERE)
    assert found["error"] == "SourceError"
    assert "cannot open the dataset: hf://datasets/alice/texts does not answer as it should" in found["message"]
    assert "\n" not in found["message"]


def test_the_progress_bars_of_the_callers_process_stay_as_they_were(hub: HubServer) -> None:
    assert read(hub)["bars"] == [True, True]


@pytest.fixture(scope="module")
def whole_files(hub: HubServer) -> dict[str, list[str]]:
    """A repo of files that are read from front to back, in a config for each kind; their texts."""
    texts = {"gz": prose("gz", 600), "small": prose("small", 3), "txt": ["\n".join(prose("txt", 900))]}
    texts |= {"c4": prose("c4", 600), "array": prose("array", 600)}

    def lines(part: list[str]) -> bytes:
        return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in part)

    names = {"gz": "gz/*.jsonl.gz", "small": "small/*.txt", "txt": "txt/*.txt", "c4": "c4/*.gz", "array": "array/*"}
    configs = "".join(f'- {{config_name: {name}, data_files: "{pattern}"}}\n' for name, pattern in names.items())
    hub.lfs_threshold = 10_000
    hub.seed_repo(
        "alice/whole",
        {
            "README.md": f"---\nconfigs:\n{configs}---\n".encode(),
            "gz/0.jsonl.gz": gzip.compress(lines(texts["gz"][:300])),
            "gz/1.jsonl.gz": gzip.compress(lines(texts["gz"][300:])),
            "c4/0.json.gz": gzip.compress(lines(texts["c4"])),  # named as C4's files are
            "array/0.json": json.dumps([{"text": text} for text in texts["array"]]).encode(),
            "small/0.txt": texts["small"][0].encode(),  # lies in the repo itself
            "txt/0.txt": texts["txt"][0].encode(),  # in LFS
        },
    )
    return texts | {"small": texts["small"][:1]}


@pytest.mark.parametrize("name", ["gz", "small", "txt", "c4", "array"])
def test_a_file_that_is_read_whole_and_came_wrong_is_fetched_again(
    hub: HubServer, whole_files: dict[str, list[str]], name: str
) -> None:
    fault = hub.fault("corrupt", "GET", rf"/{name}/0", at=0.9)
    found = read(hub, "alice/whole", name=name)
    assert found.get("texts") == whole_files[name], found
    assert fault.fired == 1


def test_a_separator_cuts_the_text_files_of_a_hub_dataset_too(
    hub: HubServer, whole_files: dict[str, list[str]]
) -> None:
    assert read(hub, "alice/whole", name="txt", separator="\n")["texts"] == whole_files["txt"][0].split("\n")
    assert (
        "separator is for text files, gz/0.jsonl.gz is jsonl.gz"
        in read(hub, "alice/whole", name="gz", separator="\n")["message"]
    )


def test_a_file_that_comes_wrong_every_time_is_refused_before_any_of_it_is_used(
    hub: HubServer, whole_files: dict[str, list[str]]
) -> None:
    fault = hub.fault("corrupt", "GET", "/gz/1", times=None)
    message = read(hub, "alice/whole", name="gz")["message"]
    fault.times = 0
    assert "cannot read gz/1.jsonl.gz: its bytes came 3 times with another hash than the Hub states (" in message


def test_a_compressed_file_without_a_byte_on_the_hub_is_refused(hub: HubServer) -> None:
    hub.seed_repo("alice/broken", {"a.jsonl.gz": gzip.compress(b'{"text": "x"}\n'), "b.jsonl.gz": b""})
    assert "b.jsonl.gz has no bytes" in read(hub, "alice/broken")["message"]
