"""A Hugging Face Hub on loopback for the real `huggingface_hub` client: state on disk, faults on demand, a full log.

It owns what the client (2.4.0) asks for: whoami; dataset and model repos, private and gated;
info, tree, paths-info, refs, commits; preupload, LFS upload (basic and multipart), NDJSON commits; resolve with ranges.
LFS content moves through the origin `localhost`, everything else through `127.0.0.1`; a token that arrives there
is in `leaked_tokens`. Repos are in `hub_store.py`, buckets in `hub_buckets.py`, the Xet store in `hub_xet.py`, faults,
log, start and stop in `hub_wire.py`, latency and rates in `hub_link.py`, orders from another process in
`hub_control.py`. What lies in the folder `files` of its root is served too, at `/_files/` of the
origin `localhost`, as any web server does it.

It leaves out: pull requests, spaces, discussions, squashing, moving a repo, `.gitignore` and `.gitattributes`
rules, YAML checks, gzip, fsync. `limits` has limits of requests: see `hub_limits.py`.

    with HubServer() as hub:                                # or: python tests/support/hub_server.py --port 0 --root DIR
        hub.fault("status", "PUT", "/_lfs/", code=503, times=2)
        HfApi(endpoint=hub.endpoint, token="hf_write").create_repo("alice/tokens", repo_type="dataset")
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from hub_buckets import Bucket, BucketHandler
from hub_limits import HubLimits
from hub_link import Link
from hub_store import Commit, Entry, HubError, Repo, blocks_of
from hub_wire import Fault, FaultyServer, HttpError, Json, Request, parse_json
from hub_xet import XetStore

__all__ = ["Account", "Commit", "Entry", "Fault", "HubServer", "Link", "Repo", "Request"]

LFS_SUFFIXES = (".npy", ".npz", ".bin", ".parquet", ".arrow", ".safetensors", ".pt", ".gz", ".zst", ".zip", ".tar")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class Account:
    """Who a token stands for. It sees and owns the repos of its name and `orgs`; `role` is write or read."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


TOKENS = {"hf_write": Account("alice"), "hf_read": Account("alice", "read"), "hf_other": Account("bob")}

Route = Callable[..., None]
ROUTES: list[tuple[list[str], re.Pattern[str], str, Route]] = []
API = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
WEB = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+?)"
OBJECT = r"(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})"
REV = r"(?P<revision>[^/]+)"


def route(methods: str, pattern: str, access: str) -> Callable[[Route], Route]:
    """`access`: open, read, file (gates hold), write, signed (the URL is the permission) or cdn (so, other origin)."""

    def register(handler: Route) -> Route:
        ROUTES.append((methods.split("|"), re.compile(pattern), access, handler))
        return handler

    return register


class HubHandler(BucketHandler):
    site: HubServer

    def dispatch(self, path: str) -> None:
        if self.site.limits is not None and not self.second_origin:
            self.site.limits.check(path, self.headers.get("Authorization", ""))
        if self.dispatch_xet(path) or self.dispatch_bucket(path):
            return None
        for methods, pattern, access, handler in ROUTES:
            match = pattern.fullmatch(path)
            if match and self.command in methods and (access == "cdn") == self.second_origin:
                groups: dict[str, Any] = {k: unquote(v) for k, v in match.groupdict().items() if v is not None}
                if "repo" in groups:
                    groups["repo"] = self.find_repo(groups.pop("kind", "models"), groups["repo"], access)
                return handler(self, **groups)
        raise HubError(404, "", f"Not served here: {self.command} {path}")

    # -- who may do what -----------------------------------------------------------------------------------------

    def account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.site.tokens:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return self.site.tokens.get(token)

    def writer(self, namespace: str | None) -> Account:
        """The account, if it may write in this namespace (None: its own)."""
        account = self.account()
        if account is None:  # over https the client takes any 401 for a missing repo; over http it needs the code
            raise HubError(401, "RepoNotFound", "Invalid username or password.")
        if account.role != "write" or namespace not in (None, account.name, *account.orgs):
            raise HubError(403, "", f"You don't have the rights to write as {namespace or account.name}")
        return account

    def find_repo(self, kind: str, repo_id: str, access: str) -> Repo:
        repo, namespace = self.site.repos.get((kind, repo_id)), repo_id.split("/")[0]
        if access in ("cdn", "signed"):
            if repo is None:
                raise HubError(403, "", "AccessDenied")
            return repo
        account = self.account()
        member = account is not None and namespace in (account.name, *account.orgs)
        if repo is None or (repo.private and not member):
            message = "Repository not found" if account else "Invalid username or password."
            raise HubError(404 if account else 401, "RepoNotFound", message)
        if access == "file" and repo.gated and not member:
            message = f"Access to {kind[:-1]} {repo_id} is restricted. Please log in and ask for access."
            raise HubError(403 if account else 401, "GatedRepo", message)
        if access == "write":
            self.writer(namespace)
        return repo

    # -- accounts and repos --------------------------------------------------------------------------------------

    @route("GET", "/api/whoami-v2", "open")
    def whoami(self) -> None:
        account = self.account()
        if account is None:
            raise HubError(401, "", "Invalid username or password.")
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs]
        self.answer(200, {"type": "user", "id": account.name, "name": account.name, "orgs": orgs, "auth": auth})

    def named_repo(self) -> tuple[str, str, Json]:
        """Kind and id of the repo that the body names, and the body."""
        wish = self.json()
        namespace = wish.get("organization") or self.writer(wish.get("organization")).name
        return f"{wish.get('type') or 'model'}s", f"{namespace}/{wish['name']}", wish

    @route("POST", "/api/repos/create", "open")
    def create(self) -> None:
        kind, repo_id, wish = self.named_repo()
        self.writer(repo_id.split("/")[0])
        with self.site.lock:
            if old := self.site.repos.get((kind, repo_id)):
                url = f"{self.site.endpoint}/{old.path}"
                raise HubError(409, "", f"You already created this {kind[:-1]} repo", url=url)
            repo = self.site.create_repo(repo_id, kind[:-1], private=wish.get("visibility") == "private")
        self.answer(200, {"url": f"{self.site.endpoint}/{repo.path}", "name": repo.id, "id": repo.id})

    @route("DELETE", "/api/repos/delete", "open")
    def delete(self) -> None:
        kind, repo_id, _ = self.named_repo()
        repo = self.find_repo(kind, repo_id, "write")
        with self.site.lock:
            del self.site.repos[kind, repo_id]
            shutil.rmtree(repo.folder)
        self.answer(200, {})

    @route("PUT", f"{API}/settings", "write")
    def settings(self, repo: Repo) -> None:
        wish = self.json()
        with self.site.lock:
            repo.gated = bool(wish.get("gated", repo.gated))
            repo.private = wish["visibility"] == "private" if "visibility" in wish else repo.private
            repo.save()
        self.answer(200, {"gated": repo.gated, "private": repo.private})

    @route("GET", f"{API}/auth-check", "file")
    @route("GET", f"{API}/auth-check/write", "write")
    def auth_check(self, repo: Repo) -> None:
        self.answer(200, {})

    @route("POST", "/api/validate-yaml", "open")
    def validate_yaml(self) -> None:
        missing = {"message": "empty or missing yaml metadata in repo card"}
        found = str(self.json()["content"]).startswith("---\n")
        self.answer(200, {"errors": [], "warnings": [] if found else [missing]})

    # -- reading a revision --------------------------------------------------------------------------------------

    @route("GET", API, "read")
    @route("GET", f"{API}/revision/{REV}", "read")
    def info(self, repo: Repo, revision: str = "main") -> None:
        head = repo.resolve(revision)
        siblings: list[Json] = [{"rfilename": path} for path in head.files]
        for item in siblings if "blobs" in self.query else []:
            node = repo.node(head, item["rfilename"])
            lfs = {"sha256": node["lfs"].pop("oid"), **node["lfs"]} if "lfs" in node else None
            item |= {"size": node["size"], "blobId": node["oid"], "lfs": lfs}
        info = {"author": repo.id.split("/")[0], "sha": head.oid, "private": repo.private, "disabled": False}
        info |= {"gated": "auto" if repo.gated else False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        info |= {"createdAt": repo.history(revision)[-1].date, "lastModified": head.date}
        wanted = self.query.get("expand", list(info))
        self.answer(200, {"_id": repo.id, "id": repo.id} | {name: info[name] for name in wanted if name in info})

    def answer_page(self, items: list[Json], size: int) -> None:
        start = int(self.query.pop("cursor", ["0"])[0])
        more = urlencode({**self.query, "cursor": start + size}, doseq=True)
        link = {"Link": f'<{self.site.endpoint}{urlsplit(self.path).path}?{more}>; rel="next"'}
        self.answer(200, items[start : start + size], link if start + size < len(items) else {})

    @route("GET", f"{API}/tree/{REV}(?:/(?P<path>.+))?", "read")
    def tree(self, repo: Repo, revision: str, path: str = "") -> None:
        commit, expand = repo.resolve(revision), self.query.get("expand") == ["true"]
        prefix = f"{path.strip('/')}/" if path.strip("/") else ""
        names = [name.removeprefix(prefix).split("/") for name in commit.files if name.startswith(prefix)]
        if prefix and not names:
            raise HubError(404, "EntryNotFound", f'{path} does not exist on "{revision}"')
        deep = self.query.get("recursive") == ["true"]
        found = {"/".join(parts[:depth]) for parts in names for depth in range(1, len(parts) + 1 if deep else 2)}
        nodes = [self.node(repo, commit, prefix + name, expand) for name in sorted(found)]
        self.answer_page(nodes, self.site.expand_page_size if expand else self.site.page_size)

    @route("POST", f"{API}/paths-info/{REV}", "read")
    def paths_info(self, repo: Repo, revision: str) -> None:
        text, commit = b"".join(self.body), repo.resolve(revision)
        wish = parse_json(text) if text.startswith(b"{") else parse_qs(text.decode())
        expand = wish.get("expand") in (True, ["true"])
        there = [p for p in wish["paths"] if p in commit.files or any(f.startswith(f"{p}/") for f in commit.files)]
        self.answer(200, [self.node(repo, commit, path, expand) for path in there])

    def node(self, repo: Repo, commit: Commit, path: str, expand: bool) -> Json:
        """A file or folder as a listing has it, with the Xet hash of a file that came by Xet."""
        node = repo.node(commit, path, expand)
        stored = self.site.xet.by_sha256.get(node["lfs"]["oid"]) if "lfs" in node else None
        return node | ({} if stored is None else {"xetHash": stored.hash})

    @route("GET", f"{API}/commits/{REV}", "read")
    def commits(self, repo: Repo, revision: str) -> None:
        items = []
        for commit in repo.history(revision):
            item = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            items.append(item | {"authors": [{"user": commit.author}]})
        self.answer_page(items, self.site.page_size)

    @route("GET", f"{API}/refs", "read")
    def refs(self, repo: Repo) -> None:
        answer: dict[str, list[Json]] = {"converts": [], "pullRequests": []}
        for group, folder, refs in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags)):
            answer[group] = [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": oid} for n, oid in refs.items()]
        self.answer(200, answer)

    @route("POST|DELETE", f"{API}/branch/(?P<name>[^/]+)", "write")
    def branch(self, repo: Repo, name: str) -> None:
        start = self.json().get("startingPoint", "main") if self.command == "POST" else ""
        self.change_ref(repo, repo.branches, name, start)

    @route("POST|DELETE", f"{API}/tag/{REV}", "write")
    def tag(self, repo: Repo, revision: str) -> None:
        name = self.json()["tag"] if self.command == "POST" else revision
        self.change_ref(repo, repo.tags, name, revision)

    def change_ref(self, repo: Repo, refs: dict[str, str], name: str, start: str) -> None:
        with self.site.lock:
            if self.command == "POST":
                if name in refs:
                    raise HubError(409, "", f"Reference already exists: {name}")
                refs[name] = repo.resolve(start).oid
            elif refs.pop("" if name == "main" else name, None) is None:
                raise HubError(404, "RevisionNotFound", f"Reference does not exist, or is protected: {name}")
            repo.save()
        self.answer(200, {})

    @route("GET|HEAD", f"{WEB}/resolve/{REV}/(?P<path>.+)", "file")
    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = repo.resolve(revision)
        entry, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
        if entry is None:
            error = HubError(404, "EntryNotFound", "Entry not found")
            self.answer(404, error.body, headers | error.headers)
            return
        headers["ETag"] = f'"{entry.oid}"'
        if not entry.lfs:
            self.answer_file(repo.blob(entry.sha256), headers)
            return
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
        if (stored := self.site.xet.by_sha256.get(entry.sha256)) is not None:
            refresh = f"{self.site.endpoint}/api/{repo.kind}/{repo.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": stored.hash, "Link": f'<{refresh}>; rel="xet-auth"'}
        place = f"/_cdn/{repo.kind}/{repo.id}/{entry.sha256}/{quote(path)}"
        headers["Location"] = f"{self.site.cdn}{place}{self.site.signature()}"
        self.answer(302, b"", headers)

    @route("GET|HEAD", f"/_cdn/{OBJECT}/(?P<path>.+)", "cdn")
    def cdn_file(self, repo: Repo, sha256: str, path: str) -> None:
        if not repo.blob(sha256).exists():
            raise HubError(403, "", "AccessDenied")
        if float(self.query.get("Expires", ["inf"])[0]) <= time.time():
            self.answer_expired()
            return
        shown = f'inline; filename="{quote(Path(path).name)}";'
        self.answer_file(repo.blob(sha256), {"ETag": f'"{sha256}"', "Content-Disposition": shown})

    @route("GET|HEAD", r"/_files/(?P<path>.+)", "cdn")
    def plain_file(self, path: str) -> None:
        place = self.site.root / "files" / path
        if ".." in path.split("/") or not place.is_file():
            raise HttpError(404, f"no such file: {path}")
        state = place.stat()
        self.answer_file(place, {"ETag": f'"{state.st_mtime_ns:x}-{state.st_size:x}"'})

    @route("GET", f"{API}/xet-read-token/{REV}", "file")
    @route("GET", f"{API}/xet-write-token/{REV}", "write")
    def token_for_xet(self, repo: Repo, revision: str) -> None:
        self.xet_token()

    # -- uploads and commits -------------------------------------------------------------------------------------

    @route("POST", f"{API}/preupload/{REV}", "write")
    def preupload(self, repo: Repo, revision: str) -> None:
        files, answers = repo.resolve(revision).files, []
        for item in self.json()["files"]:
            binary = item["size"] > self.site.lfs_threshold or b"\0" in base64.b64decode(item["sample"])
            mode = "lfs" if binary or item["path"].endswith(LFS_SUFFIXES) else "regular"
            answers.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False})
            if old := files.get(item["path"]):
                answers[-1]["oid"] = old.sha256 if old.lfs else old.oid
        self.answer(200, {"files": answers})

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self, repo: Repo) -> None:
        objects: list[Json] = []
        for item in self.json()["objects"]:
            oid, size, step = item["oid"], item["size"], self.site.part_size
            place = f"{repo.kind}/{repo.id}/{oid}"
            upload: Json = {"href": f"{self.site.cdn}/_lfs/{place}"}
            if size > self.site.multipart_threshold:
                with self.site.lock:
                    self.site.uploads[oid] += 1
                place += f"/{self.site.uploads[oid]}"
                parts = {f"{n:05}": f"{self.site.cdn}/_lfs/{place}/{n}" for n in range(1, -(-size // step) + 1)}
                upload["href"] = f"{self.site.endpoint}/api/complete_multipart/{place}"
                upload["header"] = {"chunk_size": str(step), **parts}
            objects.append({"oid": oid, "size": size})
            if not repo.blob(oid).exists():
                verify = {"href": f"{self.site.endpoint}/{repo.path}.git/info/lfs/objects/verify"}
                objects[-1]["actions"] = {"upload": upload, "verify": verify}
        self.answer(200, {"transfer": "basic", "objects": objects})

    @route("PUT", f"/_lfs/{OBJECT}", "cdn")
    def lfs_put(self, repo: Repo, sha256: str) -> None:
        stored = repo.store(self.body, expected=sha256)  # wrong bytes: 200, as from S3, but not kept; `verify` tells
        self.answer(200, b"", {"ETag": f'"{stored}"'})

    @route("PUT", rf"/_lfs/{OBJECT}/(?P<upload>\d+)/(?P<part>\d+)", "cdn")
    def lfs_part(self, repo: Repo, sha256: str, upload: str, part: str) -> None:
        stored = repo.store(self.body, place=repo.part(sha256, upload, part))
        self.answer(200, b"", {"ETag": f'"{stored}"'})

    @route("POST", rf"/api/complete_multipart/{OBJECT}/(?P<upload>\d+)", "signed")
    def lfs_complete(self, repo: Repo, sha256: str, upload: str) -> None:
        paths = [repo.part(sha256, upload, part["partNumber"]) for part in self.json()["parts"]]
        if not all(path.exists() for path in paths):
            raise HubError(400, "", "One or more of the specified parts could not be found.")
        repo.store(blocks_of(*paths), expected=sha256)
        for path in paths:
            path.unlink()
        self.answer(200, {"success": True})

    @route("POST", rf"{WEB}\.git/info/lfs/objects/verify", "write")
    def lfs_verify(self, repo: Repo) -> None:
        wish = self.json()
        blob = repo.blob(wish["oid"])
        if not blob.exists() or blob.stat().st_size != wish["size"]:
            raise HubError(422, "", f"No object with this sha256 and size arrived: {wish['oid']}, {wish['size']}")
        self.answer(200, {"success": True})

    @route("GET", f"{API}/lfs-files", "write")
    def lfs_files(self, repo: Repo) -> None:
        stored = {entry.sha256: name for c in repo.commits.values() for name, entry in c.files.items() if entry.lfs}
        items = [
            {"fileOid": oid, "oid": oid, "filename": name, "size": size, "pushedAt": "2026-01-01T00:00:00.000Z"}
            for oid, name in sorted(stored.items())
            if repo.blob(oid).exists() and (size := repo.blob(oid).stat().st_size) >= 0
        ]
        self.answer_page(items, self.site.page_size)

    @route("POST", f"{API}/lfs-files/batch", "write")
    def delete_lfs_files(self, repo: Repo) -> None:
        wish = self.json()["deletions"]
        if wish["rewriteHistory"]:
            raise HubError(400, "", "Not served here: rewriting history")
        for oid in wish["sha"]:
            self.site.xet.forget(oid)
            repo.blob(oid).unlink(missing_ok=True)
        self.answer(200, {"success": True})

    @route("POST", f"{API}/commit/{REV}", "write")
    def commit(self, repo: Repo, revision: str) -> None:
        header: Json = {}
        changes: list[tuple[str, str, Entry | None]] = []
        rest = b""
        for block in itertools.chain(self.body, [b"\n"]):
            *lines, rest = (rest + block).split(b"\n")
            for item in (parse_json(line) for line in lines if line.strip()):
                if item["key"] == "header":
                    header = item["value"]
                else:
                    changes.append(self.change(repo, item["key"], item["value"]))
        with self.site.lock:
            head = repo.resolve(revision)
            if revision not in repo.branches or "create_pr" in self.query:
                raise HubError(400, "", f"Not a branch, or a pull request, which this server has not: {revision}")
            if not head.oid.startswith(header.get("parentCommit") or ""):
                raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
            files = dict(head.files)
            for key, path, entry in changes:
                if entry is not None:
                    files[path] = entry
                    continue
                folder = f"{path.rstrip('/')}/" if key == "deletedFolder" else None
                gone = [name for name in files if name == path or (folder and name.startswith(folder))]
                if not gone:
                    raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                for name in gone:
                    del files[name]
            author = self.writer(None).name
            new = repo.commit(revision, header.get("summary", ""), header.get("description", ""), author, files)
        url = f"{self.site.endpoint}/{repo.path}/commit/{new.oid}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": new.oid, "pullRequestUrl": None})

    def change(self, repo: Repo, key: str, value: Json) -> tuple[str, str, Entry | None]:
        """One line of a commit: kind, path, and the new entry (None: delete)."""
        entry: Entry | None = None
        if key == "file":
            entry = repo.regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if stored := self.site.xet.by_sha256.get(value["oid"]):
                repo.adopt(self.site.xet.whole(stored), stored.sha256)
            if not repo.blob(value["oid"]).exists():
                raise HubError(400, "", f"LFS pointer pointed to a file that does not exist: {value['path']}")
            entry = repo.lfs(value["oid"])
        elif key not in ("deletedFile", "deletedFolder"):
            raise HubError(400, "", f"Not served here: commit operation {key}")
        return key, value["path"], entry


class HubServer(FaultyServer):
    """The Hub. A context manager; a second `HubServer(root, port=...)` on the same folder serves the same repos.

    `tokens` maps a token to its `Account`. `page_size` and `expand_page_size` are entries of a listing's page. A file
    is LFS by its suffix, by a zero byte in its first 512, or over `lfs_threshold` bytes; an object over
    `multipart_threshold` bytes is uploaded in parts of `part_size`. Without `root` the state ends with the context.
    `url_seconds` is how long the signed URLs are good that `resolve` sends clients on to (None: for ever, unsigned).
    """

    handler = HubHandler

    def __init__(
        self,
        root: Path | None = None,
        *,
        port: int = 0,
        tokens: Mapping[str, Account] = TOKENS,
        page_size: int = 1000,
        expand_page_size: int = 50,
        lfs_threshold: int = 10_000_000,
        multipart_threshold: int = 5_000_000_000,
        part_size: int = 16_000_000,
    ) -> None:
        super().__init__(port)
        self.temporary = root is None
        self.root = Path(tempfile.mkdtemp(prefix="hub-server-")) if root is None else Path(root)
        self.tokens = dict(tokens)
        self.page_size, self.expand_page_size = page_size, expand_page_size
        self.lfs_threshold, self.multipart_threshold, self.part_size = lfs_threshold, multipart_threshold, part_size
        self.limits: HubLimits | None = None
        self.uploads: Counter[str] = Counter()
        self.signatures = itertools.count(1)
        self.xet = XetStore(self.root / "xet")
        self.buckets: dict[str, Bucket] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        for path in sorted(self.root.glob("*/*/*/repo.json")):
            kind, namespace, name = path.parent.relative_to(self.root).parts
            self.repos[kind, f"{namespace}/{name}"] = Repo(kind, f"{namespace}/{name}", path.parent)

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self.temporary:
            shutil.rmtree(self.root, ignore_errors=True)

    def signature(self) -> str:
        """The query that makes a URL good for `url_seconds`; no two are the same."""
        if self.url_seconds is None and not any(fault.action == "expire" for fault in self.faults):
            return ""
        until = time.time() + (3600 if self.url_seconds is None else self.url_seconds)
        return f"?Expires={until:.3f}&Signature={next(self.signatures):016x}&Key-Pair-Id=TEST"

    # -- state, without HTTP -------------------------------------------------------------------------------------

    def repo(self, repo_id: str, repo_type: str = "dataset") -> Repo:
        return self.repos[f"{repo_type}s", repo_id]

    def create_repo(
        self, repo_id: str, repo_type: str = "dataset", *, private: bool = False, gated: bool = False
    ) -> Repo:
        """A new repo with its initial commit, which holds a `.gitattributes` as on the Hub."""
        with self.lock:
            repo = Repo(f"{repo_type}s", repo_id, self.root / f"{repo_type}s" / repo_id)
            repo.private, repo.gated = private, gated
            repo.commit("main", "initial commit", "", "system", {".gitattributes": repo.regular(GITATTRIBUTES)})
            self.repos[repo.kind, repo_id] = repo
            return repo

    def seed_repo(self, repo_id: str, files: Mapping[str, bytes | Path], repo_type: str = "dataset") -> Commit:
        """Commit `files` to main, and create the repo if need be."""
        with self.lock:
            repo = self.repos.get((f"{repo_type}s", repo_id)) or self.create_repo(repo_id, repo_type)
            entries = dict(repo.resolve("main").files)
            for path, content in files.items():
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                if size and (path.endswith(LFS_SUFFIXES) or size > self.lfs_threshold):
                    blocks = [content] if isinstance(content, bytes) else blocks_of(content)
                    entries[path] = repo.lfs(repo.store(blocks))
                else:
                    entries[path] = repo.regular(content if isinstance(content, bytes) else content.read_bytes())
            return repo.commit("main", "seed", "", "system", entries)

    def create_bucket(self, bucket_id: str, *, private: bool = False) -> Bucket:
        with self.lock:
            self.buckets[bucket_id] = Bucket(bucket_id, private)
            return self.buckets[bucket_id]

    def bucket_bytes(self, bucket_id: str, path: str) -> bytes:
        return b"".join(self.xet.content(self.xet.files[self.buckets[bucket_id].files[path].xet_hash]))

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "dataset") -> dict[str, Entry]:
        return dict(self.repo(repo_id, repo_type).resolve(revision).files)

    def file_bytes(self, repo_id: str, path: str, revision: str = "main", repo_type: str = "dataset") -> bytes:
        repo = self.repo(repo_id, repo_type)
        return repo.blob(repo.resolve(revision).files[path].sha256).read_bytes()

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "dataset") -> list[Commit]:
        """Newest first; the last one is the repo's initial commit."""
        return self.repo(repo_id, repo_type).history(revision)


def point_client(monkeypatch: Any, endpoint: str) -> None:
    """This process's clients ask `endpoint`, whatever `HF_ENDPOINT` was when they were imported."""
    import datasets
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    HfFileSystem.clear_instance_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a local Hugging Face Hub and print its URL.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before each answer")
    parser.add_argument("--api-latency-ms", type=float, help="before those of resolve and the API, if another")
    parser.add_argument("--connection-mb", type=float, help="MB a second of each connection that downloads")
    parser.add_argument("--total-mb", type=float, help="MB a second of all of them together")
    parser.add_argument("--url-seconds", type=float, help="how long a signed URL is good")
    parser.add_argument("--lfs-threshold", type=int, default=10_000_000, help="bytes from which any file is LFS")
    options = parser.parse_args()

    def scaled(number: float | None, unit: float) -> float | None:
        return None if number is None else number * unit

    server = HubServer(options.root, port=options.port, lfs_threshold=options.lfs_threshold)
    with server as hub, contextlib.suppress(KeyboardInterrupt):
        hub.link = Link(
            options.latency_ms / 1e3,
            scaled(options.api_latency_ms, 1e-3),
            scaled(options.connection_mb, 1e6),
            scaled(options.total_mb, 1e6),
        )
        hub.url_seconds = options.url_seconds
        print(hub.endpoint, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
