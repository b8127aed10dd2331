"""A dataset repo on the Hub as a remote, through `huggingface_hub`: pre-upload, then commit; nothing hashed twice."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS, HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from shardkit.errors import HubError
from shardkit.files import sha256_file
from shardkit.manifest import ShardInfo
from shardkit.remotes import RemoteFile
from shardkit.retry import TRIES, call

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete  # what the client's list holds
Result = TypeVar("Result")
STALL_SECONDS = 300.0


class HubRemote:
    """A dataset repo on the Hub (or at `HF_ENDPOINT`), at one branch, tag or commit; the token is the client's own."""

    commit_files = 8
    has_commits = True

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self.repo_id = repo_id
        self.name = f"hf://datasets/{repo_id}" + (f"@{revision}" if revision else "")
        self.branch = revision
        self.stopping = threading.Event()
        self._api = HfApi(library_name="shardkit")
        if not are_progress_bars_disabled() and HF_HUB_DISABLE_PROGRESS_BARS is None:
            disable_progress_bars()  # shardkit shows its own
        self._commit: str | None = None
        self._xet: set[str] = set()
        self._staged: dict[str, CommitOperationAdd] = {}

    @property
    def revision(self) -> str:
        return self._commit or ""

    @property
    def local_folder(self) -> Path | None:
        return None

    @property
    def default_folder(self) -> str:
        return self.repo_id.rpartition("/")[2]

    def exists(self) -> bool:
        api, repo = self._api, self.repo_id
        if self.branch is None:
            return self._call("look at", partial(api.repo_exists, repo, repo_type="dataset"))
        return self._call("look at", partial(api.revision_exists, repo, self.branch, repo_type="dataset"))

    def create(self, *, private: bool) -> None:
        api, repo = self._api, self.repo_id
        self._call(
            "create", partial(api.create_repo, repo, repo_type="dataset", private=private or None, exist_ok=True)
        )
        if private and not self._call("look at", partial(api.repo_info, repo, repo_type="dataset")).private:
            raise HubError(f"{self.name} exists and is public: push without --private, or make it private on its page")
        if self.branch not in (None, "main") and not self.exists():
            # from the first commit, which holds no data: a branch of main's head would start with main's dataset
            first = self._call("look at", partial(api.list_repo_commits, repo, repo_type="dataset"))[-1].commit_id
            make = partial(
                api.create_branch, repo, branch=str(self.branch), revision=first, repo_type="dataset", exist_ok=True
            )
            self._call("make a branch of", make)

    def files(self) -> dict[str, RemoteFile]:
        # snapshot_download is not asked: into a folder with files it calls a 401, 404 or 503 a success
        look = partial(self._api.repo_info, self.repo_id, repo_type="dataset", revision=self.branch)
        self._commit = self._call("look at", look).sha
        return self._call("list", partial(self._tree, self._commit))

    def _tree(self, revision: str | None) -> dict[str, RemoteFile]:
        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=revision, repo_type="dataset")
        files = [item for item in tree if isinstance(item, RepoFile)]
        self._xet = {item.path for item in files if item.xet_hash}
        return {item.path: RemoteFile(item.size, item.lfs.sha256 if item.lfs else "") for item in files}

    def read(self, file: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="shardkit-") as folder:
            return self.fetch(file, Path(folder), again=False)[0].read_bytes()

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:
        if file in self._xet and is_xet_available():
            get = partial(
                self._api.hf_hub_download, self.repo_id, file, repo_type="dataset", revision=self.revision,
                local_dir=folder, force_download=again,
            )  # fmt: skip
            path = Path(self._call(f"download {file}", get))
            return path, sha256_file(path)
        path, url = (
            folder / Path(file).name,
            hf_hub_url(self.repo_id, file, repo_type="dataset", revision=self.revision),
        )
        with open(path, "wb", buffering=0) as target:
            return path, self._call(f"download {file}", _Download(url, target))

    def upload(self, path: Path, shard: ShardInfo) -> None:
        operation = CommitOperationAdd(path_in_repo=shard.file, path_or_fileobj=path)
        # Our SHA-256, checked a moment ago, is the LFS oid: the client would read and hash the file once more for it.
        operation.upload_info.sha256 = bytes.fromhex(shard.sha256)
        send = partial(
            self._api.preupload_lfs_files, self.repo_id, [operation], repo_type="dataset", revision=self.branch,
            num_threads=1, free_memory=False,
        )  # fmt: skip
        self._call(f"upload {shard.file}", send)
        self._staged[shard.file] = operation

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:
        tries = iter(range(TRIES))

        def send() -> str:
            # A commit whose answer was lost has happened: a second try sends only what is not there.
            there = self._tree(self.branch) if next(tries) else None
            changes: list[CommitOperation] = [
                self._staged[shard.file]
                for shard in shards
                if there is None or there.get(shard.file) != RemoteFile(shard.bytes, shard.sha256)
            ]
            for file, content in small.items():
                if content is not None:
                    changes.append(CommitOperationAdd(path_in_repo=file, path_or_fileobj=content))
                elif there is None or file in there:
                    changes.append(CommitOperationDelete(path_in_repo=file, is_folder=False))
            return self._api.create_commit(
                self.repo_id, changes, commit_message=message, repo_type="dataset", revision=self.branch
            ).oid

        self._commit = self._call("commit to", send)
        for shard in shards:
            del self._staged[shard.file]

    def tag(self, name: str, *, overwrite: bool) -> None:
        api, repo = self._api, self.repo_id
        refs = self._call("look at", partial(api.list_repo_refs, repo, repo_type="dataset"))
        there = {tag.name: tag.target_commit for tag in refs.tags}
        if there.get(name) == self._commit:
            return
        if name in there:
            if not overwrite:
                raise HubError(f"{self.name} has a tag {name!r} on another commit: choose another tag, or --overwrite")
            self._call("move a tag of", partial(api.delete_tag, repo, tag=name, repo_type="dataset"))
        make = partial(api.create_tag, repo, tag=name, revision=self._commit, repo_type="dataset", exist_ok=True)
        self._call("tag", make)

    def _call(self, what: str, action: Callable[[], Result]) -> Result:
        session = get_session()
        if session.timeout.read is None:  # the client's default: a stalled server would hang a push for ever
            session.timeout = STALL_SECONDS
        return call(action, self.name, what, self.stopping)


class _Download:
    """One file, streamed and hashed on the way; called again after a failure it goes on from where it was.

    The client's own `http_get` would need a second pass for the hash, and holds 20 to 40 MB a file in memory.
    """

    def __init__(self, url: str, target: BinaryIO) -> None:
        self._url = url
        self._target = target
        self._digest = hashlib.sha256()

    def __call__(self) -> str:
        """Bring what is missing; returns the SHA-256 of the whole file."""
        headers = build_hf_headers(library_name="shardkit") | {"Accept-Encoding": "identity"}
        if start := self._target.tell():
            headers["Range"] = f"bytes={start}-"
        # httpx sends the token to the Hub alone: a redirect to another origin goes without it
        with get_session().stream("GET", self._url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:
                self._target.seek(0)
                self._target.truncate()
                self._digest = hashlib.sha256()
            for block in response.iter_raw():
                self._target.write(block)
                self._digest.update(block)
        return self._digest.hexdigest()
