"""What no Hub answers: pages of HTML, or other JSON, from mirrors, proxies and the login pages of networks.

They answer with "200 OK", or send compressed bytes to who asked for plain ones; the Hub's client takes either for
success. `hub_session.py` has each answer to a call of ours looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shardkit.hub_address import HUB, endpoint, is_mirror
from shardkit.redaction import public_address

# What of the API a dataset needs: an object with a field, or a list of such objects. Other JSON is an error deep in the
# client, or an empty listing to it.
_SHAPES: tuple[tuple[re.Pattern[str], type, str], ...] = (
    (re.compile(r"repos/create"), dict, "url"),
    (re.compile(r"(?:datasets|models)/[^/]+/[^/]+(?:/revision/[^/]+)?"), dict, "id"),
    (re.compile(r"(?:datasets|buckets)/[^/]+/[^/]+/(?:tree|paths-info)(?:/.+)?"), list, "path"),
    (re.compile(r"datasets/[^/]+/[^/]+/commits/.+"), list, "id"),
    (re.compile(r"datasets/[^/]+/[^/]+/commit/.+"), dict, "commitOid"),
    (re.compile(r"datasets/[^/]+/[^/]+/preupload/.+"), dict, "files"),
    (re.compile(r"datasets/[^/]+/[^/]+/refs"), dict, "branches"),
)
_COMPRESSED = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
_FILES = "/resolve-cache/"  # below the API, but the bytes of files


class WrongAnswer(OSError):
    """An answer that no Hub gives, in words that follow "it": no other try mends it."""


def advice() -> str:
    """What to look at where answers are wrong."""
    if is_mirror():
        return "check HF_ENDPOINT, or run the same command without it"
    return f"a proxy, or a network that wants a login, answers in the Hub's place: open {HUB} in a browser here"


def or_mirror(place: str) -> str:
    """What to add where the owner of a `place` on the Hub is blamed for what may be a mirror's fault."""
    return f", or {endpoint()} shows an old or damaged copy: {advice()}" if is_mirror() and "hf://" in place else ""


def request_of(response: Any) -> str:
    """The request that `response` answers, without secrets: "GET https://host/path"."""
    request = getattr(response, "request", None)
    return public_address(f"{request.method} {request.url}") if request is not None else "a request"


def check_answer(method: str, url: str, asked: Mapping[str, str], status: int, answered: Mapping[str, str]) -> None:
    """Raise `WrongAnswer` if an answer with these headers is none that a Hub, or its CDN, gives to a request.

    Looked at is only what says it was done (2xx). For clients of the Hub beside its own.
    """
    if not 200 <= status < 300:
        return
    asked, answered = _lower(asked), _lower(answered)
    request = public_address(f"{method} {url}")
    coding = answered.get("content-encoding", "").lower()
    if method == "GET" and asked.get("accept-encoding") == "identity" and coding in _COMPRESSED:
        raise WrongAnswer(f"answered {request} with bytes in {coding}, where plain ones (identity) were asked for")
    kind = answered.get("content-type", "").partition(";")[0].strip().lower()
    path = public_address(url).lower()
    if kind == "text/html" and answered.get("content-length") != "0" and not path.endswith((".html", ".htm")):
        expected = "JSON" if "/api/" in path and _FILES not in path else "data"
        raise WrongAnswer(f"answered {request} with a page of HTML ({status}), where {expected} should be")


def check_response(response: Any) -> None:
    """`check_answer` for the client's own session, and whether the API's JSON is what it should be."""
    method, url = response.request.method, str(response.request.url)
    check_answer(method, url, response.request.headers, response.status_code, response.headers)
    api, path = f"{endpoint()}/api/", public_address(url)
    if not path.startswith(api) or method == "HEAD" or not response.is_success:
        return
    shape = next(((kind, key) for pattern, kind, key in _SHAPES if pattern.fullmatch(path[len(api) :])), None)
    if shape is None:
        return
    text = response.read()
    try:
        found = json.loads(text)
    except ValueError:
        what = f"{len(text):,} bytes that are no JSON" if text else "nothing at all"
        raise WrongAnswer(f"answered {request_of(response)} with {what} ({response.status_code})") from None
    if not _has(found, *shape):
        raise WrongAnswer(
            f"answered {request_of(response)} with other JSON than the Hub's ({json.dumps(found)[:60]}), without "
            f"{shape[1]!r}"
        )


def _has(found: Any, kind: type, key: str) -> bool:
    items = found if kind is list else [found]
    return isinstance(found, kind) and all(isinstance(item, dict) and key in item for item in items)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
