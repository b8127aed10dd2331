"""Tokenize from a server that fails, again and again, and compare the bytes with a local run's.

    python -m benchmarks.soak_network [--runs 300] [--seed 0] [--only hub-parquet http-jsonl.gz]
    python -m benchmarks.soak_network --kill [--runs 50]

Each run reads a small source (parquet, jsonl, jsonl.gz, jsonl.zst, txt; of a Hub dataset or behind plain http) while
downloads and resolves stall, are cut, refused (429, 503, a signed URL that has run out), shortened or sent with a wrong
byte (where something can tell: a hash of the Hub, parquet's checksums). Its seed draws which, how often and where. It
must end with the local run's shards, or with one line that says why not; then the same command must finish with those
shards, the server being well again. With `--kill` nothing fails, but the run and its workers are killed by SIGKILL at a
random moment of its reading, three times, then let end; bytes that a later run fetched again are counted.

Waits between tries and for a silent connection are shortened (`HASTY`), the rest is the product's own. Prints a line a
kind of source and each failure with its seed; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hasty_runs import LONGEST_SECONDS, Ended, become_client, start, wait
from benchmarks.network_data import documents, paragraphs, write_jsonl, write_txt
from benchmarks.network_runs import Server, fresh

FORMATS = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst", "txt")
KINDS = tuple(f"{place}-{name}" for place in ("hub", "http") for name in FORMATS)
HAVE_A_HASH = ("hub-parquet", "hub-jsonl.gz", "hub-jsonl.zst", "hub-txt", "http-parquet")
Log = list[dict[str, Any]]
READING = "/_cdn/|/resolve/|/_files/"
FILES, FILE_BYTES = 2, 200_000


def make_data(folder: Path) -> None:
    """A folder for each format."""
    pool = paragraphs(100_000)
    for seed in range(FILES):
        for name in FORMATS:
            path = folder / name / f"{seed}.{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "parquet":
                texts = list(islice(documents(pool, seed), FILE_BYTES // 4_000))
                noise = [random.Random(number).randbytes(4_000) for number in range(len(texts))]
                table = pa.table({"noise": noise, "text": texts})
                pq.write_table(table, path, row_group_size=5, write_page_checksum=True)
            elif name == "txt":
                write_txt(path, pool, seed, FILE_BYTES)
            else:
                write_jsonl(path, pool, seed, FILE_BYTES)


def shards(out: Path) -> dict[str, bytes]:
    """The dataset's shards by name."""
    return {path.name: path.read_bytes() for path in out.glob("*.npy")}


def draw_faults(rng: random.Random, kind: str, seed: int) -> list[dict[str, Any]]:
    """One to four faults, as fields of the test server's `Fault`."""
    actions = ["stall", "drop", "drop_midway", "truncate", "429", "503"]
    actions += ["expire"] if kind.startswith("hub") else []
    actions += ["corrupt"] if kind in HAVE_A_HASH else []
    faults: list[dict[str, Any]] = []
    for name in rng.sample(actions, rng.randint(1, 4)):
        fault = {"action": name, "method": "GET", "path": READING, "seed": seed, "at": rng.random()}
        fault |= {"times": rng.choice([1, 3, 10, None]), "probability": rng.choice([0.05, 0.2, 0.5])}
        fault |= {"reset": rng.random() < 0.5}
        if name in ("429", "503"):
            waits = rng.choice([None, 1]) if name == "429" else None
            fault |= {"action": "status", "code": int(name), "retry_after": waits}
        elif name == "expire":
            fault |= {"path": "/_cdn/", "uses": rng.choice([1, 2, 5]), "times": None, "probability": 1.0}
        faults.append(fault)
    return faults


class Soak:
    """The server, its sources, and what the local runs made of them."""

    def __init__(self, server: Server, work: Path) -> None:
        self.server, self.work = server, work
        make_data(work / "data")
        shutil.copytree(work / "data", work / "server" / "files")
        self.expected: dict[str, dict[str, bytes]] = {}
        for name in FORMATS:
            server.control("PUT", "seed", {"repo": f"alice/{name.replace('.', '-')}", "folder": f"{work}/data/{name}"})

    def source(self, kind: str) -> str:
        """What the run is asked to read: a dataset, or one file behind http."""
        place, _, name = kind.partition("-")
        hub = f"alice/{name.replace('.', '-')}"
        plain = self.server.endpoint.replace("127.0.0.1", "localhost")  # no address of the Hub
        return hub if place == "hub" else f"{plain}/_files/{name}/0.{name}"

    def local(self, kind: str) -> dict[str, bytes]:
        """The shards of a run that reads the same from the disk."""
        place, _, name = kind.partition("-")
        if kind not in self.expected:
            folder = self.work / "data" / name
            source = folder if place == "hub" else folder / f"0.{name}"
            ended = wait(start(str(source), self.work / kind, self.work / "said"), self.work / "said", LONGEST_SECONDS)
            if ended.code != 0:
                raise SystemExit(f"the local run of {kind} failed: {ended.said}")
            self.expected[kind] = shards(self.work / kind)
        return self.expected[kind]

    def faulty(self, kind: str, seed: int) -> tuple[str, list[str]]:
        """One run among faults: clean or resumed (or wrong, with what is wrong), and the faults that fired."""
        expected = self.local(kind)
        faults = draw_faults(random.Random(f"{seed} {kind}"), kind, seed)
        out, said = self.work / "out", self.work / "said"
        with fresh(out):
            self.server.control("DELETE", "log")
            self.server.control("PUT", "faults", faults)
            ended = wait(start(self.source(kind), out, said), said, LONGEST_SECONDS)
            self.server.control("PUT", "faults", [])
            fired = [fault for line in self.server.control("GET", "log") for fault in line["faults"]]
            if (wrong := what_is_wrong(ended)) is not None:
                return f"{wrong} (faults {json.dumps(faults)})", fired
            if ended.code == 1:
                again = wait(start(self.source(kind), out, said), said, LONGEST_SECONDS)
                if again.code != 0:
                    return f"after {ended.said!r} the same command ended with {again}", fired
            if shards(out) != expected:
                return f"its bytes differ (faults {json.dumps(faults)})", fired
        return ("clean" if ended.code == 0 else "resumed"), fired

    def killed(self, kind: str, seed: int) -> tuple[str, int, int]:
        """One run that is killed up to three times: clean or what is wrong, the kills, and the bytes fetched again."""
        expected, rng = self.local(kind), random.Random(f"{seed} {kind}")
        self.server.control("PUT", "link", {"latency": 0.02, "total_rate": 400_000})
        out, said = self.work / "out", self.work / "said"
        logs: list[Log] = []
        with fresh(out):
            while True:
                self.server.control("DELETE", "log")
                process = start(self.source(kind), out, said)
                last = len(logs) == 3
                if not last:
                    self._wait_for_reading(process)
                ended = wait(process, said, LONGEST_SECONDS if last else rng.uniform(0.0, 2.0))
                logs.append(self.server.control("GET", "log"))
                if last or ended.code is not None:
                    break
            self.server.control("PUT", "link", {})
            again, kills = fetched_again(logs), len(logs) - 1
            if ended.code != 0:
                return f"after {kills} kills it ended with {ended}", kills, again
            return ("clean" if shards(out) == expected else "its bytes differ"), kills, again

    def _wait_for_reading(self, process: int) -> None:
        """Return once the run has been sent bytes of a file, or has ended."""
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if any(line["bytes_out"] and _is_of_a_file(line) for line in self.server.control("GET", "log")):
                return
            time.sleep(0.05)


def what_is_wrong(ended: Ended) -> str | None:
    """What no run may end with."""
    if ended.code is None:
        return "it did not end"
    lines = ended.said.splitlines()
    if ended.code not in (0, 1) or "Traceback" in ended.said:
        return f"it ended with {ended}"
    if ended.code == 1 and sum(line.startswith("error: ") for line in lines) != 1:
        return f"it did not say in one line what failed: {ended.said}"
    return f"it shows a secret: {ended.said}" if "Signature=" in ended.said or "hf_write" in ended.said else None


def fetched_again(logs: list[Log]) -> int:
    """Bytes of files that more than one of the runs was sent, once for each run after the first."""
    return sum(map(_different_bytes, logs)) - _different_bytes([line for log in logs for line in log])


def _different_bytes(log: Log) -> int:
    """How many bytes of files were sent, each counted once."""
    parts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for line in filter(_is_of_a_file, log):
        parts[line["target"].partition("?")[0]].append((line["first"], line["first"] + line["bytes_out"]))
    total = 0
    for ranges in parts.values():
        reached = 0
        for first, stop in sorted(ranges):
            total += max(0, stop - max(first, reached))
            reached = max(reached, stop)
    return total


def _is_of_a_file(line: dict[str, Any]) -> bool:
    return line["status"] in (200, 206) and line["target"].startswith(("/_cdn/", "/_files/"))


def main(arguments: list[str] | None = None) -> int:
    """Parse, soak, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next has the next")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--kill", action="store_true")
    args = parser.parse_args(arguments)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    failures = 0
    with tempfile.TemporaryDirectory(prefix="soak-network-") as temporary:
        work = Path(temporary)
        with Server(work / "server") as server:
            become_client(server, work)
            soak = Soak(server, work)
            for number in range(args.seed, args.seed + args.runs):
                kind = args.only[number % len(args.only)]
                if args.kill:
                    result, kills, again = soak.killed(kind, number)
                    counts[kind].update({"kills": kills, "bytes fetched again": again})
                else:
                    result, fired = soak.faulty(kind, number)
                    counts[kind].update(fired)
                failures += result not in ("clean", "resumed")
                counts[kind][result if result in ("clean", "resumed") else "FAILED"] += 1
                if result not in ("clean", "resumed"):
                    print(f"seed {number}, {kind}: {result}", flush=True)
    for kind, found in counts.items():
        print(f"{kind:15} " + ", ".join(f"{name} {count:,}" for name, count in sorted(found.items())))
    print(f"{args.runs} runs, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
