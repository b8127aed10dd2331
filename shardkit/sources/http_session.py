"""One thread's HTTP connections for reading sources, by `requests`: its certificates, its time-outs, its errors.

Certificates are those of the system, of `SSL_CERT_FILE` and `SSL_CERT_DIR`, as for the Hub's own client, and those that
`requests` trusts (`certifi`'s, or `REQUESTS_CA_BUNDLE`). Proxies are those of the environment.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shardkit.redaction import redact_logs

if TYPE_CHECKING:
    from requests import Response, Session

CONNECT_SECONDS = 10.0
_NOBODY_THERE = ("NewConnectionError", "NameResolutionError")  # as urllib3 calls it
_PER_THREAD = threading.local()


def get(url: str, headers: Mapping[str, str], silent_seconds: float, *, netrc: bool = True) -> Response:
    """Begin a GET whose body has not been read. Without `netrc`, no login of the user's `~/.netrc` takes the place of a
    header. Raises `OSError`, the kind that `requests` raises, without the address, which may be signed."""
    from requests import exceptions

    auth: Callable[[Any], Any] | None = None if netrc else lambda request: request
    try:
        return _session().get(url, headers=headers, auth=auth, stream=True, timeout=(CONNECT_SECONDS, silent_seconds))
    except exceptions.ConnectionError as error:
        reason = getattr(error.args[0], "reason", None) if error.args else None
        said = f"{type(reason).__name__}: {reason}" if reason is not None else type(error).__name__
        if type(reason).__name__ in _NOBODY_THERE:
            raise ConnectionRefusedError(said) from None
        raise type(error)(said) from None


def next_block(answer: Response, most: int) -> bytes:
    """What has come of the body of `answer`, at most `most` bytes; nothing at its end. Raises `ConnectionError`."""
    from urllib3.exceptions import HTTPError

    try:
        block: bytes = answer.raw.read1(most, decode_content=False)
    except (HTTPError, OSError) as error:  # cut, or silent for too long
        raise ConnectionError(f"{type(error).__name__}: {error}") from error
    return block


def close_session() -> None:
    """Close the calling thread's connections."""
    if (session := _PER_THREAD.__dict__.pop("session", None)) is not None:
        session.close()


def _session() -> Session:
    if (session := getattr(_PER_THREAD, "session", None)) is None:
        import requests  # not needed where all files are local
        from requests.adapters import HTTPAdapter

        class Adapter(HTTPAdapter):
            """With the system's certificates too."""

            def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
                super().init_poolmanager(*arguments, ssl_context=_certificates(), **options)

            def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
                return super().proxy_manager_for(proxy, ssl_context=_certificates(), **options)

        redact_logs()
        session = _PER_THREAD.session = requests.Session()
        session.mount("https://", Adapter())
    return session


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    return ssl.create_default_context()
