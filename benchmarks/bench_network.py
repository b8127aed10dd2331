"""shardkit over a link of some latency and rate, against the slower of the plain download and the local run.

    python -m benchmarks.bench_network [--quick] [--latency 0 150 400] [--rate 10 40 100] [--streams 1 16] [--json FILE]

A local Hub in a process of its own, without TLS, answers after so many ms and sends so many MB/s on each connection, on
all of them together what `--streams` of them carry.
Measured in turn, each in a fresh process, without its start-up: the download from the first byte that is asked for,
`tokenize` in both ways from its first chunk (that the workers load the vocabulary meanwhile is in both):

- download: `snapshot_download` of the files, 8 workers, over plain HTTP (or Xet, with `--xet`).
- local: `shardkit tokenize` of the same files in a local folder.
- both: the local run while a plain download of the files runs beside it, to the end of the later one.
- remote: `shardkit tokenize` of them from the Hub; its bytes are compared with the local run's.

`ratio` is remote / the slower of download and local, `of both` is remote / both: where client, server and encoders
share too few cores, both is what there is. With `--apart` the server has a core to itself, and every way the others.
`cells` are FineWeb-Edu-like parquet files at every latency and rate;
`formats` are jsonl, jsonl.gz, jsonl.zst and txt; `wide` is a parquet file whose text is one of nine large columns (its
ratio is to the time that the text column alone takes of the download, if that is slower than the local run; both is not
measured); `pull` is against `snapshot_download` of the same shards, and `stream` the first batch of a streaming loader
against the download of one shard. The last columns tell whether the machine was the limit: processor time of the server
a second.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import network_data, network_runs
from benchmarks.bench_hub import timed
from benchmarks.network_runs import Server

FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "txt")
PARTS = ("cells", "formats", "wide", "pull", "stream")
Row = dict[str, Any]


class Cell(NamedTuple):
    """A link: see `--latency`, `--rate` and `--streams`."""

    latency_ms: float
    rate_mb: float
    streams: int


class Bench:
    """The server, its data and the ways, measured `rounds` times in turn."""

    def __init__(self, server: Server, data: Path, work: Path, args: argparse.Namespace) -> None:
        self.server, self.data, self.work, self.args = server, data, work, args
        self._uploaded: set[str] = set()

    def place(self, name: str) -> tuple[str, Path]:
        """The repo and the local folder of the files of this kind."""
        size = int(1e6 * (self.args.shard_mb if name == "shards" else self.args.file_mb))
        folder = network_data.make(self.data, name, self.args.files, size)
        repo = f"alice/{name.replace('.', '-')}"
        if repo not in self._uploaded:
            network_runs.upload(self.server, repo, folder, self.work / "client", xet=self.args.xet)
            self._uploaded.add(repo)
        return repo, folder

    def link(self, cell: Cell) -> Row:
        """The link from here on; the begin of a row."""
        rates = {"connection_rate": 1e6 * cell.rate_mb, "total_rate": 1e6 * cell.rate_mb * cell.streams}
        self.server.control("PUT", "link", {"latency": cell.latency_ms / 1e3, **rates})
        return cell._asdict()

    def tokenized(self, name: str, cell: Cell) -> Row:
        """One cell: download, local and remote."""
        repo, folder = self.place(name)
        at, row = (self.server, repo), self.link(cell)
        home, local, remote = self.work / "client", self.work / "local", self.work / "remote"
        options = ["--workers", str(self.args.workers)] if self.args.workers else []
        runs: list[Row] = []
        for _ in range(self.args.rounds):
            plain = network_runs.download(self.server, repo, home, xet=self.args.xet)
            here = network_runs.tokenize(self.server, str(folder), local, home, options)
            both = (
                {"seconds": math.nan} if name == "wide" else network_runs.both(*at, str(folder), local, home, options)
            )
            there = network_runs.tokenize(self.server, repo, remote, home, options, xet=self.args.xet)
            found = {"download": plain, "local": here, "both": both, "remote": there}
            runs.append({**found, "identical": _same(local, remote)})
        median = {way: statistics.median(run[way]["seconds"] for run in runs) for way in found}
        last, share = runs[-1]["remote"], 1.0
        if name == "wide":
            column = network_data.text_column_bytes(folder)
            share = column / sum(path.stat().st_size for path in folder.iterdir())
            median["download"] *= share
        return {
            "name": name,
            **row,
            **median,
            "ratio": median["remote"] / max(median["download"], median["local"]),
            "of_both": median["remote"] / median["both"],
            "identical": all(run["identical"] for run in runs),
            "mb": last["bytes"] / 1e6,
            "bytes_per_needed": last["bytes"] / (runs[-1]["download"]["bytes"] * share),
            "requests_per_100_mb": {
                kind: round(100e6 * count / last["bytes"], 2) for kind, count in last["requests"].items()
            },
            "download_requests": runs[-1]["download"]["requests"],
            "connections": last["connections"],
            "peak_mb": {way: max(r[way]["memory"] for r in runs) / 1e6 for way in ("local", "remote")},
            "disk_mb": max(run["remote"]["disk"] for run in runs) / 1e6,
            "server_cpu": {way: runs[-1][way]["server_cpu"] / runs[-1][way]["wall"] for way in ("download", "remote")},
        }

    def pulled(self, cell: Cell) -> Row:
        """`pull`, which verifies, against `snapshot_download`, start-up counted for both."""
        repo, _ = self.place("shards")
        row = self.link(cell)
        seconds: dict[str, list[float]] = {"pull": [], "snapshot_download": []}
        for number in range(self.args.rounds):
            for way in seconds if number % 2 == 0 else reversed(seconds):
                with network_runs.fresh(self.work / "client"):
                    environment = self.server.environment(self.work / "client", xet=self.args.xet)
                    seconds[way].append(timed(way, repo, self.work / "client" / "out", environment)[0])
        median = {way: statistics.median(found) for way, found in seconds.items()}
        ratio = median["snapshot_download"] / median["pull"]
        return {"name": "pull", **row, **median, "ratio": ratio}

    def streamed(self, cell: Cell) -> Row:
        """The first batch of a streaming loader against one shard's time at the link's rate."""
        repo, folder = self.place("shards")
        row = self.link(cell)
        runs = [network_runs.first_batch(self.server, repo, self.work / "client") for _ in range(self.args.rounds)]
        seconds = statistics.median(run["seconds"] for run in runs)
        size = max(path.stat().st_size for path in folder.glob("*.npy"))
        shard = cell.latency_ms / 1e3 + size / (1e6 * cell.rate_mb)
        return {
            "name": "stream",
            **row,
            "first_batch": seconds,
            "one_shard": shard,
            "ratio": seconds / shard,
            "connections": runs[-1]["connections"],
        }


def _same(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.glob("*.npy"))
    if not names or names != sorted(path.name for path in second.glob("*.npy")):
        return False
    return not any(filecmp.cmpfiles(first, second, names, shallow=False)[1:])


def show(row: Row) -> None:
    """One line of the table."""
    head = f"{row['name']:10} {row['latency_ms']:4.0f} ms {row['rate_mb']:4.0f} MB/s x {row['streams']:2}"
    if "remote" not in row:
        others = {key: value for key, value in row.items() if key not in ("name", "ratio", *Cell._fields)}
        print(f"{head}  ratio {row['ratio']:5.2f}  " + "  ".join(f"{k} {v:.2f}" for k, v in others.items()), flush=True)
        return
    asked = " ".join(f"{kind} {count}" for kind, count in row["requests_per_100_mb"].items() if count)
    print(
        f"{head}  download {row['download']:6.2f} s  local {row['local']:6.2f} s  both {row['both']:6.2f} s  remote "
        f"{row['remote']:6.2f} s  ratio {row['ratio']:5.2f}  of both {row['of_both']:5.2f}"
        f"{'' if row['identical'] else '  BYTES DIFFER'}\n{'':32}{row['mb']:.0f} MB "
        f"({row['bytes_per_needed']:.2f} of what is needed), a 100 MB: {asked}; {row['connections']} connections; peak "
        f"{row['peak_mb']['remote']:.0f} MB (local {row['peak_mb']['local']:.0f}), disk {row['disk_mb']:.0f} MB; "
        f"server {row['server_cpu']['remote']:.2f} of a core (download {row['server_cpu']['download']:.2f})",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse, measure, print; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, nargs="+", default=[0, 150, 400], help="ms before each answer")
    parser.add_argument("--rate", type=float, nargs="+", default=[10, 40, 100], help="MB/s of a connection")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[16], help="connections that the link carries in full"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--file-mb", type=float, default=100.0)
    parser.add_argument("--shard-mb", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="of tokenize; its own choice by default")
    parser.add_argument("--apart", action="store_true", help="the server on a core of its own, all else on the others")
    parser.add_argument("--quick", action="store_true", help="one round of some 50 MB")
    parser.add_argument("--xet", action="store_true", help="upload and download by Xet")
    parser.add_argument("--data", type=Path, help="a folder in which the files are made once and kept")
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args(arguments)
    if args.apart and not (hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1):
        parser.error("--apart wants Linux and two cores: one for the server, one for all else")
    if args.quick:
        args.file_mb, args.shard_mb, args.rounds = min(args.file_mb, 12), min(args.shard_mb, 12), 1
    with tempfile.TemporaryDirectory(prefix="bench-network-") as temporary:
        work = Path(temporary)
        with Server(work / "server", apart=args.apart) as server:
            bench = Bench(server, args.data or work / "data", work, args)
            rows = []
            for measure, cell in _plan(bench, args):
                rows.append(measure(cell))
                show(rows[-1])
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _plan(bench: Bench, args: argparse.Namespace) -> list[tuple[Callable[[Cell], Row], Cell]]:
    """What is measured: the parquet files on every link, the rest on the one in the middle."""
    cells = [Cell(*values) for values in product(args.latency, args.rate, args.streams)]
    middle = Cell(*(values[len(values) // 2] for values in (args.latency, args.rate, args.streams)))

    def of(name: str) -> Callable[[Cell], Row]:
        return lambda cell: bench.tokenized(name, cell)

    plan = [(of("parquet"), cell) for cell in cells if "cells" in args.parts]
    plan += [(of(name), middle) for name in args.formats if "formats" in args.parts]
    plan += [(of("wide"), middle)] if "wide" in args.parts else []
    plan += [(bench.pulled, middle)] if "pull" in args.parts else []
    return plan + ([(bench.streamed, middle)] if "stream" in args.parts else [])


if __name__ == "__main__":
    main()
