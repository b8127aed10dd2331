"""Tokenizing speed and memory: shardkit beside the plain reference loop, its own parts, and its limit.

    python -m benchmarks.bench_tokenize --corpus FOLDER_OF_PARQUET [--workers 2] [--rounds 3] [--others]

Every contestant runs in a fresh process on the same files, caches of the engine cold, page cache warm, rounds
interleaved; the median round is printed. Before each run 4 GiB of memory are written and given back: a virtual machine
hands out memory that it has not used for seconds many times slower, which would drown everything else. Rates count from
the first read to the last byte (for shardkit: to the manifest), so start-up is left out for all. Ratios are what
carries over to another machine.

- reference: what build-nanogpt's `fineweb.py` does: one reader of whole rows, `Pool.imap(chunksize=16)`, tiktoken, a
  list and a range check a document, `np.save`.
- fineweb.py: the same with the pool that `fineweb.py` itself makes here, half as many processes as cores.
- engine: the fast engine alone, texts already in memory, one process a worker.
- parquet: reading the text column alone, one process a worker.
- litdata, datatrove (`--others`, if installed): their own tokenizing of the same files, start-up counted; `shardkit
  whole` is `tokenize()` with its start-up, to set beside them.
- limit: the same processes reading, encoding, inserting EOT and writing (past the page cache, as shardkit does), and
  nothing else: no order, hash, journal or audit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq

CONTESTANTS = ("reference", "fineweb.py", "parquet", "engine", "limit", "shardkit")
OTHERS = ("litdata", "datatrove", "shardkit whole")
_MEMORY_BYTES = 4 << 30


def row_groups(corpus: Path) -> list[tuple[str, int]]:
    """Every row group of the corpus's parquet files, in order."""
    paths = sorted(corpus.glob("*.parquet")) if corpus.is_dir() else [corpus]
    return [(str(path), group) for path in paths for group in range(pq.ParquetFile(path).num_row_groups)]


def read_texts(path: str, group: int) -> list[str]:
    """The text column of one row group."""
    texts: list[str] = pq.ParquetFile(path).read_row_group(group, columns=["text"], use_threads=False)[0].to_pylist()
    return texts


def read_rows(path: str, group: int) -> list[dict[str, Any]]:
    """The rows of one row group with all their columns, as iterating a `datasets.Dataset` gives them."""
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read_row_group(group, use_threads=False).to_pylist()
    return rows


def reference_encode(row: dict[str, Any]) -> Any:
    """One row, as `fineweb.py` does it: a list, then an array, its range checked, then uint16."""
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    tokens = [encoding.eot_token]
    tokens.extend(encoding.encode_ordinary(row["text"]))
    array = np.array(tokens)
    if not ((array >= 0).all() and (array < 2**16).all()):
        raise ValueError("an id does not fit uint16")
    return array.astype(np.uint16)


def run_reference(corpus: Path, out: Path, workers: int, shard_tokens: int) -> dict[str, float]:
    """The plain loop, with shards of `shard_tokens`; the pool is warm before the clock starts."""
    from shardkit.tokenization.tiktoken_files import load_encoding

    load_encoding("gpt2")  # puts the vocabulary where tiktoken finds it, also without a network
    total, index, filled = 0, 0, 0
    buffer = np.empty((shard_tokens,), dtype=np.uint16)
    with multiprocessing.Pool(workers) as pool:
        pool.map(reference_encode, [{"text": "warm up"}] * workers * 4)
        started = time.perf_counter()
        rows = (row for path, group in row_groups(corpus) for row in read_rows(path, group))
        for tokens in pool.imap(reference_encode, rows, chunksize=16):
            total += len(tokens)
            while len(tokens):
                part, tokens = tokens[: shard_tokens - filled], tokens[shard_tokens - filled :]
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                if filled == shard_tokens:
                    np.save(out / f"reference_{index:06d}.npy", buffer)
                    index, filled = index + 1, 0
        if filled:
            np.save(out / f"reference_{index:06d}.npy", buffer[:filled])
        return {"tokens": total, "seconds": time.perf_counter() - started}


def _part_worker(kind: str, groups: list[tuple[str, int]], out: str, ready: Any, taken: Any, results: Any) -> None:
    from shardkit.files import LongFile
    from shardkit.tokenization.tokenizer import Tokenizer

    tokenizer = Tokenizer("gpt2", encoder="fast")
    tokenizer.warm_up()  # as shardkit's workers do before their first chunk
    loaded = [read_texts(*group) for group in groups] if kind == "engine" else []
    ready.wait()
    started, tokens = time.time(), 0
    with closing(LongFile(Path(out))) as file:  # the way shardkit writes
        while (number := _next(taken)) < len(groups):
            texts = loaded[number] if kind == "engine" else read_texts(*groups[number])
            if kind == "parquet":
                continue
            ids, offsets = tokenizer.encode_batch(texts)
            tokens += len(ids) + len(texts)
            if kind == "limit":
                file.write(tokenizer.with_eot(ids, offsets).view(np.uint8).data)
        file.sync()
    results.put((started, time.time(), tokens))


def _next(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return int(taken.value) - 1


def run_parts(kind: str, corpus: Path, out: Path, workers: int) -> dict[str, float]:
    """`engine`, `parquet` or `limit`: each process takes the next row group when it is free."""
    from shardkit.tokenization.spawning import WORKER_ENVIRONMENT

    os.environ.update(WORKER_ENVIRONMENT)  # the same processes as shardkit's
    groups = row_groups(corpus)
    context = multiprocessing.get_context("spawn")
    ready, taken, results = context.Barrier(workers), context.Value("i", 0), context.Queue()
    processes = [
        context.Process(target=_part_worker, args=(kind, groups, str(out / f"{n}.bin"), ready, taken, results))
        for n in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "tokens": sum(tokens for _, _, tokens in found),
        "seconds": max(end for _, end, _ in found) - min(start for start, _, _ in found),
    }


def run_shardkit(corpus: Path, out: Path, workers: int, shard_tokens: int) -> dict[str, float]:
    """The whole command's work; its own summary says when the first read and the manifest were."""
    from shardkit import tokenize

    started = time.perf_counter()
    tokenize(str(corpus), out / "set", workers=workers, shard_tokens=shard_tokens, prefix="bench", val_shards=0)
    whole = time.perf_counter() - started
    summary = json.loads((out / "set" / ".shardkit" / "summary.json").read_text())
    seconds = summary["finished"] - summary["first_read"]
    return {"tokens": summary["tokens"], "seconds": seconds, "whole_seconds": whole}


def run_shardkit_whole(corpus: Path, out: Path, workers: int, shard_tokens: int) -> dict[str, float]:
    """The same, timed from the call to its return."""
    result = run_shardkit(corpus, out, workers, shard_tokens)
    return {"tokens": result["tokens"], "seconds": result["whole_seconds"]}


def _litdata_tokens(item: tuple[str, int]) -> Iterator[Any]:
    import tiktoken
    import torch

    encoding = tiktoken.get_encoding("gpt2")
    for text in read_texts(*item):
        yield torch.tensor([encoding.eot_token, *encoding.encode_ordinary(text)], dtype=torch.int32)


def run_litdata(corpus: Path, out: Path, workers: int) -> dict[str, float]:
    """litdata's `optimize` with tiktoken, as its documentation shows it; start-up counted."""
    import litdata

    started = time.perf_counter()
    loader = litdata.TokensLoader(block_size=1025)
    litdata.optimize(
        fn=_litdata_tokens,
        inputs=row_groups(corpus),
        output_dir=str(out / "lit"),
        num_workers=workers,
        chunk_bytes="64MB",
        item_loader=loader,
    )
    seconds = time.perf_counter() - started
    return {"tokens": 0, "seconds": seconds}


def run_datatrove(corpus: Path, out: Path, workers: int) -> dict[str, float]:
    """datatrove's `DocumentTokenizer` with a GPT-2 `tokenizer.json`; start-up counted."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    from shardkit.tokenization.tokenizer import Tokenizer

    path = out / "tokenizer.json"
    path.write_text(str(Tokenizer("gpt2", encoder="fast").vocabulary.fast_json))
    started = time.perf_counter()
    tokens = DocumentTokenizer(
        output_folder=str(out / "dt"), tokenizer_name_or_path=str(path), eos_token=None, shuffle_documents=False
    )
    reader = ParquetReader(str(corpus), text_key="text", glob_pattern="*.parquet")
    LocalPipelineExecutor(pipeline=[reader, tokens], tasks=workers, workers=workers).run()
    return {"tokens": 0, "seconds": time.perf_counter() - started}


def contestant(name: str, corpus: Path, out: Path, workers: int, shard_tokens: int) -> dict[str, float]:
    """Run one contestant in this process."""
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "reference": lambda: run_reference(corpus, out, workers, shard_tokens),
        "fineweb.py": lambda: run_reference(corpus, out, max(1, (os.cpu_count() or 1) // 2), shard_tokens),
        "shardkit": lambda: run_shardkit(corpus, out, workers, shard_tokens),
        "shardkit whole": lambda: run_shardkit_whole(corpus, out, workers, shard_tokens),
        "litdata": lambda: run_litdata(corpus, out, workers),
        "datatrove": lambda: run_datatrove(corpus, out, workers),
    }
    return runs.get(name, lambda: run_parts(name, corpus, out, workers))()


def measure(name: str, corpus: Path, workers: int, shard_tokens: int, *, memory_bytes: int = 0) -> dict[str, float]:
    """Run one contestant in a fresh process; add the peak memory of its process tree (unique set, in bytes).

    `memory_bytes` are written and given back while it loads its modules.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_tokenize",
            "--contestant",
            name,
            "--corpus",
            str(corpus),
            "--workers",
            str(workers),
            "--shard-tokens",
            str(shard_tokens),
            "--out",
            out,
        ]
        memory = np.ones(memory_bytes, np.uint8)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
        watcher.start()
        if memory_bytes:
            time.sleep(1)
        del memory
        stdout, _ = process.communicate()
        watcher.join()
        if process.returncode:
            raise SystemExit(f"{name} failed with exit code {process.returncode}")
        result: dict[str, float] = json.loads(stdout.splitlines()[-1])
        return {**result, "peak_bytes": peak[0]}


def _watch(pid: int, peak: list[int]) -> None:
    """Keep the highest sum of resident memory over the tree. Shared pages count once a process: an upper bound."""
    try:
        root = psutil.Process(pid)
        tree, samples = [root], 0
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            if samples % 10 == 0:  # reading the whole process table costs milliseconds of a core
                tree = [root, *root.children(recursive=True)]
            samples += 1
            resident = 0
            for process in tree:
                with suppress(psutil.Error):
                    resident += process.memory_info().rss
            peak[0] = max(peak[0], resident)
            time.sleep(0.02)
    except psutil.Error:
        return


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Parse, run, print a table; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of .parquet files with a `text` column")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-tokens", type=int, default=100_000_000)
    parser.add_argument("--others", action="store_true", help="litdata and datatrove too, if they are installed")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.contestant:
        print(json.dumps(contestant(args.contestant, args.corpus, args.out, args.workers, args.shard_tokens)))
        return []
    names = CONTESTANTS + (OTHERS if args.others else ())
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            run = measure(name, args.corpus, args.workers, args.shard_tokens, memory_bytes=_MEMORY_BYTES)
            runs[name].append(run)
    return _table(runs)


def _table(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    tokens = max(run["tokens"] for rounds in runs.values() for run in rounds)
    seconds = {name: statistics.median(run["seconds"] for run in rounds) for name, rounds in runs.items()}
    rows = []
    print(f"{'':14} {'seconds':>8} {'Mtok/s':>8} {'x reference':>12} {'% of limit':>11} {'peak MB':>8}")
    for name, rounds in runs.items():
        row: dict[str, Any] = {
            "name": name,
            "seconds": seconds[name],
            "mtok_per_second": tokens / seconds[name] / 1e6,
            "x_reference": seconds["reference"] / seconds[name],
            "share_of_limit": seconds["limit"] / seconds[name],
            "peak_mb": max(run["peak_bytes"] for run in rounds) / 1e6,
        }
        rows.append(row)
        print(
            f"{name:14} {row['seconds']:8.2f} {row['mtok_per_second']:8.1f} {row['x_reference']:12.1f} "
            f"{100 * row['share_of_limit']:11.0f} {row['peak_mb']:8.0f}"
        )
    return rows


if __name__ == "__main__":
    main()
