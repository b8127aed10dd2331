"""Runs of `shardkit tokenize` that are killed again and again, the process or one of its workers, until one ends.

    python -m benchmarks.soak_kills [--kills 60] [--seed 0] [--workers 3]

Each dataset must be that of a run that nothing happened to, byte by byte. A kill comes after a random time, so where it
strikes is another place each time; the seed says what is killed and which options a run has.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil


def make_corpus(folder: Path) -> Path:
    """Some 12 MB of text in parquet and jsonl files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    chance = random.Random(0)
    words = ["shard", "token", "éclair", "words", "of\n", "a", "long", "💡", "document,", "and", "more"]
    for number in range(6):
        texts = [" ".join(chance.choices(words, k=chance.choice([3, 300, 3000]))) for _ in range(400)]
        if number % 2:
            lines = (json.dumps({"text": text}) for text in texts)
            (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
        else:
            pq.write_table(pa.table({"text": texts}), folder / f"{number}.parquet", row_group_size=50)
    return folder


def run(words: list[str], seconds: float | None, whom: str, chance: random.Random) -> bool:
    """Run the command, kill it or a worker of it after so many seconds; whether the kill came before its end."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = False
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            workers = psutil.Process(process.pid).children()
            victim = process.pid if whom == "parent" or not workers else chance.choice(workers).pid
            killed = process.poll() is None
            os.kill(victim, 9)
    said = process.communicate()[1]
    if "Traceback" in said or (process.returncode not in (0, 1, -9)):
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{said}")
    return killed and process.returncode != 0


def same_shards(made: Path, whole: Path) -> bool:
    """Whether two folders hold the same shards, and the same manifest."""
    names = [path.name for path in whole.glob("*.npy")] + ["manifest.json"]
    left = {path.name for path in made.glob("*.npy")} - set(names)
    return not left and filecmp.cmpfiles(made, whole, names, shallow=False)[1:] == ([], [])


def main() -> None:
    """Kill runs until so many kills have struck, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=3)
    args = parser.parse_args()
    chance, kills, datasets = random.Random(args.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus, whole, out = make_corpus(folder / "corpus"), folder / "whole", folder / "out"
        command = [sys.executable, "-m", "shardkit", "tokenize", str(corpus), "--prefix", "p", "--tokenizer", "bytes"]
        command += ["--shard-tokens", "300000", "--out"]
        began = time.monotonic()
        run([*command, str(whole), "--workers", "1"], None, "", chance)
        length = time.monotonic() - began
        words = [*command, str(out), "--workers", str(args.workers)]
        while kills.total() < args.kills:
            for _ in range(chance.randint(1, 6)):
                whom = chance.choice(["parent", "worker"])
                kills[whom] += run(words, chance.uniform(0.1, 1.0) * length, whom, chance)
            run(words, None, "", chance)
            if not same_shards(out, whole) or list((out / ".shardkit").glob("*.tmp")):
                shutil.copytree(out, "soak_kills-failed")
                raise SystemExit("another dataset than that of a run that nothing happened to: see soak_kills-failed/")
            datasets += 1
            shutil.rmtree(out)
    print(f"{kills['parent']} kills of the parent and {kills['worker']} of a worker; {datasets} datasets, each of the")
    print("bytes of a run that nothing happened to")


if __name__ == "__main__":
    main()
