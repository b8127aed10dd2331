"""The bytes of a remote file, by ranges, from any thread: one resolve for many requests, and a connection that breaks
or goes silent is taken up at the byte where it ended.

Files of the Hub and behind http(s) are read through `requests`, which over eight connections takes half the processor
time of the Hub's own HTTP client (benchmarks/bench_fetch.py); where a Hub file lies is asked of the real client, once,
and again when that address has run out. All else is read through its fsspec driver. Each answer must be of the very
version that was listed (`file_version.py`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from shardkit import hub_answers
from shardkit.errors import SourceError
from shardkit.hub_address import HUB
from shardkit.network import open_filesystem, with_retries
from shardkit.redaction import public_address
from shardkit.sources import http_session
from shardkit.sources.file_version import check_size, check_stated, check_unchanged
from shardkit.sources.http_session import CONNECT_SECONDS
from shardkit.sources.source import InputFile

if TYPE_CHECKING:
    from requests import Response

SILENT_SECONDS = 15.0  # without a byte, or with so few that it is as good as none: the connection is given up
SLOWEST_BYTES = 16 << 10  # that must come in that time
BLOCK_BYTES = 256 << 10
PROGRESS_BYTES = 64 << 10  # as many from one request, and what ends it does not count as a failed try
_HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@([^/]+)/(.+)")
_GIT_HASH = 40  # digits of the hash of a file that lies in the repo itself: the Hub serves it without a redirect
_ENDED = (401, 403, 404, 410)  # what an address answers that has run out
_COUNTS = threading.Lock()
_ONE_CONNECTION = threading.Lock()  # a driver that is not asynchronous (FTP) has no more
_drivers: dict[str, Any] = {}  # those, by scheme, login and host


class Traffic(NamedTuple):
    """What this process has read of remote files so far: bytes that came, and requests for them."""

    bytes: int = 0
    requests: int = 0

    def since(self, before: Traffic) -> Traffic:
        """What came after `before`."""
        return Traffic(*(now - then for now, then in zip(self, before, strict=True)))


_traffic = Traffic()


def traffic() -> Traffic:
    """The traffic of this process up to now."""
    return _traffic


def _count(*, count: int = 0, requests: int = 0) -> None:
    global _traffic
    with _COUNTS:
        before = _traffic
        _traffic = Traffic(before.bytes + count, before.requests + requests)


def read_into(
    file: InputFile,
    start: int,
    into: memoryview,
    *,
    arrived: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Fill `into`, shape `(n,)` bytes, with the bytes of `file` from `start` on; `arrived(count)` is called as they
    come. Raises `SourceError` or `AuthError`, once `stop` is set too."""
    reader, done = _reader(file), 0

    def go_on() -> None:
        nonlocal done
        before = done
        try:
            for block in reader.blocks(start + done, start + len(into)):
                into[done : done + len(block)] = block
                done += len(block)
                if arrived is not None:
                    arrived(len(block))
                if stop is not None and stop.is_set():
                    raise ConnectionAbortedError("stopped")
            if done < len(into):
                raise OSError(
                    f"{done - before:,} bytes came for the {len(into) - before:,} asked for at {start + before:,}: the "
                    "connection was cut, or the server does not serve ranges (then download the file first)"
                )
        except OSError:
            stopped = stop is not None and stop.is_set()
            if done < len(into) and (stopped or done - before < PROGRESS_BYTES):
                raise
        finally:
            _count(count=done - before)

    while done < len(into):
        with_retries(go_on, file.url, f"read {file.path}", stop, error=SourceError)


@lru_cache(maxsize=256)
def _reader(file: InputFile) -> _HubReader | _HttpReader | _FsspecReader:
    if _HUB_FILE.fullmatch(file.url):
        return _HubReader(file)
    return _HttpReader(file) if file.url.startswith(("http://", "https://")) else _FsspecReader(file)


class _HttpReader:
    """A file behind an address that stays good."""

    def __init__(self, file: InputFile) -> None:
        self._file = file

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes `[start, stop)`, and not one more, as they come; fewer if the connection ends."""
        with _get(self._file.url, None, start, stop) as answer:
            yield from _checked_blocks(self._file, answer, start, stop)


class _Location(NamedTuple):
    """Where the bytes of a Hub file lie: an address, mostly signed and good for an hour, and the headers it needs."""

    url: str
    headers: Mapping[str, str]


class _HubReader:
    """A file of the Hub. Its location is asked for once; other threads wait for the answer, or share the failure."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._location: _Location | None = None
        self._failures: list[Exception] = []

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """As `_HttpReader.blocks`."""
        for _ in range(2):  # an address that has run out is asked for anew, once
            known = self._location
            location = known or self._locate()
            with _get(location.url, location.headers, start, stop) as answer:
                if answer.status_code not in _ENDED:
                    yield from _checked_blocks(self._file, answer, start, stop)
                    return
                status = answer.status_code
            with self._lock:
                if self._location is location:
                    self._location = None
            if known is None:
                break
        raise ConnectionError(f"{urlsplit(location.url).hostname} refused it with status {status}")

    def _locate(self) -> _Location:
        failures = len(self._failures)
        with self._lock:
            if self._location is None:
                if len(self._failures) > failures:  # while this thread waited for its turn
                    raise self._failures[-1]
                try:
                    self._location = self._resolve()
                except Exception as error:
                    self._failures.append(error)
                    raise
            return self._location

    def _resolve(self) -> _Location:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers

        repo, commit, path = _HUB_FILE.fullmatch(self._file.url).groups()  # type: ignore[union-attr]
        asked = hf_hub_url(repo, path, repo_type="dataset", revision=commit)
        found = asked
        if len(self._file.oid) != _GIT_HASH:
            found = get_hf_file_metadata(asked, timeout=CONNECT_SECONDS + SILENT_SECONDS).location
        # The token is for the Hub alone: an address elsewhere carries its permission in itself.
        is_the_hubs = urlsplit(found)[:2] in (urlsplit(asked)[:2], urlsplit(HUB)[:2])
        return _Location(found, build_hf_headers(library_name="shardkit") if is_the_hubs else {})


class _FsspecReader:
    """A file that an fsspec driver reads."""

    def __init__(self, file: InputFile) -> None:
        self._file = file

    def blocks(self, start: int, stop: int) -> Iterator[bytes]:
        """As `_HttpReader.blocks`, all at once."""
        _count(requests=1)
        root = _root(self._file.url)
        with _ONE_CONNECTION:
            filesystem = _drivers.get(root) or open_filesystem(self._file.url, error=SourceError)[0]
            if not (is_parallel := getattr(filesystem, "async_impl", False)):
                _drivers[root] = filesystem  # it would log in again in each thread
                data = self._read_in_turn(filesystem, start, stop)
        if is_parallel:
            data = filesystem.cat_file(filesystem._strip_protocol(self._file.url), start=start, end=stop)
        check_unchanged(self._file)
        if len(data) > stop - start:
            raise OSError(f"{len(data):,} bytes came for the {stop - start:,} asked for")
        yield bytes(data)

    def _read_in_turn(self, filesystem: Any, start: int, stop: int) -> bytes:
        path = filesystem._strip_protocol(self._file.url)
        with filesystem.open(path, "rb", cache_type="none") as handle:
            check_size(self._file, getattr(handle, "size", None))
            handle.seek(start)
            return bytes(handle.read(stop - start))


def _root(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _get(url: str, headers: Mapping[str, str] | None, start: int, stop: int) -> Response:
    """Ask for the bytes `[start, stop)`. With `headers`, which are the Hub's, no login of `~/.netrc` replaces its
    token."""
    _count(requests=1)
    asked = {"Accept-Encoding": "identity", **(headers or {}), "Range": f"bytes={start}-{stop - 1}"}
    return http_session.get(url, asked, SILENT_SECONDS, netrc=headers is None)


def _checked_blocks(file: InputFile, answer: Response, start: int, stop: int) -> Iterator[bytes]:
    """The body of an answer that is what was asked for: these bytes of that version of the file, as they are."""
    if _HUB_FILE.fullmatch(file.url):
        asked = {"accept-encoding": "identity"}
        hub_answers.check_answer("GET", answer.url, asked, answer.status_code, answer.headers)
    if answer.status_code < 400 or answer.status_code == 416:
        check_stated(file, answer.headers)
    if answer.status_code == 404:
        raise FileNotFoundError(answer.reason or "404")
    answer.raise_for_status()
    host = urlsplit(answer.url).hostname
    if (coding := answer.headers.get("Content-Encoding", "identity")) != "identity":
        raise SourceError(
            f"cannot read {file.path}: {host} sends it as {coding}, though the bytes as they are were asked for: a "
            f"proxy or mirror on the way changes them; read {public_address(file.url)} without it"
        )
    came_from = re.match(r"bytes ([0-9]+)-", answer.headers.get("Content-Range", ""))
    if came_from is None:  # some servers do not say; then it must be as long as what was asked for
        is_part = answer.status_code == 206 and answer.headers.get("Content-Length") == str(stop - start)
    else:
        is_part = answer.status_code == 206 and int(came_from[1]) == start
    if not is_part and (start, stop) != (0, file.bytes):
        raise OSError(f"{host} does not serve ranges (status {answer.status_code}): download the file first")
    left = stop - start
    since, came = time.monotonic(), 0
    while block := http_session.next_block(answer, min(BLOCK_BYTES, left + 1)):
        if len(block) > left:
            raise OSError(f"{host} sent more than the {stop - start:,} bytes asked for")
        left -= len(block)
        came += len(block)
        yield block
        if (now := time.monotonic()) - since > SILENT_SECONDS:
            if came < SLOWEST_BYTES:
                raise ConnectionError(f"{host} sent {came:,} bytes in {now - since:.0f} seconds")
            since, came = now, 0
