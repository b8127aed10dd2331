"""Ray: on a cluster of two nodes of this machine, whatever happens to workers, CPUs and nodes, the local bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from reference import folder_bytes, shard_bytes
from texts import documents, write_parquet

from shardkit.tokenization import ray_runner

CLUSTER = """
import json, os, signal, sys, threading, warnings
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from shardkit import ShardkitError, tokenize
from shardkit.tokenization import ray_runner

corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
said = {}

@ray.remote(num_cpus=1)
class Somebody:
    def is_there(self):
        return True

def run(name, **options):
    fixed = {"tokenizer": "bytes", "runner": "ray", "shard_tokens": 50_000, "chunk_bytes": 1 << 15, "prefix": "p"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tokenize(corpus, out / name, **fixed, **options)
        except ShardkitError as error:
            said[name] = str(error)
    said[name + " warned"] = [str(one.message) for one in caught if "Ray" in str(one.message)]

def occupied():
    somebody = Somebody.remote()
    ray.get(somebody.is_there.remote())
    return somebody

def deadly_once(text):
    try:
        os.open(out / "killed", os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return text
    os.kill(os.getpid(), signal.SIGKILL)

def deadly(text):
    os.kill(os.getpid(), signal.SIGKILL)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
cluster.connect()
run("more workers than CPUs", workers=5)
somebody = occupied()
run("a CPU that is taken", workers=2)
ray_runner._SILENT_SECONDS = 0.2
other, seen = occupied(), threading.Event()
warn = ray_runner.RayRunner._say_that_nothing_comes
ray_runner.RayRunner._say_that_nothing_comes = lambda self: (warn(self), ray.kill(somebody), ray.kill(other))
run("all CPUs are taken")
ray_runner._SILENT_SECONDS, ray_runner.RayRunner._say_that_nothing_comes = 60.0, warn
run("a worker that dies", transform=deadly_once)
run("a worker that always dies", transform=deadly)
run("a limit", max_docs=100)
nodes = [second]
run("a node that dies", progress=lambda now: nodes and now.shards > 1 and cluster.remove_node(nodes.pop(), False))
said["nodes left"] = len(nodes)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def texts() -> list[str | None]:
    return documents(900)[:600]


@pytest.fixture(scope="module")
def ended(texts: list[str | None], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all runs, and what was said in them."""
    out = tmp_path_factory.mktemp("cluster")
    write_parquet(out / "a.parquet", texts)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"}
    words = [sys.executable, "-c", CLUSTER, str(out / "a.parquet"), str(out)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "run",
    [
        "more workers than CPUs",
        "a CPU that is taken",
        "all CPUs are taken",
        "a worker that dies",
        "a node that dies",
    ],
)
def test_a_cluster_gives_the_local_bytes(run: str, ended: tuple[Path, dict[str, Any]], texts: list[str | None]) -> None:
    out, said = ended
    assert run not in said
    assert folder_bytes(out / run) == shard_bytes(texts, 50_000, "p", tokenizer="bytes")
    assert (out / "killed").exists()
    assert said["nodes left"] == 0


def test_a_limit_ends_the_stream_there(ended: tuple[Path, dict[str, Any]], texts: list[str | None]) -> None:
    assert folder_bytes(ended[0] / "a limit") == shard_bytes(texts[:100], 50_000, "p", tokenizer="bytes")


def test_a_chunk_that_kills_each_worker_is_named(ended: tuple[Path, dict[str, Any]]) -> None:
    assert ended[1]["a worker that always dies"].startswith("a Ray worker died at a.parquet, row groups 0-")


def test_where_no_cpu_is_free_it_says_what_it_waits_for(ended: tuple[Path, dict[str, Any]]) -> None:
    (line,) = ended[1]["all CPUs are taken warned"]
    assert line.startswith("nothing has come from the Ray cluster for 0.2 s; 0 of its 2 CPUs are free")
    assert ended[1]["more workers than CPUs warned"] == []


def test_a_cluster_that_is_no_more_or_somebody_elses_is_not_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_runner._started_here() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379\n")
    there: list[dict[str, Any]] = [{"name": "raylet", "cmdline": ["raylet", "--gcs-address=127.0.0.1:45303"]}]
    there += [{"name": "raylet", "cmdline": None}, {"name": "sleep", "cmdline": ["sleep", "127.0.0.1:6379"]}]
    processes = [types.SimpleNamespace(info=info) for info in there]
    monkeypatch.setattr(ray_runner.psutil, "process_iter", lambda attributes: processes)
    assert ray_runner._started_here() is None
    there[0]["cmdline"][1] = "--gcs-address=127.0.0.1:6379"
    assert ray_runner._started_here() == "127.0.0.1:6379"
