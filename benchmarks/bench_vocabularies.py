"""Vocabularies: what the fast engine is proven for, and how fast a run is with it.

    python -m benchmarks.published_vocabularies --out VOCABULARIES
    python -m benchmarks.bench_vocabularies --files VOCABULARIES/*/tokenizer.json [--megabytes 400] [--strings 1000000]

For gpt2, tiktoken's other encodings and each file:

- proof: strings compared with the reference, characters whose documents are left to it, seconds that a proof takes here
  (0 where one is shipped or cached), or why there is none;
- fuzzed: random strings (`tests/support/fuzz_strings.py`, another generator than the proof's) encoded by `auto` and by
  the reference, and how many differ: none may;
- MB/s: source bytes of text a second, `tokenize` with two workers from its first read to its manifest, and what one
  thread of the reference does on the first megabytes of the same text; the ratios to gpt2's run and to that thread.

Last, how fast texts are searched for guarded characters, 1, 16 and 400 of them: GB of text a second, of the corpus, and
of the same texts with a character of the CJK plane at their ends.

The text is that of `network_data`, or of the parquet files in `--corpus`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bench_encoders import corpus_texts
from benchmarks.network_data import PROSE_BYTES, paragraphs, write_parquet
from shardkit import tokenize
from shardkit.tokenization import proving
from shardkit.tokenization.guard import make_search
from shardkit.tokenization.proofs import save_proof
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.vocabulary import load_vocabulary

SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
ENCODINGS = ("gpt2", "p50k_base", "cl100k_base", "o200k_base")  # the others have the ranks and pattern of one of these
GUARDS = (1, 16, 400)
_REFERENCE_MB, _GUARD_MB = 4.0, 80.0


class Row(NamedTuple):
    """A line of the table; `rate` and `reference_rate` in MB/s."""

    name: str
    proof: str
    differences: int
    rate: float
    reference_rate: float


def proof_words(name: str) -> str:
    """Make sure that there is a proof, and say what it says."""
    vocabulary, started = load_vocabulary(name), time.perf_counter()
    proof = vocabulary.proof
    if proof is None:
        proof = proving.prove(vocabulary)
        save_proof(proof)
    seconds = 0.0 if vocabulary.proof else time.perf_counter() - started
    return proof.reason or f"{proof.strings:,} strings, guard {proof.guard or 'empty'}, {seconds:.0f} s"


def count_differences(name: str, count: int) -> int:
    """Of `count` random strings (in whole 5,000s), those that `auto` encodes to other ids than the reference."""
    sys.path.insert(0, str(SUPPORT))
    strings = importlib.import_module("fuzz_strings").strings
    ours, reference, found = Tokenizer(name), Tokenizer(name, encoder="tiktoken"), 0
    for seed in range(-(-count // 5000)):
        texts = list(strings(5000, seed + 1_000_000))
        parts = [np.split(ids, ends[1:-1]) for ids, ends in (ours.encode_batch(texts), reference.encode_batch(texts))]
        found += sum(not np.array_equal(a, b) for a, b in zip(*parts, strict=True))
    return found


def run_rate(name: str, corpus: Path, text_bytes: int) -> float:
    """MB/s of `tokenize` with two workers."""
    with tempfile.TemporaryDirectory(dir=corpus.parent) as out:
        tokenize(corpus, Path(out) / "set", tokenizer=name, workers=2, val_shards=0)
        summary = json.loads((Path(out) / "set" / ".shardkit" / "summary.json").read_text())
    seconds: float = summary["finished"] - summary["first_read"]
    return text_bytes / seconds / 1e6


def reference_rate(name: str, corpus: Path) -> float:
    """MB/s of one thread of the reference."""
    tokenizer, texts = Tokenizer(name, encoder="tiktoken"), corpus_texts(corpus, _REFERENCE_MB)
    tokenizer.warm_up()
    started = time.perf_counter()
    tokenizer.encode_batch(texts)
    return sum(len(text.encode()) for text in texts) / (time.perf_counter() - started) / 1e6


def main(arguments: list[str] | None = None) -> list[Row]:
    """Parse, run, print a table; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="*", default=[], help="tokenizer.json files")
    parser.add_argument("--encodings", nargs="*", choices=ENCODINGS, default=ENCODINGS)
    parser.add_argument("--megabytes", type=int, default=400, help="of parquet")
    parser.add_argument("--strings", type=int, default=1_000_000, help="to fuzz each with")
    parser.add_argument("--corpus", type=Path, help="folder of .parquet files with a `text` column")
    args = parser.parse_args(arguments)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = args.corpus or _write_corpus(Path(folder) / "corpus", args.megabytes)
        text_bytes = sum(len(text.encode()) for text in corpus_texts(corpus, 1e9))
        print(f"{'':14} {'proof':56} {'differ':>7} {'MB/s':>7} {'of gpt2':>8} {'one thread of the reference':>28}")
        for name in ["gpt2", *(n for n in args.encodings if n != "gpt2"), *args.files]:
            proof = proof_words(name)
            label = Path(name).parent.name if name.endswith(".json") else name
            row = Row(
                label,
                proof,
                count_differences(name, args.strings),
                run_rate(name, corpus, text_bytes),
                reference_rate(name, corpus),
            )
            rows.append(row)
            print(line(row, rows[0]), flush=True)
        for count in GUARDS:
            plain, wide = guard_rates(corpus_texts(corpus, _GUARD_MB), count)
            print(f"a guard of {count:3} characters: {plain:.1f} GB/s, with CJK at the ends {wide:.1f} GB/s")
    return rows


def guard_rates(texts: list[str], count: int) -> tuple[float, float]:
    """GB/s of looking for `count` characters that are rare or not there, in `texts` and with U+4E00 at their ends."""
    has_any = make_search("".join(map(chr, range(0xA000, 0xA000 + count))))
    rates = []
    for ending in ("", "\u4e00"):
        searched = [text + ending for text in texts]
        size, started = sum(len(text.encode()) for text in searched), time.perf_counter()
        found = sum(map(has_any, searched))
        rates.append(size / (time.perf_counter() - started) / 1e9)
        assert not found
    return rates[0], rates[1]


def line(row: Row, gpt2: Row) -> str:
    """A row as text."""
    beside = f"{row.reference_rate:.1f} MB/s, {row.rate / row.reference_rate:.0f}x"
    return f"{row.name:14} {row.proof:56} {row.differences:7,} {row.rate:7.1f} {row.rate / gpt2.rate:8.2f} {beside:>28}"


def _write_corpus(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    pool: Any = paragraphs(PROSE_BYTES)
    for number in range(4):
        write_parquet(folder / f"{number}.parquet", pool, number, megabytes * 250_000)
    return folder


if __name__ == "__main__":
    main()
