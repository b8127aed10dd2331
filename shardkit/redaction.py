"""What may be shown and written down: addresses without their secrets, text without control characters.

Every message of ours passes through here (`errors.py`), and so does every address that is recorded or printed.
"""

from __future__ import annotations

import logging
import os
import re
import sys

_TOKENS = [
    # `hf_datasets` and "basic vocabulary" do not match
    (re.compile(r"hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{10,}"), "hf_[hidden]"),
    (re.compile(r"(?i:\b(bearer|basic))\s+(?=[a-z]*[^a-z\s'\"])[^\s'\"]+"), r"\1 [hidden]"),
]
# `Path` makes one slash of two. A bound, or a megabyte of letters would be read again from each of them.
_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{1,63}):(?P<slashes>//?)"
_QUOTE_AT_END = r"['\"](?:[\s,;:.)\]}>]|$)"
_IN_TEXT = re.compile(rf"{_SCHEME}(?P<rest>(?:(?!::[A-Za-z]+://|{_QUOTE_AT_END})\S)*)")
_ALONE = re.compile(rf"{_SCHEME}(?P<rest>(?:(?!::[A-Za-z]+://).)*)", re.DOTALL)  # fsspec chains addresses with `::`
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")
_HOST_AT_END = re.compile(rf"{_HOST.pattern}:?\W*")  # and what may follow it in a sentence
_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")  # CONTAINER@ACCOUNT: what stands before the @ names the place
_PLAIN_FILES = ("file", "local")  # a name, in which ? and # mean nothing
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# The path of an address without its host, as urllib3 writes it, up to the query.
_PATHS = re.compile(r"""((?:\burl: |"(?:GET|HEAD|PUT|POST|DELETE) )/[^\s?"']*)\?[^\s"')]+""")
_LOGGERS_OF_ADDRESSES = (
    *("fsspec", "fsspec.http", "fsspec.cached", "fsspec.caching", "fsspec.reference"),
    *("httpx", "httpx2", "s3fs", "urllib3.connectionpool", "webhdfs"),
)


def public_address(address: str) -> str:
    """`address` without user, password, query and fragment: what is recorded and printed of it.

    Local paths and `user/name` have none of these, and stay as they are.

    >>> public_address("https://user:password@host/x.jsonl?X-Amz-Signature=5e1f")
    'https://host/x.jsonl'
    """
    return _ALONE.sub(_public, address)


def redact(text: str) -> str:
    """`text` without tokens, and with every address in it in its public form."""
    if token := hub_token():
        text = text.replace(token, "[hidden]")
    for pattern, replacement in _TOKENS:
        text = pattern.sub(replacement, text)
    return _IN_TEXT.sub(_public, _PATHS.sub(r"\1", text))


def printable(text: str, *, lines: bool = True) -> str:
    r"""`text` with its control characters as escapes, so that a terminal does not obey what is in somebody else's text.

    Letters of every script stay, and line ends and tabs, unless `lines` is False. What reverses the direction of
    writing is escaped.

    >>> printable("\x1b[2Jhello")
    '\\x1b[2Jhello'
    """
    text = _CONTROL.sub(_escaped, text)
    return text if lines else re.sub(r"[\n\t]", _escaped, text)


class _Redaction(logging.Filter):
    """Takes the secrets out of a client's log: clients log whole addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
            record.exc_info = None
        return True


_REDACTION = _Redaction()


def redact_logs() -> None:
    """Have the clients that log the addresses they ask for, at whatever level, log them without secrets."""
    for name in _LOGGERS_OF_ADDRESSES:
        logging.getLogger(name).addFilter(_REDACTION)


def user_of(address: str) -> str:
    """The user and password that stand before the host in `address`, as they are there; "" for none."""
    match = _ALONE.search(address)
    return _split(match)[0] if match else ""


def _public(match: re.Match[str]) -> str:
    _, rest = _split(match)
    if match["scheme"].lower() not in _PLAIN_FILES:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{match['scheme']}:{match['slashes']}{rest}"


def _split(match: re.Match[str]) -> tuple[str, str]:
    """User and password of an address, and what follows them and their @."""
    rest = match["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, host = authority.rpartition("@")
    if at and (match["scheme"].lower() not in _CONTAINERS or ":" in user):
        return user, rest[len(user) + 1 :]
    plausible = _HOST_AT_END if host == rest or "@" not in rest else _HOST
    if at or match["slashes"] == "/" or plausible.fullmatch(host):
        return "", rest
    user, at, host = rest.rpartition("@")  # a password with a slash in it
    return (user, host) if at else (rest, "[hidden]")


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


def hub_token() -> str | None:
    """The Hub's token, to hide it; that of the environment where the process has not loaded the Hub's client."""
    hub = sys.modules.get("huggingface_hub")
    return hub.get_token() if hub is not None else os.environ.get("HF_TOKEN")
