"""Ray: a cluster of `ray start` processes, which grows while a run is on it: by its autoscaler, and by hand."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from reference import folder_bytes, shard_bytes
from texts import documents, write_parquet

RAY = str(Path(sys.executable).with_name("ray"))
ON_THE_CLUSTER = """
import json, subprocess, sys, time
from pathlib import Path
import ray
from shardkit import tokenize
from shardkit.tokenization.ray_runner import RayRunner

corpus, out, *second_node = sys.argv[1:]
address, seen = second_node[-1].partition("=")[2], []
follow = RayRunner._follow_cluster

def watched(runner):
    follow(runner)
    seen.append((runner._cluster.cpus, runner.workers))

def add_node(now):  # once the first one has encoded something
    if now.shards > 1 and second_node:
        subprocess.run(second_node, check=True, capture_output=True)
        second_node.clear()
        while ray.cluster_resources()["CPU"] < 2:
            time.sleep(0.1)

RayRunner._follow_cluster = watched
options = {"tokenizer": "bytes", "shard_tokens": 50_000, "chunk_bytes": 1 << 15, "prefix": "p"}
tokenize(corpus, out, runner="ray", address=address, progress=add_node, **options)
Path(out, "seen.json").write_text(json.dumps([one for one, before in zip(seen, [None, *seen]) if one != before]))
"""


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for what Ray's processes leave, with a name that is short enough for its sockets. At the end all
    processes are killed whose command line names it."""
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",  # nodes that the autoscaler adds are processes of this machine
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }.items():
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)
        others = [one for one in psutil.process_iter(["cmdline"]) if folder in " ".join(one.info["cmdline"] or [])]
        for one in others:
            one.kill()
        _, left = psutil.wait_procs(others, timeout=30)
        assert left == []


def autoscaling(address: str, most_nodes: int) -> dict[str, object]:
    """For Ray's autoscaler: nodes of one CPU."""
    of_head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    resources = {"CPU": 1, "object_store_memory": 200_000_000}
    of_others = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most_nodes}
    return {
        "cluster_name": "fake_multinode",
        "max_workers": most_nodes,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {"head": of_head, "others": of_others},
        "head_node_type": "head",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5.0,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
        **{f"{who}start_ray_commands": [] for who in ("head_", "worker_")},
        **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
        **{name: [] for name in ("initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }


def test_a_cluster_of_ray_start_that_has_no_cpu_at_first_grows_while_a_run_is_on_it_and_lets_no_stranger_in(
    ray_folder: Path, tmp_path: Path
) -> None:
    texts = documents(900)[:560]
    write_parquet(tmp_path / "a.parquet", texts)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (ray_folder / "scale.json").write_text(json.dumps(autoscaling(f"127.0.0.1:{port}", most_nodes=1)))
    start = [RAY, "start", "--object-store-memory=200000000", "--node-ip-address=127.0.0.1"]
    head = [*start, "--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--autoscaling-config={ray_folder / 'scale.json'}"]
    second = [*start, "--num-cpus=1", f"--address=127.0.0.1:{port}"]
    subprocess.run(head, check=True, capture_output=True)
    asked = [sys.executable, "-m", "shardkit", "tokenize", "sample", "--out", str(tmp_path / "none")]
    stranger = subprocess.Popen(  # Ray asks the cluster for 20 s
        [*asked, "--runner", "ray", "--address", f"127.0.0.1:{port}"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stderr=subprocess.PIPE,
        text=True,
    )
    words = [sys.executable, "-c", ON_THE_CLUSTER, str(tmp_path / "a.parquet"), str(tmp_path / "out"), *second]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert folder_bytes(tmp_path / "out") == shard_bytes(texts, 50_000, "p", tokenizer="bytes")
    assert json.loads((tmp_path / "out" / "seen.json").read_text()) == [[0, 1], [1, 1], [2, 2]]
    *_, line = stranger.communicate()[1].splitlines()
    assert stranger.returncode == 1
    assert f"the token for the Ray cluster at 127.0.0.1:{port} is missing here, or another one: set RAY_A" in line
