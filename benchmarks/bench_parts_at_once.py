"""Parts of one dataset that are pushed to one repo of the Hub at the same moment: whether each gets its commits.

    python -m benchmarks.bench_parts_at_once [--parts 32] [--commit-seconds 0.3]

Each part is a `push` of two small shards to `parts/3-of-32` of the same repo of the test's Hub, in a thread of its own,
all at once; the Hub takes `--commit-seconds` for each commit, and refuses one whose parent is no longer the last.
Prints how many parts came to their end, how many gave up, the seconds until the last one had ended, and how many
commits were asked for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.network_runs import Server
from shardkit import tokenize

REPO = "alice/parts-at-once"
_PUSHES = """
import json, sys, threading, time
from shardkit import ShardkitError, push
folder, repo, parts = sys.argv[1], sys.argv[2], int(sys.argv[3])
refused = []
def push_one(index):
    try:
        push(folder, f"{repo}/parts/{index}-of-{parts}", progress=False)
    except ShardkitError as error:
        refused.append(str(error))
start = time.monotonic()
threads = [threading.Thread(target=push_one, args=(index,)) for index in range(parts)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"ended": parts - len(refused), "gave up": refused, "seconds": time.monotonic() - start}))
"""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, push, print; returns what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=32)
    parser.add_argument("--commit-seconds", type=float, default=0.3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-parts-") as folder, Server(Path(folder, "hub")) as server:
        tokenize(["some text"] * 40, f"{folder}/data", tokenizer="bytes", shard_tokens=300, workers=1, progress=False)
        slow = {"action": "slow", "method": "POST", "path": "/commit/", "seconds": options.commit_seconds}
        server.control("PUT", "faults", [{**slow, "times": None}])
        command = [sys.executable, "-c", _PUSHES, f"{folder}/data", REPO, str(options.parts)]
        environment = server.environment(Path(folder))
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        commits = [line for line in server.control("GET", "log") if "/commit/" in line["target"]]
    found = {**json.loads(done.stdout), "commits": len(commits)}
    print(
        f"{found['ended']} of {options.parts} parts ended in {found['seconds']:.0f} s, {len(commits)} commits asked for"
    )
    for line in found["gave up"][:3]:
        print(f"gave up: {line}")
    return found


if __name__ == "__main__":
    main()
