"""Memory of a whole tokenization over made-up words, none of them twice: flat in how many there are.

    python -m benchmarks.soak_memory --words 6_000_000
    python -m benchmarks.soak_memory --words 60_000_000 [--tokenizer cl100k_base]
    python -m benchmarks.soak_memory --words 60_000_000 --tokenizer FOLDER/tokenizer.json --encoder fast

Prints the highest resident memory of the whole process tree, and that of the first 30 % of the run: a cache that grew
without bound would keep rising. Shared pages count once a process: an upper bound.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from shardkit import tokenize

_DOCUMENT_WORDS = 1000


def documents(words: int) -> Iterator[str]:
    """Documents of 1,000 words each; every word ends in a number of its own."""
    for first in range(0, words, _DOCUMENT_WORDS):
        yield " ".join(
            chr(97 + (first + word) % 26) + chr(97 + word * 7 % 26) + chr(97 + first * 3 % 26) + str(first + word)
            for word in range(min(_DOCUMENT_WORDS, words - first))
        )


def tree_bytes() -> int:
    """Resident memory of this process and its children."""
    total = 0
    for process in (here := psutil.Process(), *here.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has ended
    return total


def soak(words: int, workers: int, tokenizer: str = "gpt2", encoder: str = "auto") -> tuple[int, int, int]:
    """Tokenize so many words: tokens, the highest memory in the first 30 % of the run, and in all of it."""
    samples, done = [tree_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            samples.append(tree_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"tokenizer": tokenizer, "encoder": encoder, "val_shards": 0, "prefix": "words"}
            manifest = tokenize(documents(words), Path(folder) / "out", workers=workers, **options)
    finally:
        done.set()
        thread.join()
    return manifest.tokens, max(samples[: 1 + len(samples) * 3 // 10]), max(samples)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=6_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--encoder", default="auto", help="fast for a tokenizer.json")
    args = parser.parse_args()
    tokens, early, most = soak(args.words, args.workers, args.tokenizer, args.encoder)
    print(
        f"{args.words:,} words, {tokens:,} tokens: {early / 1e6:.0f} MB in the first 30 %, {most / 1e6:.0f} MB at most"
    )


if __name__ == "__main__":
    main()
