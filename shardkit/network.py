"""Calls to a remote: tried again while that can help, and every failure of every client said as one `HubError` line.

The Hub's client raises seven kinds of error for the same trouble (`HfHubHTTPError`, `LocalEntryNotFoundError`,
`RuntimeError`, `ValueError`, builtin `ConnectionError`, `OSError`, httpx errors), and the fsspec drivers their own.
They are told apart here and nowhere else. No message leaves this module with a token in it.
"""

from __future__ import annotations

import errno
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shardkit.errors import AuthError, DiskFull, HubError, ShardkitError, SourceError

Result = TypeVar("Result")
TRIES = 5
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
_TRANSIENT_STATUS = {408, 409, 412, 425, 429, 500, 502, 503, 504}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Exceptions of these packages are the network's; any other `Exception` is a bug and keeps its traceback.
_CLIENTS = {
    "adlfs", "aiohttp", "aiobotocore", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google", "h11", "hf_xet",
    "httpcore", "httpx", "huggingface_hub", "paramiko", "s3fs", "smbprotocol", "urllib3",
}  # fmt: skip
_SECRETS = [
    (re.compile(r"hf_[A-Za-z0-9]{8,}"), "hf_[hidden]"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\"]+"), r"\1 [hidden]"),
    (re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+"), r"\1"),  # signed URLs carry their key in the query
    (re.compile(r"(https?://)[^\s/@'\"]+@"), r"\1"),
]
_LOGIN = "`hf auth login`, or set HF_TOKEN"
_NEW_TOKEN = f"make one with write access at https://huggingface.co/settings/tokens, then {_LOGIN}"


def scrub(text: str) -> str:
    """`text` on one line of at most 300 characters, without tokens, credentials or signed queries."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "[hidden]")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def with_retries(action: Callable[[], Result], where: str, what: str, stop: threading.Event | None = None) -> Result:
    """Do `action`, which is safe to repeat; `where` names the remote and `what` the doing ("upload x.npy") in errors.

    Failures that may pass are tried again, `TRIES` times in all, after 1, 2, 4 ... s, or what `Retry-After` asks for
    (up to 300 s). Raises `HubError` or `AuthError`; `ShardkitError`s and bugs pass through. `stop` cuts the waiting.
    """
    stop = stop or threading.Event()
    attempt = 0
    while True:
        attempt += 1
        try:
            return action()
        except ShardkitError:
            raise
        except Exception as error:
            if not _is_clients(error):
                raise
            failure, wait = as_hub_error(error, where, what)
            if wait is None or attempt == TRIES or stop.wait(max(wait, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))):
                raise failure from None  # the client's own text may hold a header with the token


def as_hub_error(error: Exception, where: str, what: str) -> tuple[ShardkitError, float | None]:
    """The one-line error for a client's exception, and the least seconds to wait before trying again (None: no use)."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    root = _root(error)
    head = f"cannot {what}: {where}"
    if isinstance(root, HfHubHTTPError):
        return _explain_http(root, head)
    if isinstance(root, OfflineModeIsEnabled):
        return HubError(f"{head} was not asked, offline mode is on: unset HF_HUB_OFFLINE"), None
    if isinstance(root, HFValidationError):
        return HubError(f"{head} is not a name the Hub takes ({scrub(str(root))}): write user/name"), None
    if isinstance(root, OSError) and root.errno in _DISK_FULL:
        return DiskFull(f"cannot {what}: no room left on the disk; make room and run the same command again"), None
    if isinstance(root, FileNotFoundError):
        return HubError(f"{head} has no such file or folder ({scrub(str(root))}): check the name"), None
    if isinstance(root, PermissionError):
        return AuthError(
            f"{head} does not allow it ({scrub(str(root))}): check your rights and credentials there"
        ), None
    if isinstance(root, (FileExistsError, NotADirectoryError, IsADirectoryError)):
        return HubError(f"{head} is not a folder, or has a file in the way ({scrub(str(root))}): choose another"), None
    if "Credentials" in type(root).__name__:
        return AuthError(f"{head} needs credentials ({scrub(str(root))}): set them as its own tools ask"), None
    if "Illegal header value" in str(root):
        return AuthError(
            f"{head} was not asked: the token holds a space or line end, or is empty; check HF_TOKEN, or {_LOGIN}"
        ), None
    detail = scrub(f"{type(root).__name__}: {root}")
    return HubError(f"{head} does not answer as it should ({detail}): run the same command again, it goes on"), 0.0


def _explain_http(error: Any, head: str) -> tuple[ShardkitError, float | None]:
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        BadRequestError,
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    said = scrub(error.server_message or "")
    if isinstance(error, GatedRepoError):
        return AuthError(f"{head} is gated: accept its conditions on its page, then {_LOGIN} of that account"), None
    if isinstance(error, RepositoryNotFoundError):
        if get_token():
            return AuthError(f"{head} does not exist, or your token may not see it: check the name and account"), None
        return AuthError(f"{head} does not exist, or is private and there is no token: check the name, {_LOGIN}"), None
    if status == 401:
        if get_token():
            return AuthError(f"{head} does not accept the token (wrong or expired): {_NEW_TOKEN}"), None
        return AuthError(f"{head} needs a token and there is none: {_NEW_TOKEN}"), None
    if status == 403:
        return AuthError(f"{head} does not allow it (a read-only token, or not your repo? {said}): {_NEW_TOKEN}"), None
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{head} has no such revision: check --revision"), None
    if isinstance(error, EntryNotFoundError):
        return HubError(f"{head} has no such file: the dataset there is unfinished, push it again"), None
    if isinstance(error, BadRequestError) or status not in _TRANSIENT_STATUS:
        return HubError(f"{head} refused it ({status}: {said or 'no reason given'})"), None
    wait = _retry_after(error)
    if wait > LONGEST_WAIT_SECONDS:
        return HubError(f"{head} asks to wait {wait:.0f} s ({status}): run the same command later, it goes on"), None
    trouble = "too many requests" if status == 429 else said or "its own trouble"
    return HubError(f"{head} answered {status} ({trouble}): run the same command later, it goes on"), wait


def _retry_after(error: Any) -> float:
    value = error.response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0


def _root(error: BaseException) -> BaseException:
    """What the client's wrapper exceptions hide: the HTTP answer if there is one in the chain, else the first cause."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    seen: list[BaseException] = [error]
    while (below := seen[-1].__cause__ or seen[-1].__context__) is not None and below not in seen:
        seen.append(below)
    for item in seen:
        if isinstance(item, HfHubHTTPError):
            return item
    return seen[-1] if isinstance(error, (RuntimeError, ValueError, LocalEntryNotFoundError)) else error


def _is_clients(error: Exception) -> bool:
    """Whether `error` is the network's or its client's, not a bug of ours."""
    if isinstance(error, (OSError, RuntimeError, ValueError, EOFError, TimeoutError)):
        return True
    return any(kind.__module__.split(".")[0].rstrip("2") in _CLIENTS for kind in type(error).__mro__)


_T = TypeVar("_T")
_ATTEMPTS = 6
_FIRST_DELAY = 0.5  # seconds; doubles
_HOPELESS = {400, 401, 403, 404, 405, 410, 416}  # HTTP answers that another try does not change


def retrying(action: Callable[[], _T], where: str, *, remote: bool) -> _T:
    """Run `action`; where it is `remote`, again after a pause when the network fails. Raises `SourceError` after six
    tries, or at once where trying again is no use; `AuthError` for a gated dataset."""
    delay = _FIRST_DELAY
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except FileNotFoundError as error:
            raise SourceError(f"no such file: {where}") from error
        except PermissionError as error:
            raise SourceError(f"no permission to read {where}") from error
        except network_errors() as error:
            if type(error).__name__ == "GatedRepoError":
                raise AuthError(
                    f"{where} is gated: accept the dataset's terms on its page, then `hf auth login` (or set HF_TOKEN)"
                ) from error
            if not remote or attempt == _ATTEMPTS or getattr(error, "status", None) in _HOPELESS:
                raise SourceError(f"cannot read {where}: {_short(error)}") from error
            time.sleep(delay)
            delay *= 2
        except ValueError as error:
            if type(error).__name__ == "ArrowInvalid":
                raise SourceError(
                    f"{where} is no whole parquet file ({_short(error)}): fetch or make it again"
                ) from error
            if not remote:
                raise
            raise SourceError(f"cannot read {where}: {_short(error)}") from error  # fsspec: no ranges, bad URL
    raise RuntimeError("unreachable")


def network_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """The exception classes of the HTTP clients that are in use, and `more`; no module is imported for this."""
    found: list[type[Exception]] = [OSError, EOFError, *more]
    clients = (
        ("aiohttp", "ClientError"), ("httpx", "HTTPError"), ("httpx2", "HTTPError"),
        ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"),
    )  # fmt: skip
    for module, name in clients:
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
