"""A dataset repo on the Hub as a remote, through `huggingface_hub`: pre-upload, then commit; nothing hashed twice."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_url,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._runtime import is_xet_available

from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import HubError
from shardkit.files import sha256_file
from shardkit.hub_address import HubAddress
from shardkit.locks import NO_LOCKS
from shardkit.network import with_retries
from shardkit.remote.claim import LOOKS, always_changing, is_completed_with, is_written, not_ours_any_more, step_aside
from shardkit.remote.hub_client import Download, SilentError, UnlockableError, while_bytes_come
from shardkit.remote.hub_uploads import HubUploads
from shardkit.remote.interface import CLAIM_FILE, PlaceChanged, RemoteFile, by_folder, check_small

CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete  # what the client's list holds
Result = TypeVar("Result")
_PARENT_IS_OLD = 412  # "A commit has happened since. Please refresh and try again."


class HubRemote:
    """A dataset repo on the Hub (or at `HF_ENDPOINT`), or a folder in one, at one branch, tag or commit; the token is
    the client's own. Files are named relative to the folder."""

    commit_files = 96  # with the small files less than 100, as the Hub recommends
    has_commits = True

    def __init__(self, address: HubAddress) -> None:
        self.repo_id = address.name
        self.name = address.url
        self.branch = address.revision
        self._folder = address.path
        self.stopping = threading.Event()
        self._api = HfApi(library_name="shardkit")
        self._commit: str | None = None
        self._listed: dict[str, RepoFile] = {}
        self._uploads = HubUploads(self._api, address.name, address.revision, address.path)
        self._xet_is_silent = False
        self._mark: bytes | None = None
        self._holder: tuple[bytes | None] | None = None  # the mark at the commit that was seen last, if it was read

    @property
    def revision(self) -> str:
        return self._commit or ""

    @property
    def local_folder(self) -> Path | None:
        return None

    @property
    def default_folder(self) -> str:
        return (self._folder or self.repo_id).rpartition("/")[2]

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

    def files(self, listed: tuple[str | None, dict[str, RepoFile]] | None = None) -> dict[str, RemoteFile]:
        # snapshot_download is not asked: into a folder with files it calls a 401, 404 or 503 a success
        self._holder = None
        self._commit, tree = self._now("") if listed is None else listed
        self._listed = {path.removeprefix(self._path("")): item for path, item in tree.items()}
        return {file: _as_listed(item) for file, item in self._listed.items()}

    def subfolders(self, folder: str) -> dict[str, tuple[str | None, dict[str, RepoFile]]]:
        commit, tree = self._now(folder)
        return {name: (commit, files) for name, files in by_folder(tree, self._path(folder)).items()}

    def _now(self, folder: str) -> tuple[str | None, dict[str, RepoFile]]:
        """The newest commit, and all files below `folder` there, by their path in the repo."""
        head = partial(self._api.repo_info, self.repo_id, repo_type="dataset", revision=self.branch)
        commit = self._call("look at", head).sha
        return commit, self._call("list", partial(self._tree, commit, folder))

    def _tree(self, revision: str | None, folder: str = "") -> dict[str, RepoFile]:
        top = self._path(folder).rstrip("/") or None
        try:
            tree = self._api.list_repo_tree(self.repo_id, top, recursive=True, revision=revision, repo_type="dataset")
            return {item.path: item for item in tree if isinstance(item, RepoFile)}
        except EntryNotFoundError:  # no such folder yet
            return {}

    def _path(self, file: str) -> str:
        """Where a file of the dataset is in the repo."""
        return f"{self._folder}/{file}" if self._folder else file

    def read(self, file: str) -> bytes:
        url = hf_hub_url(self.repo_id, self._path(file), repo_type="dataset", revision=self.revision)
        listed = self._listed.get(file)
        check_small(self.name, file, listed.size if listed is not None else 0)

        def get() -> bytes:
            target = io.BytesIO()
            sha256 = Download(url, target, self.stopping)()
            content = target.getvalue()
            # Small files are not LFS: the git blob's name is the only hash that the Hub has of them.
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
            if listed is not None and (sha256 != listed.lfs.sha256 if listed.lfs else blob != listed.blob_id):
                raise OSError("other bytes arrived than it lists")
            return content

        return self._call(f"read {file}", get)

    def fetch(self, file: str, folder: Path, *, again: bool) -> tuple[Path, str]:  # noqa: ARG002 (no copy here is trusted)
        listed = self._listed.get(file)
        if listed is not None and listed.xet_hash and is_xet_available() and not self._xet_is_silent:
            try:
                path = self._call(f"download {file}", partial(self._fetch_by_xet, file, folder))
                return path, sha256_file(path)
            except (SilentError, UnlockableError):
                self._xet_is_silent = True  # from here on by HTTP, which goes on from where a connection broke
        path = folder / Path(file).name
        url = hf_hub_url(self.repo_id, self._path(file), repo_type="dataset", revision=self.revision)
        with open(path, "wb", buffering=0) as target:
            return path, self._call(f"download {file}", Download(url, target, self.stopping))

    def _fetch_by_xet(self, file: str, folder: Path) -> Path:
        own = tempfile.mkdtemp(dir=folder)  # where there is no copy yet, and a call left to itself disturbs nobody

        def get(bar: type[Any]) -> str:
            try:
                return self._api.hf_hub_download(
                    self.repo_id,
                    self._path(file),
                    repo_type="dataset",
                    revision=self.revision,
                    local_dir=own,
                    tqdm_class=bar,
                )
            except OSError as error:
                if error.errno in NO_LOCKS:
                    raise UnlockableError from error
                raise

        return Path(while_bytes_come(get, self.stopping))

    def discard(self, shards: Sequence[ShardInfo]) -> None:
        doomed = {shard.sha256 for shard in shards}

        def delete() -> None:
            # The Hub asks for no bytes of an object that it has, so the object goes; its pointers in all commits stay.
            stored = [f for f in self._api.list_lfs_files(self.repo_id, repo_type="dataset") if f.file_oid in doomed]
            self._api.permanently_delete_lfs_files(self.repo_id, stored, rewrite_history=False, repo_type="dataset")

        self._call("delete what is served wrong from", delete)
        self._uploads.distrust_xet(shard.file for shard in shards)

    def prepare(self, files: Sequence[tuple[Path, ShardInfo]]) -> None:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        self._call(f"upload {files[0][1].file}{more}", partial(self._uploads.prepare, files))

    def upload(self, path: Path, shard: ShardInfo) -> str:
        return self._call(f"upload {shard.file}", partial(self._uploads.send, path, shard))

    def received(self, shard: ShardInfo, receipt: str) -> None:
        self._uploads.received(shard, receipt)

    def claimed_by(self) -> bytes | None:
        if self._holder is None:
            self._holder = (self.read(CLAIM_FILE) if CLAIM_FILE in self._listed else None,)
        return self._holder[0]

    def claim(self, mark: bytes, held: bytes | None, small: Mapping[str, bytes | None], message: str) -> None:
        wanted = dict(small) if held == mark else {CLAIM_FILE: mark, **small}
        self._commit = self._call("commit to", partial(self._send_commit, [], wanted, message))
        self._mark = mark
        self._holder = (mark,)

    def release(self) -> None:
        """Nothing to do: a claim is made only of a place that has not changed."""

    def commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> None:
        again = False
        if not shards and not small:
            self.files()
        self._call("commit to", partial(self._uploads.confirm, shards))
        for look in range(LOOKS):
            ours = self.claimed_by() == self._mark
            if again or not ours:
                files = {path: _as_listed(item) for path, item in self._listed.items()}
                if (is_written if ours else is_completed_with)(self, files, shards, small):
                    break
            if not ours or (again and self._mark is None):  # without a claim, nobody says whose the change is
                raise not_ours_any_more(self)
            try:
                self._commit = self._call("commit to", partial(self._send_commit, shards, small, message))
                break
            except PlaceChanged:
                self.files()
                again = True
                step_aside(self, look)
        else:
            raise always_changing(self)
        self._uploads.forget(shard.file for shard in shards)

    def _send_commit(self, shards: Sequence[ShardInfo], small: Mapping[str, bytes | None], message: str) -> str | None:
        """Commit what is not there yet on top of the commit that was seen last, and no other; returns its name.

        Raises `PlaceChanged` if there are others since (one of them may be ours, its answer lost).
        """
        changes: list[CommitOperation] = [
            self._uploads.operation(shard.file)
            for shard in shards
            if shard.file not in self._listed
            or _as_listed(self._listed[shard.file]) != RemoteFile(shard.bytes, shard.sha256)
        ]
        for file, content in small.items():
            if content is not None:
                changes.append(CommitOperationAdd(path_in_repo=self._path(file), path_or_fileobj=content))
            elif file in self._listed:
                changes.append(CommitOperationDelete(path_in_repo=self._path(file), is_folder=False))
        if not changes:
            return self._commit
        try:
            made = self._api.create_commit(
                self.repo_id,
                changes,
                commit_message=message,
                repo_type="dataset",
                revision=self.branch,
                parent_commit=self._commit,
            )
        except EntryNotFoundError as error:  # what was to be deleted is gone
            raise PlaceChanged(f"{self.name} has changed meanwhile") from error
        except HfHubHTTPError as error:
            if error.response.status_code == _PARENT_IS_OLD:
                raise PlaceChanged(f"{self.name} has changed meanwhile") from error
            raise
        for file in (file for file, content in small.items() if content is None):
            self._listed.pop(file, None)
        return made.oid

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
        return with_retries(action, self.name, what, self.stopping)


def _as_listed(item: RepoFile) -> RemoteFile:
    return RemoteFile(item.size, item.lfs.sha256 if item.lfs else "")
