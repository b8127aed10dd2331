"""How the bytes of shards get to a repo on the Hub: one question about many shards, one transfer for each.

A shard goes by Xet or, where Xet is missing or switched off, as an LFS object. What has arrived stays at the Hub before
any commit names it, so that a push that was killed sends nothing of it again. Commits are made in `hub.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub._commit_api import _fetch_upload_modes
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import lfs_upload, post_lfs_batch_info
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._runtime import is_xet_available

from shardkit.dataset.check import check_shard
from shardkit.dataset.known_files import unchanged
from shardkit.dataset.manifest import ShardInfo
from shardkit.errors import HubError
from shardkit.remote.hub_client import xet_upload

_LFS, _NOT_TO_BE_CONFIRMED, _NOT_SENT = "lfs", "sent", ""  # receipts: in which way a shard was sent


class LfsRefusedError(OSError):
    """What the Hub said of one object in a batch that it answered; `status` is its code, as of HTTP."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class HubUploads:
    """Shards on their way to a `folder` ("": the top) of the dataset repo `repo_id` at the branch `revision`. Its
    methods may be called from any thread, and again after a failure; they raise what the client raises."""

    def __init__(self, api: HfApi, repo_id: str, revision: str | None, folder: str) -> None:
        self._above = f"{folder}/" if folder else ""
        self._endpoint = api.endpoint
        self._repo: Any = {"repo_type": "dataset", "repo_id": repo_id, "revision": quote(revision or "main", safe="")}
        self._operations: dict[str, CommitOperationAdd] = {}
        self._lfs_answers: dict[
            str, dict[str, Any] | None
        ] = {}  # by SHA-256: how to send it (None: no need), until used
        self._sent_as_lfs: set[str] = set()
        self._not_by_xet: set[str] = set()
        self._all_are_lfs = False

    def prepare(self, files: Sequence[tuple[Path, ShardInfo]]) -> None:
        """Ask the Hub about many shards that `send` will send, in at most two calls."""
        operations = []
        for path, shard in files:
            with suppress(OSError, ValueError):  # a file that is not right is named when it is sent
                operations.append(self._operation_for(path, shard))
        self._ask_how(operations)
        self._lfs_answers |= self._ask_where(op for op in operations if self._goes_as_lfs(op))
        self._operations |= {self._file(operation): operation for operation in operations}

    def send(self, path: Path, shard: ShardInfo) -> str:
        """Send the bytes of a shard, unless the Hub has them. Returns the receipt for `received`."""
        if shard.file not in self._operations:
            operation = self._operation_for(path, shard)
            self._ask_how([operation])
            self._operations[shard.file] = operation
        operation = self._operations[shard.file]
        if operation._upload_mode != "lfs" or operation._should_ignore:
            return _NOT_SENT  # it goes in the commit itself, or not at all, and then is found missing
        if self._goes_as_lfs(operation):
            self._send_as_lfs(operation, shard)
        else:
            self._send_by_xet(operation, shard)
        operation._is_uploaded = True
        return _LFS if shard.file in self._sent_as_lfs else _NOT_TO_BE_CONFIRMED

    def received(self, shard: ShardInfo, receipt: str) -> None:
        """Note a shard that another process sent, and what its `send` returned. Raises `HubError` if it was not
        sent."""
        if receipt == _NOT_SENT:
            raise HubError(
                f"{shard.file} is no large file at {self._repo['repo_id']}, and would have to go through this machine: "
                "have `*.npy filter=lfs diff=lfs merge=lfs -text` in .gitattributes there, or leave out --max-disk"
            )
        operation = self._operation_for(b"", shard)  # its bytes are not here
        operation._upload_mode, operation._should_ignore, operation._is_uploaded = "lfs", False, True
        if receipt == _LFS:
            self._sent_as_lfs.add(shard.file)
        self._operations[shard.file] = operation

    def confirm(self, shards: Sequence[ShardInfo]) -> None:
        """Have every one of `shards` that was sent as an LFS object whole at the Hub: asked about in one call, where
        the client asks about each. What is not there is sent again, and verified alone."""
        sent = {shard.sha256: shard for shard in shards if shard.file in self._sent_as_lfs}
        missing = self._ask_where(self._operations[shard.file] for shard in sent.values())
        for sha256, place in missing.items():
            if place is not None:
                operation, shard = self._operations[sent[sha256].file], sent[sha256]
                if isinstance(operation.path_or_fileobj, bytes):
                    raise OSError(f"{shard.file} has not arrived whole from the machine that sent it")
                path = Path(str(operation.path_or_fileobj))
                with unchanged(path):
                    check_shard(path, shard, hashed=True)
                    self._put(operation, place)
        self._sent_as_lfs -= {shard.file for shard in shards}

    def operation(self, file: str) -> CommitOperationAdd:
        """What a commit says of a shard that was sent."""
        return self._operations[file]

    def forget(self, files: Iterable[str]) -> None:
        """Keep nothing of shards that are in a commit now."""
        for file in files:
            self._operations.pop(file, None)

    def distrust_xet(self, files: Iterable[str]) -> None:
        """Send these as LFS objects: the Xet client keeps notes of what it has sent, and would not send it again."""
        self._not_by_xet |= set(files)

    def _operation_for(self, path: Path | bytes, shard: ShardInfo) -> CommitOperationAdd:
        operation = CommitOperationAdd(path_in_repo=self._above + shard.file, path_or_fileobj=path)
        # The SHA-256 is the LFS oid, and is checked before the upload: the client would read and hash the file for it.
        operation.upload_info.sha256 = bytes.fromhex(shard.sha256)
        operation.upload_info.size = shard.bytes
        return operation

    def _file(self, operation: CommitOperationAdd) -> str:
        """The name of a shard in the dataset."""
        return operation.path_in_repo.removeprefix(self._above)

    def _goes_as_lfs(self, operation: CommitOperationAdd) -> bool:
        large = operation._upload_mode == "lfs" and not operation._should_ignore
        return large and (not is_xet_available() or self._file(operation) in self._not_by_xet)

    def _ask_how(self, operations: Sequence[CommitOperationAdd]) -> None:
        """Learn whether these go as large files, which is so of all shards of a dataset if it is so of the first."""
        if operations and not self._all_are_lfs:
            _fetch_upload_modes(operations, headers=_headers(), endpoint=self._endpoint, **self._repo)
            self._all_are_lfs = all(op._upload_mode == "lfs" and not op._should_ignore for op in operations)
        for operation in operations if self._all_are_lfs else ():
            operation._upload_mode, operation._should_ignore = "lfs", False

    def _ask_where(self, operations: Iterable[CommitOperationAdd]) -> dict[str, dict[str, Any] | None]:
        """Where to send these, by SHA-256; None for what the Hub has. Raises `LfsRefusedError`."""
        infos = [operation.upload_info for operation in operations]
        if not infos:
            return {}
        answers, errors, _ = post_lfs_batch_info(
            infos, token=None, headers=_headers(), endpoint=self._endpoint, **self._repo
        )
        if errors:
            raise LfsRefusedError(errors[0]["error"]["code"], errors[0]["error"]["message"])
        places = {answer["oid"]: answer if answer.get("actions") else None for answer in answers}
        if any(info.sha256.hex() not in places for info in infos):
            raise OSError("it answers about other objects than it was asked about")
        return places

    def _send_as_lfs(self, operation: CommitOperationAdd, shard: ShardInfo) -> None:
        try:
            place = self._lfs_answers.pop(shard.sha256)
        except KeyError:  # it is another try, or another shard with the same bytes
            place = self._ask_where([operation])[shard.sha256]
        if place is None:
            return
        self._sent_as_lfs.add(shard.file)
        try:
            self._put(operation, _unverified(place))
        except HfHubHTTPError as error:
            if error.response.status_code != 403:
                raise
            place = self._ask_where([operation])[shard.sha256]  # the address may have run out before its turn came
            if place is not None:
                self._put(operation, _unverified(place))

    def _put(self, operation: CommitOperationAdd, place: Mapping[str, Any]) -> None:
        lfs_upload(operation, dict(place), headers=_headers(), endpoint=self._endpoint)

    def _send_by_xet(self, operation: CommitOperationAdd, shard: ShardInfo) -> None:
        """Send one shard, which the store knows when this returns. With a token at hand it makes no call to the Hub."""
        with xet_upload(self._token_url) as upload:
            upload.start_upload_file(str(operation.path_or_fileobj), sha256=shard.sha256)

    @property
    def _token_url(self) -> str:
        return f"{self._endpoint}/api/datasets/{self._repo['repo_id']}/xet-write-token/{self._repo['revision']}"


def _unverified(place: Mapping[str, Any]) -> dict[str, Any]:
    """`place` without the call that verifies one object: `confirm` asks about many."""
    return {**place, "actions": {"upload": place["actions"]["upload"]}}


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="shardkit")
