"""Ray: on one to three nodes of this machine, whatever happens to workers, CPUs and nodes, the local bytes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import folder_bytes, shard_bytes
from source_data import job_of, lines, packed
from texts import documents, write_parquet

from shardkit import open_shard
from shardkit.dataset.shards import WrittenShard
from shardkit.sources.chunks import iter_chunks
from shardkit.sources.open import open_source
from shardkit.tokenization import ray_cluster, ray_tasks, task_sizes
from shardkit.tokenization.finished_shards import remove_all
from shardkit.tokenization.worker import ChunkEncoder

CLUSTER = """
import json, os, signal, sys, warnings
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from shardkit import ShardkitError, tokenize
from shardkit.tokenization import ray_runner, ray_tasks, task_sizes
from shardkit.tokenization.pipes import as_bytes
from shardkit.tokenization.ray_tasks import EncodedTask

corpus, out = Path(sys.argv[1]), Path(sys.argv[2])
said = {}
ray_runner._SILENT_SECONDS = 1e6  # however slow the machine is
task_sizes._SHARES = 0.3  # so that also of few chunks there are several in a task,
task_sizes._TASK_SECONDS = 1e6  # and on a slow machine

@ray.remote(num_cpus=1)
class Somebody:
    def is_there(self):
        return True

def run(name, source=corpus, **options):
    fixed = {"tokenizer": "bytes", "runner": "ray", "shard_tokens": 50_000, "chunk_bytes": 1 << 15, "prefix": "p"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tokenize(source, out / name, **fixed, **options)
        except ShardkitError as error:
            said[name] = str(error)
    said[name + " warned"] = [str(one.message) for one in caught if "Ray" in str(one.message)]

def occupied():
    somebody = Somebody.remote()
    ray.get(somebody.is_there.remote())
    return somebody

def deadly_once(text, name="killed"):
    try:
        os.open(out / name, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return text
    os.kill(os.getpid(), signal.SIGKILL)

def deadly(text):
    os.kill(os.getpid(), signal.SIGKILL)

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.connect()
get = ray_runner.RayRunner._get
came = []
ray_runner.RayRunner._get = lambda self, *given: came.append(get(self, *given)) or came[-1]
run("one node")
ray_runner.RayRunner._get = get
said["bytes that came here"] = len(as_bytes(came))
said["most chunks of a task"] = max(len(one.pieces) for one in came if isinstance(one, EncodedTask))
said["came here"] = sorted({type(one).__name__ for one in came})
versions = ray_tasks.installed_versions
ray_tasks.installed_versions = lambda: {**versions(), "tiktoken": "0.1"}
run("another version")
ray_tasks.installed_versions = versions
second, third = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
run("more workers than CPUs", workers=5)
somebody = occupied()
run("a CPU that is taken", workers=2)
ray_runner._SILENT_SECONDS = 0.2
others = [occupied(), occupied()]
warn = ray_runner.RayRunner._say_that_nothing_comes
ray_runner.RayRunner._say_that_nothing_comes = lambda self: (warn(self), [ray.kill(one) for one in (somebody, *others)])
run("all CPUs are taken")
ray_runner._SILENT_SECONDS, ray_runner.RayRunner._say_that_nothing_comes = 1e6, warn
run("a worker that dies", transform=deadly_once)
run("a worker that always dies", transform=deadly, workers=1)
run("a limit", max_docs=100)
run("duplicates left out", skip_duplicates=True)
def kill_a_writer(now, name="writer"):
    for one in psutil.process_iter(["cmdline"]) if now.shards > 1 and not (out / name).exists() else ():
        if (one.info["cmdline"] or [""])[0].startswith("ray::Writer"):
            (out / name).touch()
            one.kill()
            return
run("a writer that dies", progress=kill_a_writer)
run("sent by the nodes", push="alice/tokens", max_disk=500_000, progress=lambda now: kill_a_writer(now, "sender"))
ray_runner.RayRunner._get = lambda self, *given: came.append(get(self, *given)) or came[-1]
came.clear()
run("packed files", source=out / "packed", transform=lambda text: deadly_once(text, "killed too"))
ray_runner.RayRunner._get = get
said["bytes of packed files that came here"] = len(as_bytes(came))
nodes = [second]
ray_runner.is_on_local_disk = lambda folder: False  # so that shards are written on any node
run("a node that dies", progress=lambda now: nodes and now.shards > 1 and cluster.remove_node(nodes.pop(), False))
said["nodes left"] = len(nodes)
(out / "said.json").write_text(json.dumps(said))  # Ray prints too
ray.shutdown()
cluster.shutdown()
"""


GIVE_THE_LOCAL_BYTES = (
    "one node",
    "more workers than CPUs",
    "a CPU that is taken",
    "all CPUs are taken",
    "a worker that dies",
    "a writer that dies",
    "a node that dies",
    "packed files",
)


def test_whatever_happens_to_a_cluster_its_shards_are_the_local_ones_or_it_is_said_why_not(tmp_path: Path) -> None:
    texts = [*documents(900)[:560], *documents(900)[100:140]]
    write_parquet(tmp_path / "a.parquet", texts)
    (tmp_path / "packed").mkdir()
    for number in range(0, len(texts), 100):
        name = f"{number:04}.jsonl.gz"
        rows = lines([text or "" for text in texts[number : number + 100]])
        (tmp_path / "packed" / name).write_bytes(packed(name, rows))
    words = [sys.executable, "-c", CLUSTER, str(tmp_path / "a.parquet"), str(tmp_path)]
    with HubServer() as hub:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_write",
        }
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        sent = {name: hub.file_bytes("alice/tokens", name) for name in hub.files("alice/tokens")}
    said = json.loads((tmp_path / "said.json").read_text())
    whole = shard_bytes(texts, 50_000, "p", tokenizer="bytes")
    for run in GIVE_THE_LOCAL_BYTES:
        assert run not in said
        assert folder_bytes(tmp_path / run) == whole, run
    assert (tmp_path / "killed").exists()
    assert {"killed too", "writer", "sender"} < {path.name for path in tmp_path.iterdir()}
    assert said["nodes left"] == 0
    assert folder_bytes(tmp_path / "a limit") == shard_bytes(texts[:100], 50_000, "p", tokenizer="bytes")
    unique = [*dict.fromkeys(text or "" for text in texts)]  # a missing text is an empty one
    assert len(unique) < len(texts)
    assert folder_bytes(tmp_path / "duplicates left out") == shard_bytes(unique, 50_000, "p", tokenizer="bytes")
    assert "sent by the nodes" not in said, said
    assert {name: data for name, data in sent.items() if name.endswith(".npy")} == whole
    assert "manifest.json" in sent
    assert not folder_bytes(tmp_path / "sent by the nodes")
    assert said["a worker that always dies"].startswith("a Ray worker died at a.parquet, row groups 0-")
    (line,) = said["all CPUs are taken warned"]
    assert line.startswith("nothing has come from the Ray cluster for 0.2 s; 0 of its 3 CPUs are free")
    assert said["more workers than CPUs warned"] == []
    assert said["came here"] == ["EncodedTask", "WrittenShard"]
    assert said["bytes that came here"] < 20_000 < sum(map(len, whole.values())) / 50
    assert said["bytes of packed files that came here"] < 40_000
    assert said["most chunks of a task"] > 2
    assert said["another version"].startswith(f"on node {platform.node()} tiktoken is ")
    assert said["another version"].endswith(" and not 0.1: install the same versions on all nodes")


def test_a_cluster_that_is_no_more_or_somebody_elses_is_not_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert ray_cluster.started_here() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379\n")
    there: list[dict[str, Any]] = [{"name": "raylet", "cmdline": ["raylet", "--gcs-address=127.0.0.1:45303"]}]
    there += [{"name": "raylet", "cmdline": None}, {"name": "sleep", "cmdline": ["sleep", "127.0.0.1:6379"]}]
    processes = [types.SimpleNamespace(info=info) for info in there]
    monkeypatch.setattr(ray_cluster.psutil, "process_iter", lambda attributes: processes)
    assert ray_cluster.started_here() is None
    there[0]["cmdline"][1] = "--gcs-address=127.0.0.1:6379"
    assert ray_cluster.started_here() == "127.0.0.1:6379"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8), st.data())
def test_a_part_of_what_is_kept_of_a_piece_is_that_part(kept: list[tuple[int, int]], data: st.DataObject) -> None:
    steps = np.cumsum(np.array(kept, np.int64).reshape(-1, 2))  # gaps, and lengths of what is kept
    ranges = steps.reshape(-1, 2)
    tokens = [number for begin, end in ranges.tolist() for number in range(begin, end)]
    begin = data.draw(st.integers(0, len(tokens)))
    end = data.draw(st.integers(begin, len(tokens)))
    part = ray_tasks.part_of_ranges(ranges, begin, end)
    assert [number for first, last in part.tolist() for number in range(first, last)] == tokens[begin:end]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1 << 27), st.floats(0, 20))), st.integers(1, 99))
def test_a_task_has_at_least_a_chunk_and_no_more_than_its_bytes_seconds_and_share(
    noted: list[tuple[int, int, float]], workers: int
) -> None:
    sizes, most_bytes = task_sizes.TaskSizes(), 1 << 26
    for chunks, token_bytes, seconds in noted:
        sizes.note(chunks, token_bytes, seconds)
    count = sizes.chunks_a_task(workers, most_bytes)
    assert count == sizes.chunks_a_task(workers, most_bytes)
    if count > 1:
        assert count * sizes.token_bytes <= most_bytes * sizes.chunks * 1.001
        assert count * sizes.seconds <= 2 * sizes.chunks * 1.001
        assert count * workers * 16 <= sizes.chunks
    assert count >= 1


def test_a_task_gives_the_tokens_and_counts_of_its_chunks_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", *documents(300), "one", "", "\n"]
    write_parquet(tmp_path / "a.parquet", texts, rows=20)
    source = open_source(tmp_path / "a.parquet")
    chunks = list(iter_chunks(source, 0, 0, 0, chunk_bytes=1 << 13))
    job = job_of("bytes", source.options)
    pieces = [piece for chunk in chunks for piece in ChunkEncoder(job).encode(chunk)]
    monkeypatch.setattr(ray_tasks, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(ray_tasks, "_encoder", None)
    made: list[Any] = list(ray_tasks.encode(ray_tasks.PackedJob.of(job), chunks))
    tokens, tasks = made[::2], made[1::2]
    assert len(pieces) > len(tasks) > 2
    assert np.array_equal(np.concatenate(tokens), np.concatenate([piece.tokens for piece in pieces]))
    assert [part.nbytes for part in tokens] == [task.token_bytes for task in tasks]
    encoded = [ray_tasks.with_positions(piece) for task in tasks for piece in task.pieces]
    for one, piece in zip(encoded, pieces, strict=True):
        assert one.stated["count"] == piece.count
        assert np.array_equal(one.eot_positions, piece.eot_positions)
        assert one.eot_positions.dtype == np.int64


class Watched:
    """Tokens of a piece that somebody looks at when they are asked for."""

    def __init__(self, tokens: NDArray[np.uint16], look: Callable[[], None]) -> None:
        self.tokens, self.look = tokens, look

    def __getitem__(self, part: slice) -> NDArray[np.uint16]:
        self.look()
        return self.tokens[part]


def test_of_two_that_write_one_shard_at_a_time_nobody_sees_a_half(tmp_path: Path) -> None:
    tokens = np.arange(3_000_000, dtype="<u2")  # more than is in memory before it is written
    path, seen = tmp_path / f"000001.{os.getpid()}.tmp", list[int]()
    path.touch()

    def write(first: NDArray[np.uint16] | Watched, second: NDArray[np.uint16] | Watched) -> WrittenShard:
        ranges = [np.array([[0, 2_000_000]]), np.array([[0, 1_000_000]])]
        return ray_tasks.write_shard(str(path), "<u2", len(tokens), ranges, first, second)

    def others() -> None:
        seen.append(path.stat().st_size)
        other = write(tokens[:2_000_000], Watched(tokens[2_000_000:], lambda: seen.append(path.stat().st_size)))
        assert np.array_equal(open_shard(path), tokens)
        seen.append(other.bytes)

    made = write(tokens[:2_000_000], Watched(tokens[2_000_000:], others))
    late = write(Watched(tokens[:2_000_000], lambda: seen.append(path.stat().st_size)), tokens[2_000_000:])
    assert made == late
    assert seen == [0, 0, made.bytes, made.bytes]
    assert np.array_equal(open_shard(path), tokens)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_task_that_fails_wrote_of_a_shard_is_removed_and_of_one_that_is_killed_at_the_runs_end(
    tmp_path: Path,
) -> None:
    (tmp_path / ".shardkit").mkdir()
    path, seen = tmp_path / ".shardkit" / f"000001.{os.getpid()}.tmp", list[list[Path]]()
    path.touch()

    def fail() -> None:
        seen.append(list(path.parent.iterdir()))
        (own,) = set(seen[0]) - {path}
        own.with_suffix(".of-a-killed-one.tmp").touch()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        ray_tasks.write_shard(str(path), "<u2", 10, [np.array([[0, 10]])], Watched(np.arange(10, dtype="<u2"), fail))
    left = set(path.parent.iterdir())
    assert left & set(seen[0]) == {path}
    assert len(left) == 2
    remove_all(tmp_path)
    assert list(path.parent.iterdir()) == []
