"""push and pull against the plain client's `upload_folder` and `snapshot_download`: same files, same server, same run.

    python benchmarks/bench_hub.py --server tests/support/hub_server.py --shards 10 --shard-mb 200 [--xet | --bucket]

With `--xet` both go by Xet, as users do who have not switched it off. With `--bucket` the place is a bucket, which is
Xet too, and the plain client's way is its `sync_bucket`.
The server is any local Hub that prints its URL when started with `--port 0 --root DIR`. Every timed run is its own
process, and the two ways take turns, so that neither profits from the other's page cache or connections. shardkit's
times include checking every SHA-256; the plain client's include what it does itself. Prints JSON: seconds, MB/s, the
ratio of the medians, and the peak resident memory of each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shardkit.dataset.manifest import Manifest, ShardInfo
from shardkit.dataset.shards import ShardWriter, shard_name

ROOT = Path(__file__).resolve().parent.parent
TIMED = """
import pathlib, re, resource, sys, time
way, repo, folder = sys.argv[1:]
import huggingface_hub
import shardkit.remote.push, shardkit.remote.pull
api = huggingface_hub.HfApi()
if way == "upload_folder":
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
elif way == "sync_bucket up":
    api.create_bucket(repo.removeprefix("hf://buckets/"), exist_ok=True)
api.whoami()
start = time.perf_counter()
if way == "push":
    shardkit.remote.push.push(folder, repo)
elif way == "pull":
    shardkit.remote.pull.pull(repo, folder)
elif way == "sync_bucket up":
    api.sync_bucket(folder, repo, quiet=True)
elif way == "sync_bucket down":
    api.sync_bucket(repo, folder, quiet=True)
elif way == "upload_folder":
    api.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset")
elif way == "snapshot_download":
    huggingface_hub.snapshot_download(repo, repo_type="dataset", local_dir=folder)
seconds = time.perf_counter() - start
status = pathlib.Path("/proc/self/status")
if status.exists():  # ru_maxrss also counts the parent's memory at the fork
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(seconds, peak)
"""


def make_dataset(folder: Path, shards: int, shard_bytes: int, seed: int = 0) -> Manifest:
    """A dataset of random tokens: `shards` shards of about `shard_bytes` bytes."""
    folder.mkdir(parents=True)
    rng, tokens, infos = np.random.default_rng(seed), shard_bytes // 2, []
    for index in range(shards):
        split = "val" if index == 0 else "train"
        writer = ShardWriter(folder / ".writing", np.dtype("<u2"), tokens)
        writer.write(rng.integers(0, 50257, tokens, dtype=np.uint16))
        name = shard_name("bench", split, index)
        made = writer.finish(folder / name)
        infos.append(
            ShardInfo(
                file=name,
                split=split,
                index=index,
                tokens=tokens,
                documents=0,
                first_document=0,
                sha256=made.sha256,
                bytes=made.bytes,
            )
        )
    manifest = Manifest(dtype="uint16", tokens_per_shard=tokens, shards=tuple(infos))
    manifest.save(folder)
    return manifest


def timed(way: str, repo: str, folder: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak resident bytes of one way, in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED, way, repo, str(folder)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def run(
    server: Path, token: str, user: str, shards: int, shard_bytes: int, rounds: int, by: str = "lfs"
) -> dict[str, Any]:
    """Measure all four ways `rounds` times and compare the medians. `by`: lfs, xet, or bucket (by Xet)."""
    with tempfile.TemporaryDirectory(prefix="bench-hub-") as temporary:
        work = Path(temporary)
        (work / "state").mkdir()
        process = subprocess.Popen(
            [sys.executable, str(server), "--port", "0", "--root", str(work / "state")],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if process.stdout is None:
                raise SystemExit("the server has no output")
            env = {
                **os.environ,
                "HF_ENDPOINT": process.stdout.readline().strip(),
                "HF_TOKEN": token,
                "HF_HOME": str(work / "hf"),
                "HF_HUB_DISABLE_XET": "1" if by == "lfs" else "0",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYTHONPATH": str(ROOT),
            }
            # other bytes each: a Xet store keeps none twice
            whose = {name: work / f"data-{name}" for name in ("ours", "plain")}
            made = [make_dataset(folder, shards, shard_bytes, seed) for seed, folder in enumerate(whose.values())]
            total = sum(shard.bytes for shard in made[0].shards)
            ways: dict[str, list[tuple[float, float]]] = {}
            ups, downs = ("push", "upload_folder"), ("pull", "snapshot_download")
            if by == "bucket":
                ups, downs = ("push", "sync_bucket up"), ("pull", "sync_bucket down")
            for round_number in range(rounds):
                for pair in (ups, downs):
                    for way in pair if round_number % 2 == 0 else reversed(pair):
                        name = "ours" if way in ("push", "pull") else "plain"
                        repo = f"{user}/bench-{round_number}-{name}"
                        repo = f"hf://buckets/{repo}" if by == "bucket" else repo
                        target = whose[name] if way in ups else work / f"down-{name}"
                        ways.setdefault(way, []).append(timed(way, repo, target, env))
                        if way in downs:
                            shutil.rmtree(target)
                for state in (
                    *(work / "state").glob("datasets/*/*/blobs"),
                    work / "state" / "xet",
                    work / "hf" / "xet",
                ):
                    shutil.rmtree(state, ignore_errors=True)  # room; the next round has its own repos
            return _summary(ways, total, shards, (ups, downs))
        finally:
            process.terminate()
            process.communicate()  # waits and closes the pipe


def _summary(
    ways: dict[str, list[tuple[float, float]]], total: int, shards: int, pairs: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    median = {way: statistics.median(seconds for seconds, _ in runs) for way, runs in ways.items()}
    return {
        "shards": shards,
        "bytes": total,
        "seconds": {way: [round(seconds, 3) for seconds, _ in runs] for way, runs in ways.items()},
        "MB/s": {way: round(total / seconds / 1e6, 1) for way, seconds in median.items()},
        **{f"{ours} / {plain}": round(median[plain] / median[ours], 3) for ours, plain in pairs},
        "peak_rss_mb": {way: round(max(peak for _, peak in runs) / 1e6, 1) for way, runs in ways.items()},
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, default=ROOT / "tests" / "support" / "hub_server.py")
    parser.add_argument("--token", default="hf_write", help="a token that the server accepts")
    parser.add_argument("--user", default="alice", help="the token's user")
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--shard-mb", type=float, default=200.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--xet", action="store_const", dest="by", const="xet", default="lfs")
    parser.add_argument("--bucket", action="store_const", dest="by", const="bucket")
    options = parser.parse_args()
    shard_bytes = int(options.shard_mb * 1e6)
    result = run(options.server, options.token, options.user, options.shards, shard_bytes, options.rounds, options.by)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
