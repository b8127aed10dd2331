"""What a dataset of 14,000 shards asks of the Hub: API calls, resolves and commits, from counts at two small sizes.

    python -m benchmarks.count_calls [--sizes 8 104] [--shards 14000] [--shard-mb 200] [--mb-per-second 100]

Real processes push, pull, stream, repair and `tokenize --push` datasets of tiny shards through the local Hub, by Xet
and without it. Of its log, the difference between the sizes gives the calls a shard, and the rest is there at any size;
a listing has a page for 1,000 files. Prints one Markdown row for each way: the calls in all, and the most in the
Hub's windows of five minutes at the stated rate. Requests to the stores that hold the bytes are not counted, as they
are none of the Hub's.

To add something else that is counted: give `row` its name and its `Count`s at two sizes.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SUPPORT = ROOT / "tests" / "support"
WAYS = ("push", "pull", "stream", "repair", "tokenize")
API_LIMIT, RESOLVE_LIMIT, COMMIT_LIMIT = 1_000, 5_000, 128  # of a free account: in five minutes, and commits in an hour
PAGE = 1_000  # files of a listing's page
_KINDS = {  # what is counted, by the first that fits the method and path
    "resolve": r"/resolve/",
    "store": r" /(_cdn|_lfs|_cas|_xorb|v1)/",
    "commit": r"^POST .*/commit/",
    "listing": r"^GET .*/tree/",
    "preupload": r"/preupload/",
    "LFS batch": r"/objects/batch",
    "LFS verify": r"/objects/verify",
    "Xet token": r"/xet-(read|write)-token/",
    "other": r"",
}
_CHILD = """
import shutil, sys
from pathlib import Path
from hub_data import make_dataset
from shardkit import pull, push, tokenize
from shardkit.remote.streaming.cache import ShardCache

work, shards = Path(sys.argv[1]), int(sys.argv[2])
make_dataset(work / "a", shards=shards, tokens=300)

def stream():
    cache = ShardCache.open("alice/pushed", split="train", folder=work / "cache", cache_bytes=None, revision=None)
    names = [shard.file for shard in cache.manifest.shards if shard.split == "train"]
    cache.want(names)
    for name in names:
        cache.wait(name)
    cache.close()

def live_push():
    texts = [f"text number {number} of many" for number in range(60 * shards)]
    tokenize(texts, work / "out", shard_tokens=300, max_tokens=300 * shards, push="alice/made", workers=1)

ways = {
    "push": lambda: push(work / "a", "alice/pushed"),
    "pull": lambda: pull("alice/pushed", work / "b"),
    "stream": stream,
    "repair": lambda: push(work / "a", "alice/pushed", repair=True),
    "tokenize": live_push,
}
if __name__ == "__main__":
    for line in sys.stdin:
        ways[line.strip()]()
        print("done", flush=True)
"""


class Count(NamedTuple):
    """Calls by kind of one way with so many shards (or files)."""

    shards: int
    calls: Counter[str]


def kind_of(method: str, target: str) -> str:
    """The kind of a request; "store" for one that is not the Hub's."""
    return next(kind for kind, pattern in _KINDS.items() if re.search(pattern, f"{method} {target}"))


def counted(shards: int, *, xet: bool, ways: Sequence[str] = WAYS) -> Iterator[tuple[str, Count]]:
    """Go these ways, in order, in one process; yields each with its calls."""
    sys.path.insert(0, str(SUPPORT))
    server = importlib.import_module("hub_server").HubServer

    with tempfile.TemporaryDirectory(prefix="count-calls-") as work, server() as hub:
        env = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_XET"}
        env |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "HF_HOME": f"{work}/hf"}
        env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)]), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        env |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
        script = Path(work) / "child.py"
        script.write_text(_CHILD)
        command = [sys.executable, "-W", "ignore", str(script), work, str(shards)]
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            for way in ways:
                hub.reset_log()
                print(way, file=child.stdin, flush=True)
                if child.stdout is None or child.stdout.readline() != "done\n":
                    raise SystemExit(f"{way} of {shards} shards failed")
                calls = Counter(kind_of(request.method, request.target) for request in hub.requests())
                yield way, Count(shards, calls)
            child.communicate()


def expected(small: Count, large: Count, shards: int) -> tuple[dict[str, float], dict[str, float]]:
    """The calls by kind with `shards` shards, and how many of them each shard causes."""
    each, calls = {}, {}
    for kind in sorted(small.calls.keys() | large.calls.keys()):
        each[kind] = max(0.0, (large.calls[kind] - small.calls[kind]) / (large.shards - small.shards))
        fixed = small.calls[kind] - each[kind] * small.shards
        calls[kind] = max(0.0, fixed) + each[kind] * shards
    if "listing" in calls:
        calls["listing"] *= math.ceil(shards / PAGE)
    return calls, each


def api_calls(calls: dict[str, float]) -> float:
    """Those that the Hub counts as API calls."""
    return sum(count for kind, count in calls.items() if kind not in ("resolve", "store"))


def row(name: str, small: Count, large: Count, options: Any) -> str:
    """One way as a row of the table."""
    shards, seconds = options.shards, options.shard_mb / options.mb_per_second
    calls, each = expected(small, large, shards)
    hour, window = min(shards, 3600 / seconds), min(shards, 300 / seconds)
    start = api_calls(calls) - api_calls(each) * shards  # at the beginning and the end, at once
    kinds = ", ".join(f"{kind} {count:,.0f}" for kind, count in calls.items() if kind not in ("resolve", "store"))
    return (
        f"| {name} | {api_calls(calls):,.0f} ({kinds}) | {api_calls(each):.3f} | {calls.get('resolve', 0):,.0f} "
        f"| {calls.get('commit', 0):,.0f} | {each.get('commit', 0) * hour:,.1f} "
        f"| {start + api_calls(each) * window:,.0f} | {each.get('resolve', 0) * window:,.0f} |"
    )


def table(rows: Iterable[str], options: Any) -> Iterator[str]:
    """The whole table, with what the Hub allows."""
    yield f"{options.shards:,} shards of {options.shard_mb:,.0f} MB at {options.mb_per_second:,.0f} MB/s"
    yield ""
    yield "| | API calls | a shard | resolves | commits | commits an hour | API calls in 5 min | resolves in 5 min |"
    yield "|---|---|---|---|---|---|---|---|"
    yield from rows
    yield f"| limit of a free account | | | | | {COMMIT_LIMIT} | {API_LIMIT:,} | {RESOLVE_LIMIT:,} |"


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=[8, 104], help="shards of the two counts")
    parser.add_argument("--shards", type=int, default=14_000)
    parser.add_argument("--shard-mb", type=float, default=200.0)
    parser.add_argument("--mb-per-second", type=float, default=100.0)
    options = parser.parse_args()
    rows = []
    for xet in (True, False):
        small, large = (dict(counted(size, xet=xet)) for size in options.sizes)
        rows += [row(f"{way}, {'Xet' if xet else 'LFS'}", small[way], large[way], options) for way in WAYS]
    print("\n".join(table(rows, options)))


if __name__ == "__main__":
    main()
