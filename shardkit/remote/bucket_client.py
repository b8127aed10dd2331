"""The files of one bucket on the Hub: listed, read, sent, named and deleted, by `huggingface_hub` and `hf_xet`.

Nothing here is tried again, and errors are the clients' own. The client's `batch_bucket_files` sends and names in one
call; here they are apart, so that many shards that arrived at different times are named in one call.
"""

from __future__ import annotations

import io
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from huggingface_hub import HfApi, hf_raise_for_status
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import http_backoff

from shardkit.errors import UsageError, missing_package
from shardkit.remote.hub_client import Download, while_bytes_come, xet_upload

try:
    from huggingface_hub import BucketFile
    from huggingface_hub.errors import BucketNotFoundError
    from huggingface_hub.file_download import xet_get
    from huggingface_hub.utils._xet import (
        XetFileData,
        XetTokenType,
        xet_connection_info_refresh_url,
    )
except ImportError as error:
    raise UsageError(
        f"hf://buckets/ needs a newer huggingface_hub ({error.name or error}): pip install -U 'huggingface_hub>=2.4'"
    ) from None

_LINES = 1000  # of one batch, and paths of one look: the client's own bound


class BucketClient:
    """One bucket; paths are relative to it. `stop` cuts downloads in progress."""

    def __init__(self, bucket_id: str, stop: threading.Event) -> None:
        self.id = bucket_id
        self._api = HfApi(library_name="shardkit")
        self._stop = stop

    def exists(self) -> bool:
        """Whether there is such a bucket that the token may see."""
        try:
            self._api.bucket_info(self.id)
        except (BucketNotFoundError, RepositoryNotFoundError):
            return False
        return True

    def create(self, *, private: bool) -> None:
        """Make the bucket, if there is none."""
        self._api.create_bucket(self.id, private=private or None, exist_ok=True)

    def is_private(self) -> bool:
        """Whether the bucket, which exists, is private."""
        return self._api.bucket_info(self.id).private

    def files(self, folder: str) -> dict[str, BucketFile]:
        """All files below `folder` ("" for all), by path. A page of the listing, one call, has a thousand."""
        prefix = f"{folder}/" if folder else None  # with its slash: the Hub compares text, and x is in xy
        try:
            items = self._api.list_bucket_tree(self.id, prefix, recursive=True)
            return {item.path: item for item in items if isinstance(item, BucketFile)}
        except EntryNotFoundError:
            return {}

    def look_at(self, paths: Sequence[str]) -> dict[str, BucketFile]:
        """Those of `paths` that are there, as they are now."""
        return {item.path: item for item in self._api.get_bucket_paths_info(self.id, paths)}

    def send(self, sources: Sequence[Path | bytes], *, again: bool = False) -> list[tuple[str, int]]:
        """Send files or bytes to the Xet store; the Xet hash and size of each. The bucket does not show them yet.

        `again` sends also what the client remembers that the store has.
        """
        try:
            from hf_xet import SKIP_SHA256, XetConfig, XetSession
        except ImportError as error:
            raise missing_package(error, "pushing to a bucket") or error from None
        route = self._token_route(XetTokenType.WRITE)
        session = None
        if again:
            fresh = {
                "shard.cache_subdir": f"again-{uuid.uuid4().hex}",
                "deduplication.global_dedup_query_enabled": False,
            }
            session = XetSession(XetConfig().with_config(fresh))
        with xet_upload(route, session) as commit:
            begun = [
                commit.start_upload_bytes(source, sha256=SKIP_SHA256)
                if isinstance(source, bytes)
                else commit.start_upload_file(str(source), sha256=SKIP_SHA256)
                for source in sources
            ]
        arrived = [upload.result().xet_info for upload in begun]
        return [(info.hash, info.file_size) for info in arrived]

    def change(self, named: Mapping[str, str], deleted: Sequence[str] = ()) -> None:
        """Let each path of `named` be the file of that Xet hash, and delete the paths `deleted`: a call a thousand.

        A call is carried out line by line, and may be so in part. Raises `OSError` with the bucket's reason.
        """
        now = int(1000 * time.time())
        lines: list[dict[str, Any]] = [
            *({"type": "addFile", "path": path, "xetHash": xet, "mtime": now} for path, xet in named.items()),
            *({"type": "deleteFile", "path": path} for path in deleted),
        ]
        headers = build_hf_headers(library_name="shardkit") | {"Content-Type": "application/x-ndjson"}
        url = f"{self._api.endpoint}/api/buckets/{self.id}/batch"
        for start in range(0, len(lines), _LINES):
            body = b"".join(json.dumps(line).encode() + b"\n" for line in lines[start : start + _LINES])
            response = http_backoff("POST", url, headers=headers, content=body)
            if response.status_code not in (200, 422):
                hf_raise_for_status(response)
                continue
            failed = {line["path"]: line["error"] for line in response.json().get("failed", [])}
            if gone := [path for path in failed if path not in named]:  # what is to be deleted may be gone
                failed = {path: failed[path] for path in failed if path in named or path in self.look_at(gone)}
            for path, reason in failed.items():
                raise OSError(f"{path}: {reason}")

    def read(self, path: str) -> bytes:
        """The bytes of a small file."""
        target = io.BytesIO()
        self.download(path, target)()
        return target.getvalue()

    def download(self, path: str, target: BinaryIO) -> Download:
        """A download of a file by HTTP, to be called; called again it goes on from where it broke."""
        return Download(self._url(path), target, self._stop)

    def fetch_by_xet(self, file: BucketFile, target: Path) -> None:
        """Download the very content that was listed. Raises `SilentError` if no bytes come."""

        def get(bar: type[Any]) -> None:
            xet_get(
                incomplete_path=target,
                xet_file_data=XetFileData(file.xet_hash, self._token_route(XetTokenType.READ)),
                headers=build_hf_headers(library_name="shardkit"),
                expected_size=file.size,
                tqdm_class=bar,
            )

        while_bytes_come(get, self._stop)

    def _token_route(self, kind: XetTokenType) -> str:
        return xet_connection_info_refresh_url(
            token_type=kind, repo_id=self.id, repo_type="bucket", endpoint=self._api.endpoint
        )

    def _url(self, path: str) -> str:
        return f"{self._api.endpoint}/buckets/{self.id}/resolve/{quote(path)}"
