"""Scale by simulation: what 10B to 15T tokens cost where no token is made or read: processor seconds, memory, files.

    python -m benchmarks.simulate_scale [--sizes 10B 100B 1.4T 15T] [--folder /dev/shm]

Shards of 100M tokens, of chunks with made-up counts (4.7M tokens on average, 64 chunks a source file), go through the
real ordered writer, journal, manifest, push segments, checks of a folder and loader order. Each step runs in a process
of its own, and its memory is the peak beyond what Python and the library take before. Shard files are sparse: the
folder's file system must have holes, and inodes for 150,000 files. Prints one Markdown row a step. What a rank of a
loader asks of a shared folder before its first batch is counted by `strace`, where that is installed, less what Python
asks for by itself.

`tests/torture/test_scale_simulation.py` runs the steps at small sizes, and counts that they grow with the shards alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardkit.batches.order import Cut, Order, count_windows
from shardkit.batches.rows import DatasetRows, RowOptions
from shardkit.batches.spans import ShardRows, SpanOrder
from shardkit.dataset.journal import JOURNAL_FILE, Journal, Resume, parse_journal
from shardkit.dataset.journal_segments import SentSegments, joined_segments
from shardkit.dataset.known_files import SeenShards
from shardkit.dataset.manifest import MANIFEST_NAME, Manifest, SourceFile, SourceInfo
from shardkit.dataset.shards import WrittenShard
from shardkit.sources.shared_memory import SharedMemory
from shardkit.sources.source import Chunk, InputFile, ReadOptions, Source
from shardkit.tokenization.ordered_writer import OrderedWriter
from shardkit.tokenization.run_spec import RunSpec
from shardkit.tokenization.runner import Destination, OpenShard, Runner
from shardkit.tokenization.tokenizer import Tokenizer
from shardkit.tokenization.worker import EncodedChunk, Job

SEQ_LEN = 2048
_DTYPE = np.dtype("<u2")
_COMMIT_SHARDS = 96
_CHUNK_TOKENS, _CHUNKS_A_FILE, _DOCUMENT_TOKENS = 4_700_000, 64, 1_000
_UNITS = {"B": 10**9, "T": 10**12}
_SYSTEM_CALLS = {
    "opens": {"open", "openat", "openat2"},
    "stats": {"stat", "lstat", "fstat", "newfstatat", "statx"},
    "listings": {"getdents", "getdents64"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much is simulated: a stream of so many tokens, in shards of `tokens_per_shard`."""

    tokens: int
    tokens_per_shard: int = 100_000_000
    chunk_tokens: int = _CHUNK_TOKENS

    @property
    def chunks(self) -> int:
        """How many chunks the source has: enough for the stream, which a limit ends in one of the last."""
        return self.tokens // self.chunk_tokens + 2

    @property
    def files(self) -> int:
        """How many files the source has."""
        return -(-self.chunks // _CHUNKS_A_FILE)

    def spec(self) -> RunSpec:
        """The run that would make it."""
        size = 5 * self.chunk_tokens * _CHUNKS_A_FILE
        names = [f"data/CC-MAIN-2024-10/train-{number:05d}.parquet" for number in range(self.files)]
        files = tuple(InputFile(path=name, url=name, bytes=size, format="parquet", version="v" * 40) for name in names)
        return RunSpec(
            source=Source(info=SourceInfo(id="simulated"), files=files, options=ReadOptions()),
            tokenizer=Tokenizer("bytes"),
            prefix="simulated",
            tokens_per_shard=self.tokens_per_shard,
            val_shards=1,
            max_docs=None,
            max_tokens=self.tokens,
            transform=None,
            filter=None,
            chunk_bytes=8 << 20,
        )


class CountingRunner(Runner):
    """A runner that has no tokens: what is to be written is counted, and a shard is a header and a hole."""

    reads_ahead = False
    shared: SharedMemory | None = None
    most_finishing = 1
    workers = 1
    process_ids = ()

    def __enter__(self) -> CountingRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def send_to(self, destination: Destination) -> bool:  # noqa: ARG002
        """Nothing is sent."""
        return False

    def run(self, job: Job, chunks: Iterator[Chunk], *, over_network: bool = False) -> Iterator[EncodedChunk]:
        """Not called: `pieces` has the counts."""
        raise NotImplementedError

    def change_job(self, job: Job) -> None:
        """Nothing is encoded."""

    def keep(self, piece: EncodedChunk, ranges: NDArray[np.int64]) -> None:
        """Not called: no document is a duplicate."""
        raise NotImplementedError

    def write(self, piece: EncodedChunk, begin: int, end: int, shard: OpenShard) -> None:
        """Give them their place."""
        if not 0 <= begin < end <= piece.count:
            raise ValueError(f"tokens {begin} to {end} of a piece of {piece.count}")
        shard.append(end - begin)

    def finish(self, shard: OpenShard) -> None:
        """Nothing is under way."""

    def is_completed(self, shard: OpenShard) -> bool:
        """It is, once `finish` was called."""
        return shard.room >= 0

    def wait(self, shard: OpenShard) -> WrittenShard:
        """Make the file."""
        size = len(shard.header) + shard.tokens * shard.dtype.itemsize
        with open(shard.temp, "r+b") as file:
            file.write(shard.header)
            file.truncate(size)
        return WrittenShard(tokens=shard.tokens, bytes=size, sha256=_hash_of_hole(shard.header, size))


@lru_cache(maxsize=4)
def _hash_of_hole(header: bytes, size: int) -> str:
    """The SHA-256 of a file of `size` bytes with that header and zeros."""
    digest, left, block = sha256(header), size - len(header), bytes(1 << 20)
    for _ in range(left >> 20):
        digest.update(block)
    digest.update(block[: left & ((1 << 20) - 1)])
    return digest.hexdigest()


def pieces(scale: Scale, spec: RunSpec, resume: Resume) -> Iterator[EncodedChunk]:
    """What workers say of the chunks from `resume` on: counts, and where documents begin."""
    random = np.random.default_rng(0)
    counts = random.integers(scale.chunk_tokens, scale.chunk_tokens + scale.chunk_tokens // 50, scale.chunks).tolist()
    begins = np.arange(0, 2 * scale.chunk_tokens, _DOCUMENT_TOKENS)
    for number in range(resume.file * _CHUNKS_A_FILE + resume.start, len(counts)):
        file, start = divmod(number, _CHUNKS_A_FILE)
        documents = -(-counts[number] // _DOCUMENT_TOKENS)
        yield EncodedChunk(
            chunk=Chunk(file=file, start=start, stop=start + 1, weight=1, input=spec.source.files[file]),
            count=counts[number],
            eot_positions=begins[:documents],
            read_at=1.0,
            rows=documents,
        )


def sequence(scale: Scale, folder: Path) -> Manifest:
    """Put all chunks into shards, from where the journal in `folder` says; the manifest of the whole."""
    spec = scale.spec()
    journal = Journal.open(folder, spec.identity())
    with OrderedWriter(spec, SeenShards(folder), journal, CountingRunner()) as writer:
        for piece in pieces(scale, spec, journal.resume):
            writer.append_chunk(piece)
            if writer.full:
                break
        files = writer.finish()
    return spec.manifest(journal.shards, files)


# The steps: each is given the folder that the ones before it left, and returns what it counted, in bytes.


def write_journal(scale: Scale, folder: Path) -> dict[str, int]:
    """Put all chunks into shards, each noted in the journal as it is finished."""
    sequence(scale, folder)
    return {"bytes": (folder / JOURNAL_FILE).stat().st_size}


def resume_at_90_percent(scale: Scale, folder: Path) -> dict[str, int]:
    """Open the journal of a run that was killed at 90 % of its shards."""
    lines = (folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    (folder / "killed" / JOURNAL_FILE).parent.mkdir(parents=True, exist_ok=True)
    (folder / "killed" / JOURNAL_FILE).write_bytes(b"".join(lines[: 1 + (len(lines) - 1) * 9 // 10]))
    del lines
    journal = Journal.open(folder / "killed", scale.spec().identity())
    return {"bytes": journal.path.stat().st_size, "shards": len(journal.shards)}


def push_journal(_scale: Scale, folder: Path) -> dict[str, int]:
    """Send the journal in its segments, with commits of 96 shards, and put it together again on another machine."""
    lines = (folder / JOURNAL_FILE).read_bytes().splitlines(keepends=True)
    segments, remote, sent = SentSegments(lines), dict[str, bytes](), 0
    for end in [*range(_COMMIT_SHARDS, len(lines), _COMMIT_SHARDS), len(lines)]:
        changed = segments.up_to(end)
        sent += sum(map(len, changed.values()))
        remote |= changed
    there = parse_journal(joined_segments(remote), where="remote")
    return {"bytes": sent, "files": len(remote), "shards": len(there.shards)}


def write_manifest(scale: Scale, folder: Path) -> dict[str, int]:
    """The manifest of what the journal names, written."""
    spec = scale.spec()
    journal = Journal.open(folder, spec.identity())
    files = [
        journal.resume.files.get(number, SourceFile(path=f.path, bytes=f.bytes))
        for number, f in enumerate(spec.source.files)
    ]
    manifest = spec.manifest(journal.shards, tuple(files))
    return {"bytes": manifest.save(folder).stat().st_size}


def load_manifest(_scale: Scale, folder: Path) -> dict[str, int]:
    """The manifest, read and checked."""
    return {"bytes": (folder / MANIFEST_NAME).stat().st_size, "shards": len(Manifest.load(folder).shards)}


def shuffle_rows(scale: Scale, _folder: Path) -> dict[str, int]:
    """A rank of 1,024 asks for the rows of its next 1,000 batches of 16, from 90 % of the epoch on, or what comes of
    them in a twentieth of it: of the whole epoch's shuffle, and of that by spans."""
    windows = count_windows(scale.tokens, SEQ_LEN)
    cut = Cut(batch_size=16, world_size=1024)
    steps = max(1, min(1000, windows // cut.global_batch // 20))
    positions = cut.positions(windows * 9 // 10, steps=steps, rank=777)
    Order(n_windows=windows, seed=0, shuffle=True).windows(positions)
    order, _ = span_order(scale)
    order.windows(positions)
    order.seams(order.n_spans * 9 // 10)
    return {"shards": scale.tokens // scale.tokens_per_shard}


def span_order(scale: Scale) -> tuple[SpanOrder, ShardRows]:
    """The order of a loader that streams, by spans of four shards."""
    rows = ShardRows([scale.tokens_per_shard] * (scale.tokens // scale.tokens_per_shard), SEQ_LEN)
    return SpanOrder(rows, span=4, seed=0, shuffle=True), rows


def start_rank(_scale: Scale, folder: Path) -> dict[str, int]:
    """What a rank does before its first batch: open the dataset, check it, read 16 rows from all over it."""
    rows = DatasetRows(folder, RowOptions(split="train", seq_len=SEQ_LEN, shuffle=True, seed=0))
    out = np.empty(SEQ_LEN + 1, _DTYPE)
    for row in rows.order.windows(np.arange(16)).tolist():
        rows.read(row, 0, out)
    return {"bytes": (folder / MANIFEST_NAME).stat().st_size + 16 * out.nbytes}


def do_nothing(_scale: Scale, _folder: Path) -> dict[str, int]:
    """Python and the imports."""
    return {}


STEPS = (write_journal, resume_at_90_percent, push_journal, write_manifest, load_manifest, shuffle_rows, start_rank)
_NAMED = {step.__name__: step for step in (*STEPS, do_nothing)}


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _measured(name: str, scale: Scale, folder: Path) -> dict[str, float]:
    """One step, in this process."""
    before, started = _peak(), time.process_time()
    counted = _NAMED[name](scale, folder)
    return {**counted, "seconds": time.process_time() - started, "memory": _peak() - before}


def _child(name: str, tokens: int, folder: Path, *tracing: str) -> dict[str, float]:
    command = [*tracing, sys.executable, "-m", "benchmarks.simulate_scale", "--step", name, str(tokens)]
    done = subprocess.run([*command, "--folder", folder], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _system_calls(name: str, tokens: int, folder: Path) -> dict[str, int]:
    """How many calls of each kind a step makes, with Python's own."""
    log = folder / "calls.txt"
    _child(name, tokens, folder, "strace", "-f", "-qq", "-c", "-o", str(log))
    table = [line.split() for line in log.read_text().splitlines()]
    counts = {row[-1]: int(row[3]) for row in table if len(row) >= 5 and row[3].isdigit()}
    log.unlink()
    return {kind: sum(counts.get(call, 0) for call in calls) for kind, calls in _SYSTEM_CALLS.items()}


def simulate(tokens: int, folder: Path) -> dict[str, str]:
    """A cell for each step, by its name."""
    cells = {}
    for step in STEPS:
        found = _child(step.__name__, tokens, folder)
        cell = f"{found['seconds']:.2f} s, {found['memory'] / 1e6:.0f} MB"
        cells[step.__name__] = cell + (f", {found['bytes'] / 1e6:.2f} MB" if "bytes" in found else "")
    if shutil.which("strace"):
        calls, without = (_system_calls(name, tokens, folder) for name in ("start_rank", "do_nothing"))
        cells["its calls"] = ", ".join(f"{calls[kind] - without[kind]:,} {kind}" for kind in calls)
    return cells


def main() -> None:
    """Parse the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["10B", "100B", "1.4T", "15T"], help="tokens, as 100B or 1.4T")
    parser.add_argument("--folder", type=Path, default=None, help="where files are made (a temporary folder)")
    parser.add_argument("--step", nargs=2, metavar=("NAME", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        name, tokens = arguments.step
        print(json.dumps(_measured(name, Scale(tokens=int(tokens)), arguments.folder)))
        return
    columns = []
    for size in arguments.sizes:
        tokens = int(float(re.sub("[BT]$", "", size)) * _UNITS[size[-1]])
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            columns.append(simulate(tokens, Path(folder)))
    print("| step: processor seconds, memory, files |", " | ".join(arguments.sizes), "|")
    print("|---" * (len(columns) + 1) + "|")
    for step in columns[0]:
        print(f"| {step.replace('_', ' ')} |", " | ".join(column[step] for column in columns), "|")


if __name__ == "__main__":
    main()
