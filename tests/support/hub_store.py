"""Repos of the test Hub on disk: blobs by sha256, every commit a snapshot, refs. `HubError` names what is missing.

It knows nothing of HTTP beyond the status in `HubError`. A repo's folder holds `repo.json` (settings and refs),
`commits/{oid}.json`, `blobs/{sha256}` and, for what is under way, `tmp/`; a new `Repo` on that folder is the same repo.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from hub_wire import BLOCK, HttpError, Json


class HubError(HttpError):
    """An `HttpError` with the Hub's `X-Error-Code` and `X-Error-Message`."""

    def __init__(self, status: int, code: str, message: str, **extra: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        super().__init__(status, message, headers, **extra)


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `oid` is the sha1 of the git blob, which for an LFS file is its pointer."""

    sha256: str
    size: int
    lfs: bool
    oid: str


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def blocks_of(*paths: Path) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def write_json(path: Path, value: object) -> None:
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    partial.write_text(json.dumps(value))
    partial.replace(path)


class Repo:
    """One repo. Callers hold the server's lock around what changes refs; blobs need none."""

    def __init__(self, kind: str, repo_id: str, folder: Path) -> None:
        self.kind, self.id, self.folder = kind, repo_id, folder
        self.private, self.gated = False, False
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        for name in ("commits", "blobs", "tmp"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        if (folder / "repo.json").exists():
            saved = json.loads((folder / "repo.json").read_text())
            self.private, self.gated = saved["private"], saved["gated"]
            self.branches, self.tags = saved["branches"], saved["tags"]
            for path in folder.glob("commits/*.json"):
                value = json.loads(path.read_text())
                value["files"] = {name: Entry(**entry) for name, entry in value["files"].items()}
                self.commits[path.stem] = Commit(**value)

    def save(self) -> None:
        refs = {"branches": self.branches, "tags": self.tags}
        write_json(self.folder / "repo.json", {"private": self.private, "gated": self.gated, **refs})

    @property
    def path(self) -> str:
        """The repo's place in web URLs."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    # -- commits and refs ----------------------------------------------------------------------------------------

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a sha (7 digits or more)."""
        name = revision.removeprefix("refs/heads/")
        oid = self.branches.get(name) or self.tags.get(name)
        if oid is None and re.fullmatch("[0-9a-f]{7,40}", name):
            oid = next((oid for oid in self.commits if oid.startswith(name)), None)
        if oid is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[oid]

    def history(self, revision: str) -> list[Commit]:
        """Newest first, down to the initial commit."""
        commits = [self.resolve(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self.commits[parent])
        return commits

    def commit(self, branch: str, title: str, message: str, author: str, files: dict[str, Entry]) -> Commit:
        parent, now = self.branches.get(branch), datetime.now(timezone.utc)
        tree = sorted((path, entry.oid) for path, entry in files.items())
        oid = hashlib.sha1(json.dumps([self.id, parent, title, message, tree]).encode()).hexdigest()
        date = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        commit = self.commits[oid] = Commit(oid, parent, title, message, author, date, files)
        write_json(self.folder / "commits" / f"{oid}.json", asdict(commit))
        self.branches[branch] = oid
        self.save()
        return commit

    def node(self, commit: Commit, path: str, expand: bool = False) -> Json:
        """A file or a folder as `tree` and `paths-info` describe it; KeyError if there is none."""
        entry = commit.files.get(path)
        if entry is None:
            node: Json = {"type": "directory", "oid": git_oid(f"{path} {commit.oid}".encode()), "size": 0, "path": path}
        else:
            node = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
            if entry.lfs:
                node["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 0}
                node["lfs"]["pointerSize"] = len(pointer(entry.sha256, entry.size))
        if expand:
            last = self.last_change(commit, path)
            node["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
            node["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        return node

    def last_change(self, commit: Commit, path: str) -> Commit:
        def below(at: Commit) -> dict[str, Entry]:
            return {name: entry for name, entry in at.files.items() if name == path or name.startswith(f"{path}/")}

        while commit.parent is not None and below(self.commits[commit.parent]) == below(commit):
            commit = self.commits[commit.parent]
        return commit

    # -- content -------------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    def part(self, sha256: str, upload: str, number: str | int) -> Path:
        return self.folder / "tmp" / f"{sha256}.{upload}.{number}"

    def store(self, blocks: Iterable[bytes], expected: str | None = None, place: Path | None = None) -> str:
        """Write a blob (or the file `place`) and return its sha256; keep nothing if that is not the `expected` one."""
        digest, partial = hashlib.sha256(), self.folder / "tmp" / uuid.uuid4().hex
        try:
            with partial.open("wb") as file:
                for block in blocks:
                    digest.update(block)
                    file.write(block)
            if expected in (None, digest.hexdigest()):
                partial.replace(place or self.blob(digest.hexdigest()))
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def adopt(self, path: Path, sha256: str) -> None:
        """Make a file that is known to have this sha256 a blob, without a copy of its bytes."""
        with contextlib.suppress(FileExistsError):
            os.link(path, self.blob(sha256))

    def regular(self, content: bytes) -> Entry:
        return Entry(self.store([content]), len(content), False, git_oid(content))

    def lfs(self, sha256: str) -> Entry:
        """The entry of an object that was uploaded before; FileNotFoundError if it was not."""
        size = self.blob(sha256).stat().st_size
        return Entry(sha256, size, True, git_oid(pointer(sha256, size)))
