"""What the main process of `shardkit tokenize` costs, and so how many cores it feeds; and Ray beside the local runner.

    python -m benchmarks.bench_scale --corpus FOLDER [--workers 2] [--rounds 3] [--ray]
    python -m benchmarks.bench_scale --small [SHARE]

Each run is a fresh process. The corpus is read twice, and then as often as `--times` says, by links to its files: what
the longer run takes more, per token, is free of start-up. `cores` is the processor time of the workers a token over
that of the main process: so many cores one main process can feed, if it does nothing else. With `--ray`, the same
corpus on a local Ray cluster with as many CPUs as workers, in turn with the local runner: the ratio of the rates, from
the first read to the manifest.

`--small` has what costs the main process by the piece: many small files, documents and shards (of the numbers, SHARE).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def processor_seconds(whose: int) -> float:
    """User and system time."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def run_here(
    corpus: str, out: str, workers: int, runner: str, tokenizer: str, shard_tokens: int | None = None
) -> dict[str, float]:
    """One run in this process."""
    from shardkit import tokenize

    how: Any = {"workers": workers, "runner": runner, "tokenizer": tokenizer, "shard_tokens": shard_tokens}
    manifest = tokenize(corpus, out, **how, progress=False)
    summary = json.loads(Path(out, ".shardkit", "summary.json").read_text())
    return {
        "tokens": manifest.tokens,
        "seconds": summary["finished"] - summary["first_read"],
        "main": processor_seconds(resource.RUSAGE_SELF),
    }


def run(corpus: Path, workers: int, runner: str, tokenizer: str, shard_tokens: int | None = None) -> dict[str, float]:
    """One run in a fresh process, with what its workers took: they are its children, and ended when it ends."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as out:
        before = processor_seconds(resource.RUSAGE_CHILDREN)
        words = [sys.executable, "-m", "benchmarks.bench_scale", "--here", str(corpus), out]
        words += ["--workers", str(workers), "--runner", runner, "--tokenizer", tokenizer]
        words += [] if shard_tokens is None else ["--shard-tokens", str(shard_tokens)]
        done = subprocess.run(
            words, check=True, stdout=subprocess.PIPE, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        found["workers"] = processor_seconds(resource.RUSAGE_CHILDREN) - before - found["main"]
    return found


def linked(corpus: Path, folder: Path, times: int) -> Path:
    """A folder in which the files of the corpus are `times` times."""
    folder.mkdir()
    for number in range(times):
        for file in sorted(corpus.iterdir()):
            (folder / f"{number:02d}-{file.name}").hardlink_to(file)
    return folder


def write_texts(folder: Path, count: int) -> None:
    """Text files of 1 kB."""
    for number in range(count):
        (folder / f"{number}.txt").write_text((f"{number:09} words " * 63)[:1000])


def write_parquet(folder: Path, count: int) -> None:
    """Parquet files of 10 kB."""
    for number in range(count):
        table = pa.table({"text": [f"{number:09} {row} words " * 52 for row in range(10)]})
        how: Any = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, folder / f"{number}.parquet", **how)


def write_lines(folder: Path, count: int) -> None:
    """One file, a document of 25 bytes in a line."""
    with open(folder / "a.jsonl", "w") as file:
        file.writelines(f'{{"text": "{number:012}"}}\n' for number in range(count))


def write_text(folder: Path, count: int) -> None:
    """Text for that many shards of 1,000 tokens."""
    for number in range(8):
        (folder / f"{number}.txt").write_text("a" * (count * 125 - 1))


SMALL: dict[str, tuple[Callable[[Path, int], None], tuple[int, int], int | None]] = {
    "text files of 1 kB": (write_texts, (5_000, 20_000), None),
    "parquet files of 10 kB": (write_parquet, (5_000, 20_000), None),
    "documents of a line of 25 bytes, one file": (write_lines, (1_000_000, 4_000_000), None),
    "shards of 1,000 tokens": (write_text, (2_000, 20_000), 1_000),
}


def small_things(workers: int, share: float) -> None:
    """Print the processor seconds of the main process, its start among them, for small things of each kind."""
    for name, (write, counts, shard_tokens) in SMALL.items():
        found = []
        for count in (max(1, round(count * share)) for count in counts):
            with tempfile.TemporaryDirectory() as folder:
                corpus = Path(folder, "corpus")
                corpus.mkdir()
                write(corpus, count)
                found.append(f"{count:,}: {run(corpus, workers, 'local', 'bytes', shard_tokens)['main']:.1f}")
        print(f"| {name} | {' | '.join(found)} |", flush=True)


def slope(short: dict[str, float], long: dict[str, float]) -> dict[str, float]:
    """Processor seconds per 1B tokens of the main process and of the workers, without what a run takes once."""
    tokens = (long["tokens"] - short["tokens"]) / 1e9
    main, workers = ((long[name] - short[name]) / tokens for name in ("main", "workers"))
    return {"main": main, "workers": workers, "cores": workers / main}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=6)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--small", nargs="?", const=1.0, type=float, metavar="SHARE")
    parser.add_argument("--shard-tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--runner", default="local", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        corpus, out = args.here
        print(json.dumps(run_here(corpus, out, args.workers, args.runner, args.tokenizer, args.shard_tokens)))
        return
    if args.small is not None:
        small_things(args.workers, args.small)
        return
    if args.corpus is None:
        parser.error("give --corpus FOLDER or --small")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=args.corpus.parent) as folder:
        short, long = (linked(args.corpus, Path(folder, str(times)), times) for times in (2, args.times))
        for _ in range(args.rounds):
            runs = [run(each, args.workers, "local", args.tokenizer) for each in (short, long)]
            rows.append(slope(*runs))
            if args.ray:
                there = run(long, args.workers, "ray", args.tokenizer)
                rows[-1]["ray"] = (there["tokens"] / there["seconds"]) / (runs[1]["tokens"] / runs[1]["seconds"])
                rows[-1]["ray_main"] = there["main"]
            print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("main {main:.2f} s a Gtok, workers {workers:.1f}: it feeds {cores:.0f} cores".format(**median))
    if args.ray:
        print(f"ray / local {median['ray']:.2f}")


if __name__ == "__main__":
    main()
