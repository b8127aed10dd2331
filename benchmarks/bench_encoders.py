"""A bake-off of encoder engines: exactness against tiktoken, speed cold and warm, memory over distinct words.

    python -m benchmarks.bench_encoders [--corpus FOLDER_OF_PARQUET] [--encoding gpt2] [--megabytes 100] [--words 10]

tiktoken's `encode_ordinary` is computed once, of one document in `--sample` of the corpus; then every engine runs in a
fresh process on one thread, on all of the same texts, which are read as they are needed. What an engine has not done in
`--seconds` of a pass it leaves. Engines that are not installed, that have no such encoding, or that want more than
`--most-gb` of memory, are left out with a line that says why. Without `--corpus` the text is the built-in sample.
Columns:

- start: seconds until the engine can encode.
- differences: documents that differ from tiktoken, of three sets: every code point in four contexts, the corpus, and
  pathological strings (megabyte words, runs of blanks, control characters, special tokens as text, random Unicode).
- cold, warm MB/s: UTF-8 bytes of the corpus a second, first pass and second pass of the same process.
- words MB: growth of the resident set while `--words` million distinct made-up words pass through, after the corpus;
  how many did, if not all.
- peak MB: the highest resident set of the process.
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow.parquet as pq
from numpy.typing import NDArray

Encode = Callable[[list[str]], tuple[NDArray[Any], NDArray[Any]]]
ENGINES = ("tiktoken", "fastokens", "gigatoken", "quicktok", "tokenizers", "wordchipper")
CONTEXTS = ("a{}b {}", "{}{}'s 1{}", " {}\n {}  {}", "it'{} '{}e'{}")
SETS = ("code points", "corpus", "pathological")
_BATCH = 8 << 20
_WORDS_A_BATCH = 250_000
_PASSED = ("megabytes", "words", "sample", "seconds", "most-gb", "every", "long")  # options, to a contestant


def code_points(every: int = 1) -> list[str]:
    """A document for each (or every n-th) code point in each context; surrogates are no text and left out."""
    points = [chr(c) for c in range(0, 0x110000, every) if not 0xD800 <= c < 0xE000]
    return [context.replace("{}", char) for context in CONTEXTS for char in points]


def pathological(size: int) -> list[str]:
    """Strings of up to `size` characters that break pre-tokenizers, and 2,000 random ones (seeded)."""
    dice = random.Random(0)
    units = [
        "a",
        "ab",
        " ",
        "\n",
        "\r\n",
        "\t",
        "1",
        "!",
        "\0",
        "日本",
        "é",
        "e\u0301",
        "\U0001f600\u200d",
        "'s",
        "'S ",
        "<|",
    ]
    found = [(unit * size)[:size] + tail for unit in units for tail in ("", "x", " ")]
    found += ["".join(dice.choices("abcdefghij", k=size)), "".join(dice.choices("aA1 \n'!é", k=size))]
    found += [
        "x<|endoftext|>y",
        "<|endoftext|>",
        "<|fim_prefix|>a<|endofprompt|>",
        "a\0b\0",
        "",
        "\ufeff",
        "\u2028 \u00a0 \u3000",
    ]
    ranges = [
        (0x20, 0x7F),
        (0x80, 0x250),
        (0x300, 0x370),
        (0x600, 0x700),
        (0x2000, 0x2100),
        (0x3000, 0x3100),
        (0x1F300, 0x1F700),
    ]
    for _ in range(2000):
        picks = dice.choices(ranges, weights=[8, 2, 1, 1, 2, 2, 1], k=dice.randrange(1, 60))
        found.append("".join(chr(dice.randrange(*pick)) for pick in picks))
    return found


def corpus_texts(corpus: Path | None, megabytes: float) -> list[str]:
    """The `text` column of the folder's parquet files, the first `megabytes` of it; the built-in sample if None."""
    return [text for batch in corpus_batches(corpus, megabytes) for text in batch]


def corpus_batches(corpus: Path | None, megabytes: float) -> Iterator[list[str]]:
    """The same, in batches of about 8 MB."""
    if corpus is None:
        from shardkit.sources.sample import read_documents, sample_source
        from shardkit.sources.source import ReadOptions

        lists = (read_documents(Path(file.url)) for file in sample_source(ReadOptions()).files)
    else:
        paths = sorted(corpus.rglob("*.parquet")) if corpus.is_dir() else [corpus]
        lists = (
            rows[0].to_pylist()
            for path in paths
            for rows in pq.ParquetFile(path).iter_batches(batch_size=512, columns=["text"], use_threads=False)
        )
    return batches_of(_first(lists, megabytes * 1e6))


def _first(lists: Iterable[Sequence[str | None]], room: float) -> Iterator[str]:
    for texts in lists:
        for text in texts:
            if room <= 0:
                return
            yield text or ""
            room -= len(text or "")


def made_up_words(millions: float) -> Iterator[list[str]]:
    """Batches of one document of distinct words: base-26 numbers, seven letters and more."""
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkqjxz", dtype=np.uint8)
    total = int(millions * 1e6)
    for at in range(0, total, _WORDS_A_BATCH):
        numbers = np.arange(at, min(at + _WORDS_A_BATCH, total), dtype=np.int64) * 1_000_003 + 26**6
        table = np.full((len(numbers), 9), ord(" "), dtype=np.uint8)
        for column in range(1, 9):
            table[:, column] = letters[numbers % 26]
            numbers //= 26
        yield [table.tobytes().decode()]


def make_engine(name: str, encoding: str) -> Encode:
    """The engine `name` for a tiktoken encoding: texts to flat ids and offsets, one thread."""
    from shardkit.tokenization.fast_json import fast_tokenizer_json
    from shardkit.tokenization.tiktoken_files import load_encoding
    from shardkit.tokenization.tokenizer import Tokenizer

    if name in ("tiktoken", "fastokens"):
        return Tokenizer(encoding, encoder="fast" if name == "fastokens" else "tiktoken").encode_batch
    known = load_encoding(encoding)
    if name == "tokenizers":
        import tokenizers

        spelled = fast_tokenizer_json(known._mergeable_ranks, known._pat_str)
        native = tokenizers.Tokenizer.from_str(spelled)
        return _from_lists(lambda texts: [e.ids for e in native.encode_batch_fast(texts, add_special_tokens=False)])
    if name == "wordchipper":  # its vocabularies come from its own cache, or the network
        return _from_lists(_wordchipper(encoding, known).encode_ordinary_batch)
    if name == "quicktok":  # of PyPI's quicktok-v1
        import quicktok

        quick = quicktok.get_encoding(encoding)
        return lambda texts: quick.encode_batch(texts, 1)
    import awkward
    import gigatoken

    with tempfile.NamedTemporaryFile("w", suffix=".tiktoken") as file:
        file.write(_rank_file(known))
        file.flush()
        scheme = {"gpt2": "gpt2", "r50k_base": "gpt2", "p50k_base": "gpt2"}.get(
            encoding, encoding.removesuffix("_base")
        )
        giga = gigatoken.Tokenizer.from_tiktoken(file.name, pretokenizer=scheme, special_tokens={})

    def encode(texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = giga.encode_batch(texts, parallel=False)
        counts = awkward.to_numpy(awkward.num(rows))
        return awkward.to_numpy(awkward.flatten(rows)), np.concatenate([[0], np.cumsum(counts)])

    return encode


def _wordchipper(encoding: str, known: Any) -> Any:
    with tempfile.TemporaryDirectory() as cache:
        name = "r50k_base" if encoding == "gpt2" else encoding
        place = Path(cache) / "openai" / name / f"{name}.tiktoken"
        place.parent.mkdir(parents=True)
        place.write_text(_rank_file(known))
        os.environ["WORDCHIPPER_CACHE_DIR"] = cache
        from wordchipper.compat.tiktoken import get_encoding

        return get_encoding(name)


def _from_lists(encode: Callable[[list[str]], Sequence[Sequence[int]]]) -> Encode:
    def flat(texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = encode(texts)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return np.fromiter((i for row in rows for i in row), dtype=np.uint32, count=int(offsets[-1])), offsets

    return flat


def _rank_file(encoding: Any) -> str:
    ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks)


def batches_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Batches of about 8 MB."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sampled(batches: Iterable[list[str]], every: int) -> Iterator[list[str]]:
    """One text in `every`."""
    number = 0
    for batch in batches:
        yield batch[-number % every :: every]
        number += len(batch)


class Pass(NamedTuple):
    """Of one text in so many the ids, one after another, and how many each has; bytes of all texts, and the seconds
    that encoding them took."""

    ids: NDArray[Any]
    counts: NDArray[Any]
    bytes: int
    seconds: float


def encode_all(encode: Encode, batches: Iterable[list[str]], *, every: int = 1, most_seconds: float = 1e9) -> Pass:
    """Encode all batches, or those that are begun within `most_seconds`, and keep the ids of one text in `every`."""
    ids, counts, seconds, size, number = [], [], 0.0, 0, 0
    for batch in batches:
        if seconds >= most_seconds:
            break
        started = time.perf_counter()
        found, ends = encode(batch)
        seconds += time.perf_counter() - started
        size += sum(len(text.encode()) for text in batch)
        flat, offsets = np.asarray(found), np.asarray(ends).astype(np.int64)
        kept = range(-number % every, len(batch), every)
        number += len(batch)
        if every > 1:
            flat = np.concatenate([flat[:0], *(flat[offsets[i] : offsets[i + 1]] for i in kept)])
        ids.append(flat.astype(np.uint32))
        counts.append(np.diff(offsets)[kept.start :: every])
    return Pass(np.concatenate(ids), np.concatenate(counts), size, seconds)


def differences(expected: tuple[NDArray[Any], NDArray[Any]], found: tuple[NDArray[Any], NDArray[Any]]) -> int:
    """How many of the documents found differ from the first ones expected, given ids and counts of both."""
    counts = expected[1][: len(found[1])]
    expected = expected[0][: counts.sum()], counts
    if all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True)):
        return 0
    ends = [np.concatenate([[0], np.cumsum(counts)]) for _, counts in (expected, found)]
    return sum(
        not np.array_equal(expected[0][ends[0][i] : ends[0][i + 1]], found[0][ends[1][i] : ends[1][i + 1]])
        for i in range(len(expected[1]))
    )


def contestant(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One engine in this process. `reference` writes what the others are compared with."""
    if name != "reference":
        resource.setrlimit(resource.RLIMIT_AS, (int(args.most_gb * 1e9),) * 2)
    started = time.perf_counter()
    encode = make_engine("tiktoken" if name == "reference" else name, args.encoding)
    encode(["it"])
    result: dict[str, Any] = {"start": time.perf_counter() - started, "differences": {}}
    for kind in ("corpus", "code points", "pathological"):  # the corpus first: its first pass is the cold one
        texts = {"code points": lambda: code_points(args.every), "pathological": lambda: pathological(args.long)}
        every = args.sample if kind == "corpus" else 1
        batches = corpus_batches(args.corpus, args.megabytes) if kind == "corpus" else batches_of(texts[kind]())
        stem = args.out / kind.replace(" ", "_")
        if name == "reference":
            made = encode_all(encode, sampled(batches, every))
            np.savez(f"{stem}.npz", ids=made.ids, counts=made.counts)
            continue
        made = encode_all(encode, batches, every=every, most_seconds=args.seconds)
        with np.load(f"{stem}.npz") as expected:
            result["differences"][kind] = differences((expected["ids"], expected["counts"]), made[:2])
        if kind == "corpus":
            warm = encode_all(encode, corpus_batches(args.corpus, made.bytes / 1e6), every=10**9)
            result |= {"megabytes": made.bytes / 1e6, "cold_mb_per_second": made.bytes / made.seconds / 1e6}
            result["warm_mb_per_second"] = warm.bytes / warm.seconds / 1e6
        del made
        gc.collect()
    if name != "reference":
        result["words_mb"], result["words"] = words_growth(encode, args.words, args.seconds)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return result


def words_growth(encode: Encode, millions: float, most_seconds: float) -> tuple[float, float]:
    """Highest growth of the resident set, in MB, over distinct words, and how many millions of them went through; the
    first batch is not counted."""
    process, started = psutil.Process(), time.perf_counter()
    first = peak = count = 0
    for batch in made_up_words(millions):
        encode(batch)
        count += min(_WORDS_A_BATCH, int(millions * 1e6) - count)
        now = process.memory_info().rss
        first = first or now
        peak = max(peak, now)
        if time.perf_counter() - started >= most_seconds:
            break
    return (peak - first) / 1e6, count / 1e6


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Parse, run, print a table; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of .parquet files with a `text` column [built-in sample]")
    parser.add_argument("--encoding", default="gpt2")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--megabytes", type=float, default=100, help="how much of the corpus")
    parser.add_argument("--words", type=float, default=10, help="millions of distinct made-up words")
    parser.add_argument("--sample", type=int, default=1, help="compare one document of the corpus in so many")
    parser.add_argument("--seconds", type=float, default=60, help="that an engine may encode in each pass")
    parser.add_argument("--most-gb", type=float, default=12, help="of address space for an engine")
    parser.add_argument("--every", type=int, default=1, help="every n-th code point only")
    parser.add_argument("--long", type=int, default=200_000, help="characters of a pathological string")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.contestant:
        print(json.dumps(contestant(args.contestant, args)))
        return []
    rows = []
    with tempfile.TemporaryDirectory() as out:
        run_fresh("reference", args, out)
        print(
            f"{'':12} {'start':>6} {'differences: ' + ', '.join(SETS):>46} {'cold MB/s':>10} {'warm MB/s':>10} "
            f"{'of MB':>6} {'words MB':>9} {'peak MB':>8}"
        )
        for name in args.engines:
            if find_spec(name) is None:
                print(f"{name:12} not run: not installed")
                continue
            row = run_fresh(name, args, out)
            if "skipped" in row:
                print(f"{name:12} {row['skipped']}", flush=True)
                continue
            rows.append({"name": name, **row})
            wrong = ", ".join(f"{row['differences'][kind]:,}" for kind in SETS)
            words = "" if row["words"] >= args.words else f" (of {row['words']:g}M words)"
            print(
                f"{name:12} {row['start']:6.2f} {wrong:>46} {row['cold_mb_per_second']:10.1f} "
                f"{row['warm_mb_per_second']:10.1f} {row['megabytes']:6.0f} {row['words_mb']:9.0f} "
                f"{row['peak_mb']:8.0f}{words}",
                flush=True,
            )
    return rows


def run_fresh(name: str, args: argparse.Namespace, out: str) -> dict[str, Any]:
    """Run one contestant in a fresh process with one thread in every pool."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.bench_encoders",
        "--contestant",
        name,
        "--out",
        out,
        "--encoding",
        args.encoding,
        *[word for name in _PASSED for word in (f"--{name}", str(getattr(args, name.replace("-", "_"))))],
        *(["--corpus", str(args.corpus)] if args.corpus else []),
    ]
    one = {
        "RAYON_NUM_THREADS": "1",
        "FASTOKENS_BPE_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one}, check=False)
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
    reason = (done.stderr.strip().splitlines() or [f"it died by signal {-done.returncode}"])[-1]
    if name in ("reference", "tiktoken", "fastokens"):
        raise SystemExit(f"{name} failed: {reason}")
    return {"skipped": f"not run: {reason}"}


if __name__ == "__main__":
    main()
