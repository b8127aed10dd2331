"""The Xet store of the test Hub: xorbs and shards from the real `hf_xet` (1.8), and what it asks to download them.

A file is stored as terms: runs of chunks of xorbs. What arrived is put together at once and checked against its
SHA-256, as the Hub does, so that a plain GET of a file that came by Xet works too. The index of files is in memory.
A file for a bucket comes without a SHA-256. It leaves out: deduplication between sessions (the client asks and is told
404), expiring tokens.
"""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
    sha256: str  # "" if none was stated
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
        self._places: dict[str, list[tuple[int, int]]] = {}
        self.expires = 4102444800  # when tokens do

    def xorb(self, name: str) -> Path:
        return self.folder / name

    def add_xorb(self, name: str, blocks: Iterable[bytes]) -> bool:
        """Keep a xorb; False if it is here already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.xorb(f"{name}.{uuid.uuid4().hex}")
        with partial.open("wb") as target:
            target.writelines(blocks)
        is_new = not self.xorb(name).exists()
        if is_new:
            partial.replace(self.xorb(name))
        else:
            partial.unlink()
        return is_new

    def add_shard(self, content: bytes) -> None:
        """Take in the files that an uploaded shard describes; `HttpError` if a file is not what its SHA-256 says."""
        for file in parse_shard(content):
            if file.sha256 and (found := sha256_file(self.whole(file))) != file.sha256:
                raise HttpError(400, f"The chunks of {file.hash} have SHA-256 {found}, not {file.sha256}")
            self.files[file.hash] = file
            if file.sha256:
                self.by_sha256[file.sha256] = file

    def forget(self, sha256: str) -> None:
        """Serve that file by Xet no more."""
        if (file := self.by_sha256.pop(sha256, None)) is not None:
            del self.files[file.hash]

    def content(self, file: XetFile) -> Iterator[bytes]:
        """The bytes of a file, chunk by chunk."""
        for term in file.terms:
            places = self.places(term.xorb)[term.first : term.last]
            with self.xorb(term.xorb).open("rb") as xorb:
                xorb.seek(places[0][0])
                for start, end in places:
                    yield unpacked(xorb.read(end - start))

    def places(self, xorb: str) -> list[tuple[int, int]]:
        """Where the chunks of a xorb lie; 404 if there is none."""
        if not self.xorb(xorb).exists():
            raise HttpError(404, f"No such xorb: {xorb}", {"X-Error-Code": "EntryNotFound"})
        if xorb not in self._places:
            with self.xorb(xorb).open("rb") as content:
                self._places[xorb] = chunk_places(content, self.xorb(xorb).stat().st_size)
        return self._places[xorb]

    def whole(self, file: XetFile) -> Path:
        """A file put together, as a plain GET of it is answered."""
        path = self.folder / f"{file.hash}.file"
        if not path.exists():
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            with partial.open("wb") as target:
                target.writelines(self.content(file))
            partial.replace(path)
        return path

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
            places = self.places(term.xorb)
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
        sha256 = printed(content[at : at + 32]) if flags & HAS_SHA256 else ""
        yield XetFile(printed(row[:32]), sha256, tuple(terms))
        at += ROW if sha256 else 0


def chunk_places(xorb: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Where each chunk starts (with its header) and ends; the footer starts with `XETBLOB`."""
    places, at = [], 0
    while at < size:
        xorb.seek(at)
        header = xorb.read(8)
        if header.startswith(b"XETBLOB"):
            break
        end = at + 8 + int.from_bytes(header[1:4], "little")
        places.append((at, end))
        at = end
    return places


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        self.answer(200, {"was_inserted": self.site.xet.add_xorb(name, self.body)})

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
