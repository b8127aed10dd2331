"""The buckets of the test Hub: files by path over its Xet store, as the real client (2.4) asks for them.

A bucket has no commits and keeps no SHA-256: the last write of a path wins, and there is no write on a condition. A
listing's prefix is compared as text, as on the Hub (`a` finds `ab/x` too). It leaves out: moving a bucket, regions,
resource groups, content types, the feed of changes. The index is in memory, as the Xet store's is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, unquote

from hub_store import HubError
from hub_wire import HttpError, Json
from hub_xet import XetHandler


@dataclass(frozen=True)
class BucketEntry:
    """A file of a bucket."""

    xet_hash: str
    size: int
    mtime: int
    uploaded: str


@dataclass
class Bucket:
    id: str
    private: bool = False
    created: str = field(default_factory=lambda: now())
    files: dict[str, BucketEntry] = field(default_factory=dict)


def printed_time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now() -> str:
    return printed_time(datetime.now(timezone.utc))


class BucketHandler(XetHandler):
    """A connection's part for buckets; `account` and `writer` are the Hub's."""

    def account(self) -> Any:
        raise NotImplementedError

    def writer(self, namespace: str | None) -> Any:
        raise NotImplementedError

    def answer_page(self, items: list[Json], size: int) -> None:
        raise NotImplementedError

    def dispatch_bucket(self, path: str) -> bool:
        """Answer a request that is for a bucket; False if it is not."""
        for method, pattern, access, answer in BUCKET_ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|") and (access == "cdn") == self.second_origin:
                name, *rest = (unquote(group or "") for group in match.groups())
                answer(self, name if access == "none" else self.find_bucket(name, access), *rest)
                return True
        return False

    def find_bucket(self, name: str, access: str) -> Bucket:
        bucket: Bucket | None = self.site.buckets.get(name)
        namespace = name.split("/")[0]
        if access == "cdn":
            if bucket is None:
                raise HubError(403, "", "AccessDenied")
            return bucket
        account = self.account()
        member = account is not None and namespace in (account.name, *account.orgs)
        if bucket is None or (bucket.private and not member):
            raise HubError(404 if account else 401, "RepoNotFound", "Bucket not found")
        if access == "write":
            self.writer(namespace)
        return bucket

    def create_bucket(self, name: str) -> None:
        self.writer(name.split("/")[0])
        private, url = self.json().get("visibility") == "private", f"{self.site.endpoint}/buckets/{name}"
        with self.site.lock:
            if name in self.site.buckets:
                raise HubError(409, "", "You already created this bucket", url=url)
            self.site.create_bucket(name, private=private)
        self.answer(200, {"url": url, "name": name, "id": name})

    def bucket_info(self, bucket: Bucket) -> None:
        sizes = [entry.size for entry in bucket.files.values()]
        info = {"id": bucket.id, "private": bucket.private, "createdAt": bucket.created}
        self.answer(200, {**info, "size": sum(sizes), "totalFiles": len(sizes)})

    def bucket_tree(self, bucket: Bucket, prefix: str = "") -> None:
        names = sorted(name for name in bucket.files if name.startswith(prefix))
        items = [bucket_node(name, bucket.files[name]) for name in names]
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            folder = f"{prefix.rstrip('/')}/" if prefix else ""
            below = {name: name.removeprefix(folder).split("/") for name in names if name.startswith(folder)}
            items = [bucket_node(name, bucket.files[name]) for name, parts in below.items() if len(parts) == 1]
            folders = sorted({folder + parts[0] for parts in below.values() if len(parts) > 1})
            items += [{"type": "directory", "path": name, "uploadedAt": bucket.created} for name in folders]
        self.answer_page(items, self.site.page_size)

    def bucket_paths_info(self, bucket: Bucket) -> None:
        paths = self.json()["paths"]
        self.answer(200, [bucket_node(path, bucket.files[path]) for path in paths if path in bucket.files])

    def bucket_batch(self, bucket: Bucket) -> None:
        lines = [json.loads(line) for line in b"".join(self.body).splitlines() if line.strip()]
        failed: list[Json] = []
        with self.site.lock:
            for line in lines:
                stored = self.site.xet.files.get(line.get("xetHash"))
                if line["type"] == "deleteFile":
                    if bucket.files.pop(line["path"], None) is None:
                        failed.append({"path": line["path"], "error": "File not found"})
                elif line["type"] == "addFile" and stored is not None:
                    bucket.files[line["path"]] = BucketEntry(stored.hash, stored.size, line["mtime"], now())
                else:
                    failed.append({"path": line["path"], "error": f"Xet hash not found, or {line['type']}"})
        answer = {"success": not failed, "processed": len(lines), "succeeded": len(lines) - len(failed)}
        self.answer(422 if len(failed) == len(lines) > 0 else 200, {**answer, "failed": failed})

    def bucket_token(self, _: Bucket) -> None:
        self.xet_token()

    def bucket_resolve(self, bucket: Bucket, path: str) -> None:
        entry = bucket.files.get(path)
        if entry is None:
            raise HubError(404, "EntryNotFound", "Entry not found")
        refresh = f"{self.site.endpoint}/api/buckets/{bucket.id}/xet-read-token"
        headers = {"X-Linked-Size": str(entry.size), "X-Xet-Hash": entry.xet_hash}
        headers |= {"ETag": f'"{entry.xet_hash}"', "Link": f'<{refresh}>; rel="xet-auth"'}
        headers["Location"] = f"{self.site.cdn}/_bucket/{bucket.id}/{entry.xet_hash}/{quote(path)}"
        self.answer(302, b"", headers)

    def bucket_file(self, _: Bucket, xet_hash: str, path: str) -> None:
        file = self.site.xet.files.get(xet_hash)
        if file is None:
            raise HttpError(403, "AccessDenied")
        self.answer_file(self.site.xet.whole(file), {"ETag": f'"{xet_hash}"'})


def bucket_node(path: str, entry: BucketEntry) -> Json:
    times = {
        "mtime": printed_time(datetime.fromtimestamp(entry.mtime / 1000, timezone.utc)),
        "uploadedAt": entry.uploaded,
    }
    return {"type": "file", "path": path, "size": entry.size, "xetHash": entry.xet_hash, **times}


NAME = "([^/]+/[^/]+)"
API = f"/api/buckets/{NAME}"
BUCKET_ROUTES: list[tuple[str, str, str, Callable[..., None]]] = [
    ("POST", API, "none", BucketHandler.create_bucket),
    ("GET", API, "read", BucketHandler.bucket_info),
    ("GET", f"{API}/tree(?:/(.+))?", "read", BucketHandler.bucket_tree),
    ("POST", f"{API}/paths-info", "read", BucketHandler.bucket_paths_info),
    ("POST", f"{API}/batch", "write", BucketHandler.bucket_batch),
    ("GET", f"{API}/xet-read-token", "read", BucketHandler.bucket_token),
    ("GET", f"{API}/xet-write-token", "write", BucketHandler.bucket_token),
    ("GET|HEAD", f"/buckets/{NAME}/resolve/(.+)", "read", BucketHandler.bucket_resolve),
    ("GET|HEAD", f"/_bucket/{NAME}/([0-9a-f]{{64}})/(.+)", "cdn", BucketHandler.bucket_file),
]
