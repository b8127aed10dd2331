"""The batch ledger: proof of what a run was fed, comparable across world sizes, batch sizes and resumes. No torch.

Each rank appends to a file of its own, and nothing is sent anywhere: a header line, then one line for each global batch
with its position and the hash of the rank's part of it. A line's checksum covers the lines before it too. A window's
hash is BLAKE2b-128 over its tokens, salted with its position. A batch's hash is the sum of its windows' hashes modulo
2**128, so those of all ranks add up to that of the global batch, and running sums are equal at every position where
batches of both runs end. A run that was resumed begins new files, named by the position at which it began.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from shardkit.arguments import user_path
from shardkit.batches.checks import is_count
from shardkit.batches.order import Cut
from shardkit.dataset.checked_lines import CheckedLines
from shardkit.dataset.token_stream import Tokens
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import OutputError, StateError
from shardkit.files import open_file

_MODULUS = 1 << 128
_CUT_KEYS = ("start", "batch_size", "world_size", "rank")
_DIGEST = re.compile("[0-9a-f]{32}")
Entry = tuple[int, int]  # position, hash


@dataclass(frozen=True, kw_only=True, slots=True)
class _FileCut:
    """Which batches the file of a rank has: the `_CUT_KEYS` of its header."""

    start: int
    batch_size: int
    world_size: int
    rank: int


class LedgerWriter:
    """Writes one rank's file of a ledger into `folder`: `hash_rows` when a batch is read, `record` when it is given.

    The two may be called in different threads. A line is whole even after a SIGKILL.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], cut: Cut, rank: int) -> None:
        self.folder = folder
        self._identity = dict(identity)
        self._cut = cut
        self._rank = rank
        self._hashes: dict[int, int] = {}  # by position, of batches that were read and not given yet
        self._file: BinaryIO | None = None
        self._lines = CheckedLines()

    def hash_rows(self, position: int, rows: Tokens) -> None:
        """Hash the rank's part of the global batch at `position`: `rows` is `(batch_size, seq_len + 1)`, as read."""
        first = position + self._rank * self._cut.batch_size
        total = 0
        for number, row in enumerate(rows, first):
            digest = blake2b(row, digest_size=16, salt=number.to_bytes(16, "little")).digest()
            total += int.from_bytes(digest, "little")
        self._hashes[position] = total % _MODULUS

    def record(self, position: int) -> None:
        """Write that the batch at `position`, which was hashed, was given. Raises `OutputError` if it cannot."""
        try:
            if self._file is None:
                self._file = self._open_file(position)
            self._file.write(self._lines.seal([position, f"{self._hashes.pop(position):032x}"]))
        except OSError as error:
            raise OutputError(f"cannot write the ledger in {self.folder}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the file; the next batch recorded begins a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_file(self, start: int) -> BinaryIO:
        cut = (start, self._cut.batch_size, self._cut.world_size, self._rank)
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"from{start:015d}_batch{cut[1]}_rank{self._rank:05d}_of{cut[2]:05d}.jsonl"
        file = open(self.folder / name, "wb", buffering=0)  # noqa: SIM115 (closed by close)
        header = {**self._identity, **dict(zip(_CUT_KEYS, cut, strict=True))}
        self._lines = CheckedLines()
        file.write(self._lines.seal(header))
        return file


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """A ledger merged over ranks and resumes: `running[p]` is the hash (hex) of all windows from `start` up to `p`.

    `p` runs over the ends of the global batches. `identity` says of which dataset and order.
    """

    identity: Mapping[str, Any]
    start: int
    running: Mapping[int, str]

    def first_difference(self, other: Ledger) -> int | None:
        """The first position at which both ledgers have a batch end and differ; None where they never do.

        Raises `StateError` where they cannot be compared: other data or order, another start, no batch end in common.
        """
        if self.identity != other.identity or self.start != other.start:
            raise StateError(
                f"the ledgers are of different data: {dict(self.identity)} from {self.start}, and "
                f"{dict(other.identity)} from {other.start}"
            )
        common = sorted(self.running.keys() & other.running.keys())
        if not common:
            raise StateError(
                f"the ledgers have no batch end in common (they end at {max(self.running)} and {max(other.running)})"
            )
        return next((end for end in common if self.running[end] != other.running[end]), None)


def merge_ledger(folder: str | Path) -> Ledger:
    """Merge the files that all ranks of a run, and of the runs that resumed it, left in `folder`.

    Of each run only the batches that every rank recorded are used. Where a resumed run repeated batches, both must
    agree. Raises `StateError` if files of a rank are missing, of another dataset, damaged, or contradict each other.

    >>> from shardkit import ShardLoader, merge_ledger
    >>> for run, batch_size in (("one", 8), ("two", 4)):  # two runs with batches of 8 and of 4 windows
    ...     with ShardLoader("out", batch_size=batch_size, seq_len=256, ledger=run) as loader:
    ...         while loader.step * batch_size < 24:
    ...             batch = loader.next_batch()
    >>> one, two = merge_ledger("one"), merge_ledger("two")
    >>> list(one.running), list(two.running)
    ([8, 16, 24], [4, 8, 12, 16, 20, 24])
    >>> print(one.first_difference(two))  # they were fed the same windows in the same order
    None
    """
    folder = user_path(folder)
    identity, runs = _read_folder(folder)
    first = min(runs)[0]
    running = {first: 0}
    for (start, batch_size, world_size), ranks in sorted(runs.items()):
        where = f"the run from window {start:,} with batch_size {batch_size} on {world_size} ranks"
        if len(ranks) < world_size:
            missing = ", ".join(map(str, islice((rank for rank in range(world_size) if rank not in ranks), 5)))
            more = " and more" if world_size - len(ranks) > 5 else ""
            raise StateError(f"{folder} lacks rank {missing}{more} of {where}: copy their files too")
        if start not in running:
            raise StateError(f"{where} begins where no batch in {folder} ends: files of an earlier run are missing")
        _add_run(running, start, batch_size * world_size, list(ranks.values()), where)
    del running[first]
    return Ledger(
        identity=identity, start=first, running={end: f"{total:032x}" for end, total in sorted(running.items())}
    )


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[tuple[int, int, int], dict[int, list[Entry]]]]:
    """The identity of the ledger's data, and each run's entries: by start, batch size and world size; then by rank."""
    identity: dict[str, Any] | None = None
    runs: dict[tuple[int, int, int], dict[int, list[Entry]]] = {}
    for path in sorted(folder.glob("from*.jsonl")):
        header, entries = _read_file(path)
        start, batch_size, world_size, rank = (header.pop(key) for key in _CUT_KEYS)
        if identity is not None and header != identity:
            raise StateError(f"{path} is of another dataset or order than the files beside it: one run, one folder")
        identity = header
        runs.setdefault((start, batch_size, world_size), {})[rank] = entries
    if identity is None:
        raise StateError(f"{folder} holds no ledger: give the folder that was given as ledger=")
    return identity, runs


def _add_run(running: dict[int, int], start: int, size: int, ranks: list[list[Entry]], where: str) -> None:
    """Add the batches of one run, `size` windows each, to the running sums by position."""
    total, agreed = running[start], start
    for number, entries in enumerate(zip(*ranks, strict=False)):  # a killed run: the ranks stop at different steps
        position = start + number * size
        if {at for at, _ in entries} != {position}:
            raise StateError(f"{where} has no entry for position {position:,} on every rank: the ledger is damaged")
        total = (total + sum(digest for _, digest in entries)) % _MODULUS
        end = position + size
        if running.get(end, total) != total:
            raise StateError(f"{where} gave other data between {agreed:,} and {end:,} than the run before it")
        if end in running:
            agreed = end
        running[end] = total


def _read_file(path: Path) -> tuple[dict[str, Any], list[Entry]]:
    try:
        with open_file(path) as file:
            lines = file.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):  # cut off by a power loss
            del lines[-1]
        records = CheckedLines().unseal(lines)
        if not records and lines and "check" not in parse_json(lines[0]):  # of the first releases
            records = [parse_json(line) for line in lines]
        if not records or len(records) < len(lines):
            raise ValueError(f"line {len(records) + 1} is not what was written")
        header = read_record(dict[str, Any], records[0])
        cut = read_record(_FileCut, {key: header[key] for key in _CUT_KEYS if key in header})
        if not (cut.batch_size and cut.rank < cut.world_size):
            raise ValueError(f"rank {cut.rank} of {cut.world_size} with batch_size {cut.batch_size}")
        entries = [_entry(record) for record in records[1:]]
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, TypeError) as error:
        raise StateError(f"{path} is not a whole ledger file ({error}): delete it or copy it again") from None
    return header, entries


def _entry(value: Any) -> Entry:
    position, digest = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if not (is_count(position) and isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise ValueError("an entry is no position and hash")
    return position, int(digest, 16)
