"""How shardkit moves bytes by the Hub's client, `huggingface_hub`, beside its API."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

from huggingface_hub import get_session, hf_raise_for_status
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._xet import (
    XetFileData,
    get_xet_session,
    refresh_xet_connection_info,
    xet_headers_without_auth,
)
from tqdm.std import tqdm

from shardkit.hub_session import hub_session
from shardkit.rate_limits import HUB_PLACE, LIMITS

XET_SILENT_SECONDS = 20.0  # without a byte of a download that has begun
_LISTEN_SECONDS = 0.1
Result = TypeVar("Result")


class Download:
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
            nothing_left = start and response.status_code == 416  # all of it had come when the connection broke
            if not nothing_left:
                hf_raise_for_status(response)
            if start and response.status_code != 206:
                self._target.seek(0)
                self._target.truncate()
                self._digest = hashlib.sha256()
            if nothing_left:
                raise ConnectionError("there is nothing after what has come: once more from the start")
            for block in response.iter_raw():
                self._target.write(block)
                self._digest.update(block)
                if self._stop.is_set():  # Ctrl-C, or another file that failed for good
                    raise ConnectionAbortedError("stopped")
        return self._digest.hexdigest()


@contextmanager
def xet_upload(route: str, session: Any = None) -> Iterator[Any]:
    """An upload to the Xet store (`hf_xet`'s upload commit), by the token that `route` gives. The client keeps it
    until it runs out, where `hf_xet`, left to itself, asks each time. Another than the client's `session` may be given.
    """
    headers = build_hf_headers(library_name="shardkit")
    access = refresh_xet_connection_info(file_data=XetFileData("", route), headers=headers)
    try:
        with (session or get_xet_session()).new_upload_commit(  # type: ignore[no-untyped-call]
            endpoint=access.endpoint,
            token=access.access_token,
            token_expiry_unix_secs=access.expiration_unix_epoch,
            token_refresh_url=route,
            token_refresh_headers=headers,
            custom_headers=xet_headers_without_auth(headers),
        ) as upload:
            yield upload
    except RuntimeError as error:  # most of its errors are `OSError`s
        raise ConnectionError(str(error)) from error


class SilentError(Exception):
    """A transfer from which nothing has been heard for `XET_SILENT_SECONDS`, without a limit that it waits for."""


class UnlockableError(Exception):
    """A transfer that the client does not begin: it wants to lock a file where its file system has no locks."""


def while_bytes_come(transfer: Callable[[type[tqdm[Any]]], Result], stop: threading.Event) -> Result:
    """Run `transfer(bar)` in a thread of its own, and return what it returns: a call of the client that takes the class
    `bar` for its progress bars, and so says that bytes arrive.

    Raises `SilentError` if none do for `XET_SILENT_SECONDS`, `ConnectionAbortedError` once `stop` is set. The call,
    which cannot be cut short, is then left to itself: its files must be nobody else's.
    """
    heard, ended = time.monotonic(), threading.Event()
    future: Future[Result] = Future()

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:  # noqa: ARG002
            nonlocal heard
            heard = time.monotonic()

    def run() -> None:
        try:
            with hub_session(stop):
                future.set_result(transfer(Bar))
        except BaseException as error:  # noqa: BLE001 (whoever waits for it gets it)
            future.set_exception(error)
        ended.set()

    threading.Thread(target=run, name="shardkit-transfer", daemon=True).start()
    while not ended.wait(_LISTEN_SECONDS):
        if stop.is_set():
            raise ConnectionAbortedError("stopped")
        if LIMITS.seconds_left(HUB_PLACE):
            heard = time.monotonic()
        if time.monotonic() - heard > XET_SILENT_SECONDS:
            raise SilentError
    return future.result()
