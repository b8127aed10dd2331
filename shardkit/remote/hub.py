"""A dataset repo on the Hub as a remote, through `huggingface_hub`: pre-upload, then commit; nothing hashed twice."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

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
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils.tqdm import progress_bar_states

from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import HubError
from shardkit.files import sha256_file
from shardkit.network import TRIES, with_retries
from shardkit.remote.interface import RemoteFile

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete  # what the client's list holds
Result = TypeVar("Result")
STALL_SECONDS = 300.0  # without a byte from a server, or to it


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
        self._commit: str | None = None
        self._listed: dict[str, RepoFile] = {}
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
        if not self._call("look at", partial(api.repo_exists, repo, repo_type="dataset")):
            return False
        if self.branch is None:
            return True
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
            create = partial(
                api.create_branch, repo, branch=str(self.branch), revision=first, repo_type="dataset", exist_ok=True
            )
            self._call("make a branch of", create)

    def files(self) -> dict[str, RemoteFile]:
        # snapshot_download is not asked: into a folder with files it calls a 401, 404 or 503 a success
        head = partial(self._api.repo_info, self.repo_id, repo_type="dataset", revision=self.branch)
        self._commit = self._call("look at", head).sha
        return self._call("list", partial(self._tree, self._commit))

    def _tree(self, revision: str | None) -> dict[str, RemoteFile]:
        tree = self._api.list_repo_tree(self.repo_id, recursive=True, revision=revision, repo_type="dataset")
        self._listed = {item.path: item for item in tree if isinstance(item, RepoFile)}
        return {path: RemoteFile(item.size, item.lfs.sha256 if item.lfs else "") for path, item in self._listed.items()}

    def read(self, file: str) -> bytes:
        url = hf_hub_url(self.repo_id, file, repo_type="dataset", revision=self.revision)

        def get() -> bytes:
            target = io.BytesIO()
            sha256 = _Download(url, target, self.stopping)()
            content, listed = target.getvalue(), self._listed.get(file)
            # Small files are not LFS: the git blob's name is the only hash that the Hub has of them.
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            if listed is not None and (sha256 != listed.lfs.sha256 if listed.lfs else blob != listed.blob_id):
                raise OSError("other bytes arrived than it lists")
            return content

        return self._call(f"read {file}", get)

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:
        listed = self._listed.get(file)
        if listed is not None and listed.xet_hash and is_xet_available():
            get = partial(
                self._api.hf_hub_download,
                self.repo_id,
                file,
                repo_type="dataset",
                revision=self.revision,
                local_dir=folder,
                force_download=again,
            )
            path = Path(self._call(f"download {file}", get))
            return path, sha256_file(path)
        path = folder / Path(file).name
        url = hf_hub_url(self.repo_id, file, repo_type="dataset", revision=self.revision)
        with open(path, "wb", buffering=0) as target:
            return path, self._call(f"download {file}", _Download(url, target, self.stopping))

    def upload(self, path: Path, shard: ShardInfo) -> None:
        operation = CommitOperationAdd(path_in_repo=shard.file, path_or_fileobj=path)
        # Our SHA-256, checked a moment ago, is the LFS oid: the client would read and hash the file once more for it.
        operation.upload_info.sha256 = bytes.fromhex(shard.sha256)
        send = partial(
            self._api.preupload_lfs_files,
            self.repo_id,
            [operation],
            repo_type="dataset",
            revision=self.branch,
            num_threads=1,
            free_memory=False,
        )
        self._call(f"upload {shard.file}", send)
        self._staged[shard.file] = operation

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:
        tries = iter(range(TRIES))

        def send() -> str:
            if next(tries) == 0:
                try:
                    return self._send_commit(shards, small, message, None)
                except EntryNotFoundError:
                    pass  # what was to be deleted is gone: somebody else is pushing the same
            # A commit whose answer was lost has happened: now only what is not there is sent.
            return self._send_commit(shards, small, message, self._tree(self.branch))

        self._commit = self._call("commit to", send)
        for shard in shards:
            del self._staged[shard.file]

    def _send_commit(
        self,
        shards: Sequence[ShardInfo],
        small: Mapping[str, bytes | None],
        message: str,
        remote_files: Mapping[str, RemoteFile] | None,
    ) -> str:
        """Commit what `remote_files` does not list yet (None: not known); returns the commit's name."""
        changes: list[CommitOperation] = [
            self._staged[shard.file]
            for shard in shards
            if remote_files is None or remote_files.get(shard.file) != RemoteFile(shard.bytes, shard.sha256)
        ]
        for file, content in small.items():
            if content is not None:
                changes.append(CommitOperationAdd(path_in_repo=file, path_or_fileobj=content))
            elif remote_files is None or file in remote_files:
                changes.append(CommitOperationDelete(path_in_repo=file, is_folder=False))
        return self._api.create_commit(
            self.repo_id, changes, commit_message=message, repo_type="dataset", revision=self.branch
        ).oid

    def tag(self, name: str, *, overwrite: bool) -> None:
        api, repo = self._api, self.repo_id
        refs = self._call("look at", partial(api.list_repo_refs, repo, repo_type="dataset"))
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        if tags.get(name) == self._commit:
            return
        if name in tags:
            if not overwrite:
                raise HubError(f"{self.name} has a tag {name!r} on another commit: choose another tag, or --overwrite")
            self._call("move a tag of", partial(api.delete_tag, repo, tag=name, repo_type="dataset"))
        create = partial(api.create_tag, repo, tag=name, revision=self._commit, repo_type="dataset", exist_ok=True)
        self._call("tag", create)

    def _call(self, what: str, action: Callable[[], Result]) -> Result:
        def attempt() -> Result:
            with _CLIENT.set_for_us():
                return action()

        return with_retries(attempt, self.name, what, self.stopping)


class _ClientSettings:
    """What shardkit needs of the client, which has one HTTP session and one switch for progress bars in a process.

    While one of our calls runs, the session has a hook that gives the requests of our threads, and of no other, a
    time-out (the client's own is none: a stalled server would hang a push for ever), and the client draws no progress
    bars, for the command line draws its own; bars that another thread begins in that time are not drawn either, as
    the switch is the only way. With the last of our calls both are as they were.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()
        self._calls = 0
        self._bars: bool | None = None
        self._session: Any = None

    @contextmanager
    def set_for_us(self) -> Iterator[None]:
        """Have the settings for the calls of this thread that the block makes."""
        session = get_session()
        with self._lock:
            if self._calls == 0 and HF_HUB_DISABLE_PROGRESS_BARS is None:  # else the user has said what to do
                self._bars = progress_bar_states.get("_global")
                progress_bar_states["_global"] = False
            self._calls += 1
            if session is not self._session:  # the client makes a new one when a connection broke
                self._unhook()
                session.event_hooks = _with_hook(session.event_hooks, self._bound)
                self._session = session
        self._thread.ours = True
        try:
            yield
        finally:
            self._thread.ours = False
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._unhook()
                    self._show_bars_as_before()

    def _bound(self, request: Any) -> None:
        timeout = request.extensions.get("timeout", {})
        if getattr(self._thread, "ours", False) and timeout.get("read") is None:
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), STALL_SECONDS)

    def _show_bars_as_before(self) -> None:
        if HF_HUB_DISABLE_PROGRESS_BARS is not None:
            return
        if self._bars is None:
            progress_bar_states.pop("_global", None)
        else:
            progress_bar_states["_global"] = self._bars

    def _unhook(self) -> None:
        if self._session is not None:
            self._session.event_hooks = _without_hook(self._session.event_hooks, self._bound)
            self._session = None


def _with_hook(hooks: Mapping[str, list[Any]], hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, "request": [*hooks.get("request", []), hook]}


def _without_hook(hooks: Mapping[str, list[Any]], hook: Callable[[Any], None]) -> dict[str, list[Any]]:
    return {**hooks, "request": [other for other in hooks.get("request", []) if other != hook]}


_CLIENT = _ClientSettings()


class _Download:
    """One file, streamed and hashed on the way; called again after a failure it goes on from where it was.

    The client's own `http_get` would need a second pass for the hash, and holds 20 to 40 MB a file in memory.
    """

    def __init__(self, url: str, target: BinaryIO, stop: threading.Event) -> None:
        self._url = url
        self._target = target
        self._stop = stop
        self._digest = hashlib.sha256()

    def __call__(self) -> str:
        """Download what is missing; returns the SHA-256 of the whole file."""
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
                if self._stop.is_set():  # Ctrl-C, or another file that failed for good
                    raise ConnectionAbortedError("stopped")
        return self._digest.hexdigest()
