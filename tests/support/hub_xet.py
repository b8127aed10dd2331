"""The Xet store of the test Hub: xorbs and shards from the real `hf_xet` (1.8), and what it asks to download them.

A file is stored as terms: runs of chunks of xorbs. What arrived is put together at once and checked against its
SHA-256, as the Hub does, so that a plain GET of a file that came by Xet works too. The index of files is in memory.
It leaves out: deduplication between sessions (the client asks and is told 404), expiring tokens, buckets.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from hub_wire import FaultyHandler, HttpError, Json

ROW = 48  # bytes of a row, and of the header, of an uploaded shard
END = b"\xff" * 32  # starts the row that ends the section of files
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Term:
    """Chunks `first` up to `last` (left out) of a xorb: `size` bytes of a file."""

    xorb: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class XetFile:
    hash: str
    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class XetStore:
    """Xorbs in `folder`; files by their Xet hash and by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, XetFile] = {}
        self.by_sha256: dict[str, XetFile] = {}
        self.expires = 4102444800  # when tokens do

    def xorb(self, name: str) -> Path:
        return self.folder / name

    def add_xorb(self, name: str, content: bytes) -> bool:
        """Keep a xorb; False if it is here already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.xorb(name).exists():
            return False
        partial = self.xorb(f"{name}.partial")
        partial.write_bytes(content)
        partial.replace(self.xorb(name))
        return True

    def add_shard(self, content: bytes) -> None:
        """Take in the files that an uploaded shard describes; `HttpError` if a file is not what its SHA-256 says."""
        for file in parse_shard(content):
            digest = hashlib.sha256()
            for block in self.content(file):
                digest.update(block)
            if digest.hexdigest() != file.sha256:
                raise HttpError(400, f"The chunks of {file.hash} have SHA-256 {digest.hexdigest()}, not {file.sha256}")
            self.files[file.hash] = self.by_sha256[file.sha256] = file

    def forget(self, sha256: str) -> None:
        """Serve that file by Xet no more."""
        if (file := self.by_sha256.pop(sha256, None)) is not None:
            del self.files[file.hash]

    def content(self, file: XetFile) -> Iterator[bytes]:
        """The bytes of a file, chunk by chunk."""
        for term in file.terms:
            xorb = self.xorb(term.xorb).read_bytes()
            for start, end in chunk_places(xorb)[term.first : term.last]:
                yield unpacked(xorb[start:end])

    def reconstruction(self, file: XetFile, first: int, last: int, origin: str) -> Json | None:
        """How bytes `first` to `last` (both counted) come together from ranges of xorbs; None past the end."""
        if first >= file.size:
            return None
        chosen, skipped, at = [], 0, 0
        for term in file.terms:
            if at + term.size <= first:
                skipped += term.size
            elif at <= last:
                chosen.append(term)
            at += term.size
        info: dict[str, list[Json]] = {}
        for term in chosen:
            places = chunk_places(self.xorb(term.xorb).read_bytes())
            chunks = {"start": term.first, "end": term.last}
            inside = {"start": places[term.first][0], "end": places[term.last - 1][1] - 1}
            entry = {"range": chunks, "url": f"{origin}/_xorb/{term.xorb}", "url_range": inside}
            if entry not in info.setdefault(term.xorb, []):
                info[term.xorb].append(entry)
        terms = [
            {"hash": term.xorb, "unpacked_length": term.size, "range": {"start": term.first, "end": term.last}}
            for term in chosen
        ]
        return {"offset_into_first_range": first - skipped, "terms": terms, "fetch_info": info}


def printed(raw: bytes) -> str:
    """A Xet hash as text: four little-endian u64."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def parse_shard(content: bytes) -> Iterator[XetFile]:
    at = ROW
    while (row := content[at : at + ROW])[:32] != END:
        if len(row) < ROW:
            raise HttpError(400, "A shard that ends too early")
        flags, count = struct.unpack_from("<II", row, 32)
        terms = []
        for number in range(1, count + 1):
            segment = content[at + number * ROW : at + (number + 1) * ROW]
            _, size, first, last = struct.unpack_from("<IIII", segment, 32)
            terms.append(Term(printed(segment[:32]), size, first, last))
        at += (1 + count + (count if flags & HAS_VERIFICATION else 0)) * ROW
        if not flags & HAS_SHA256:
            raise HttpError(400, "A file without its SHA-256")
        yield XetFile(printed(row[:32]), printed(content[at : at + 32]), tuple(terms))
        at += ROW


def chunk_places(xorb: bytes) -> list[tuple[int, int]]:
    """Where each chunk starts (with its header) and ends; the footer starts with `XETBLOB`."""
    places, at = [], 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        end = at + 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
        places.append((at, end))
        at = end
    return places


def unpacked(chunk: bytes) -> bytes:
    kind, size, stored = chunk[4], int.from_bytes(chunk[5:8], "little"), chunk[8:]
    if kind == 0:
        return stored
    data = pa.decompress(stored, size, codec="lz4", asbytes=True)
    if kind == 1:
        return bytes(data)
    result, at = bytearray(size), 0  # every fourth byte lies together
    for group in range(4):
        count = len(range(group, size, 4))
        result[group::4] = data[at : at + count]
        at += count
    return bytes(result)


class XetHandler(FaultyHandler):
    """The store's side of a connection: uploads and reconstructions at our own origin, xorbs at the other one."""

    site: Any

    def dispatch_xet(self, path: str) -> bool:
        """Answer a request that is the store's; False if it is not."""
        for method, pattern, second_origin, answer in XET_ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command == method and self.second_origin == second_origin:
                answer(self, *match.groups())
                return True
        return False

    def xet_token(self) -> None:
        """The answer to a request for a Xet token."""
        token = {"casUrl": f"{self.site.endpoint}/_cas", "accessToken": "xet-token", "exp": self.site.xet.expires}
        headers = {"X-Xet-Cas-Url": token["casUrl"], "X-Xet-Access-Token": token["accessToken"]}
        self.answer(200, token, {**headers, "X-Xet-Token-Expiration": str(token["exp"])})

    def put_xorb(self, name: str) -> None:
        self.answer(200, {"was_inserted": self.site.xet.add_xorb(name, b"".join(self.body))})

    def put_shard(self) -> None:
        self.site.xet.add_shard(b"".join(self.body))
        self.answer(200, {"result": 1})

    def reconstruction(self, name: str) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        file = self.site.xet.files.get(name)
        if file is None or asked is None:
            raise HttpError(404, f"No such file, or no such range: {name}")
        last = int(asked[2]) if asked[2] else file.size - 1
        plan = self.site.xet.reconstruction(file, int(asked[1]), last, self.site.cdn)
        self.answer(416 if plan is None else 200, plan or {})

    def get_xorb(self, name: str) -> None:
        self.answer_file(self.site.xet.xorb(name), {})


HASH = "([0-9a-f]{64})"
XET_ROUTES: list[tuple[str, str, bool, Callable[..., None]]] = [
    ("POST", f"/_cas/v1/xorbs/default/{HASH}", False, XetHandler.put_xorb),
    ("POST", "/_cas/v1/shards", False, XetHandler.put_shard),
    ("GET", f"/_cas/v1/reconstructions/{HASH}", False, XetHandler.reconstruction),
    ("GET", f"/_xorb/{HASH}", True, XetHandler.get_xorb),
]
