"""Which version of a file a run reads: noted when the source is listed, looked at again whenever bytes of it were read.

A local file is known by its size, modification time and inode, a remote one by what its server states (ETag, generation
or date). A file of the Hub is named by its commit and does not change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from shardkit.errors import SourceError
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.sources.source import InputFile

# What servers and fsspec's drivers call a version, the most reliable first.
_STATED = (
    "ETag",
    "etag",
    "generation",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
    "created",
)


def local_version(status: os.stat_result) -> str:
    """The version of a local file with that `stat`."""
    return f"modified {status.st_mtime_ns}, inode {status.st_ino}"


def stated_version(details: Mapping[str, Any]) -> str:
    """The version that fsspec's `info`, or the headers of an HTTP answer, state; empty if they state none."""
    name = next((name for name in _STATED if details.get(name)), None)
    return "" if name is None else f"{name} {str(details[name]).removeprefix('W/')}"


def check_unchanged(file: InputFile) -> None:
    """Raise `SourceError` if the file is not the one that was listed. Over HTTP every answer says so."""
    if file.version and not file.is_pipe and not file.url.startswith(("http://", "https://")):
        _refuse_another(file, _present_state(file) if file.is_remote else _local_state(file))


def _local_state(file: InputFile) -> str:
    try:
        status = os.stat(file.url)
    except FileNotFoundError:
        return "not there"
    return file.state_with(status.st_size, local_version(status))


def _present_state(file: InputFile) -> str:
    def ask() -> Mapping[str, Any]:
        filesystem, path = open_filesystem(file.url, error=SourceError)
        filesystem.invalidate_cache(path)
        details: Mapping[str, Any] = filesystem.info(path)
        return details

    details = with_retries(ask, public_address(file.url), f"look at {file.path}", error=SourceError)
    return file.state_with(details.get("size"), stated_version(details))


def _refuse_another(file: InputFile, state: str) -> None:
    if state != file.state:
        raise SourceError(
            f"{file.path} has changed since the run began (it was {file.state}; it is {state}): leave a source alone "
            "while it is read, and start again with --overwrite"
        )


def check_stated(file: InputFile, headers: Mapping[str, str]) -> None:
    """Raise `SourceError` if the headers of an answer state another version, or another length, than was listed."""
    stated = stated_version(headers)
    comparable = stated.partition(" ")[0] == file.version.partition(" ")[0]
    length = re.search(r"/([0-9]+)$", headers.get("Content-Range", ""))
    size = int(length[1]) if length else file.bytes
    _refuse_another(file, file.state_with(size, stated if comparable else file.version))


def check_size(file: InputFile, size: int | None) -> None:
    """Raise `SourceError` if `size`, as the client found it when it opened the file, is not the one that was listed."""
    if size is not None:
        _refuse_another(file, file.state_with(size, file.version))
