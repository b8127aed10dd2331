"""Proofs: what a comparison of the fast engine with the reference has found, for one vocabulary and engine version.

Those of well-known vocabularies come with the package (`proofs.json`); others are made by `proving.py`, once a machine,
and are then in the folder `proofs` of shardkit's cache. Either way a proof is named by the hash of all that it is
about, so that one of another vocabulary or version is never found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from shardkit.cache_home import cache_folder
from shardkit.dataset.typed_json import parse_json, read_record
from shardkit.errors import OutputError
from shardkit.files import atomic_write, read_small_file
from shardkit.tokenization import battery

SHIPPED = Path(__file__).with_name("proofs.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """The outcome of comparing `strings` texts: `reason` is None where the engine gives the reference's ids for every
    text without the characters of `guard`; else it says why the engine cannot be used. Characters are written as
    ranges of hexadecimal code points, as in `17F 4E00-4E09`."""

    key: str
    vocabulary: str
    engine: str
    reference: str
    strings: int
    guard: str = ""
    reason: str | None = None

    @property
    def guarded(self) -> str:
        """The characters of `guard`."""
        ends = [[int(end, 16) for end in part.split("-")] for part in self.guard.split()]
        return "".join(chr(point) for first, *last in ends for point in range(first, (last or [first])[0] + 1))


def as_ranges(characters: Iterable[str]) -> str:
    """Characters as `Proof.guard` has them.

    >>> as_ranges("cab\u017f")
    '61-63 17F'
    """
    runs = groupby(enumerate(sorted(set(map(ord, characters)))), key=lambda item: item[1] - item[0])
    ends = [(points[0], points[-1]) for points in ([point for _, point in run] for _, run in runs)]
    return " ".join(f"{first:X}" if first == last else f"{first:X}-{last:X}" for first, last in ends)


def proof_key(*vocabulary: str) -> str:
    """The name of the proof of a vocabulary, which is given by the hash of its ranks and its pattern, or by the hash of
    its `canonical_tokenizer_json` and the reference's version, with the engine that is installed and this version's
    battery.

    (What tiktoken's encodings give does not change with its versions.)
    """
    parts = [*vocabulary, f"fastokens {version('fastokens')}", f"battery {battery.VERSION}"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def find_proof(key: str) -> Proof | None:
    """The proof of this name, from the package or this machine's cache."""
    if (shipped := _shipped().get(key)) is not None:
        return shipped
    try:
        found = read_record(Proof, parse_json(read_small_file(_place(key))))
        characters = found.guarded
    except (OSError, ValueError, OverflowError, OutputError, RuntimeError):  # none, no home, or a damaged one
        return None
    holds = found.key == key and found.guard == as_ranges(characters) and min(characters, default="\x80") >= "\x80"
    return found if holds else None


def save_proof(proof: Proof) -> None:
    """Put a proof into this machine's cache, where that can be written."""
    with contextlib.suppress(OSError, OutputError, RuntimeError):  # nobody's home
        path = _place(proof.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(dataclasses.asdict(proof), indent=1) + "\n")


def _place(key: str) -> Path:
    return cache_folder("proofs") / f"{key}.json"


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Proof]:
    proofs = [read_record(Proof, stated) for stated in json.loads(SHIPPED.read_text(encoding="utf-8"))]
    return {proof.key: proof for proof in proofs}
