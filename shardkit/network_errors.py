"""Which errors of the network's clients are worth another try, and what is said of each: one table, `RULES`.

`network.py` says what the marks are, finds those of an exception, and follows the table.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shardkit.errors import AuthError, DiskFull, ShardkitError

LOGIN = "`hf auth login`, or set HF_TOKEN"
_NEW_TOKEN = f"make one with write access at https://huggingface.co/settings/tokens, then {LOGIN}"
_NO_TOKEN = f"needs a token and there is none: {_NEW_TOKEN}"
_AGAIN = "run the same command again, it goes on"
_ODD = f"does not answer as it should ({{detail}}): {_AGAIN}"
_AWAY = f"does not answer as it should ({{detail}}): look at this machine's network{{mirror}}, then {_AGAIN}"
_LATER = "answered {status} ({said}): run the same command later, it goes on"
_RIGHTS = "does not allow it ({said}): check your rights and credentials there"
_IN_THE_WAY = "is not a folder, or has a file in the way ({said}): choose another"
_QUOTA = (
    "has no room for it, its owner's storage quota is full ({said}): make room, or take a larger plan at "
    f"https://huggingface.co/settings/billing, then {_AGAIN}; what has not arrived stays here"
)
# The Hub's words: "storage limit reached", "exceeded your storage quota", "out of storage", "storage patterns".
STORAGE_FULL = re.compile(
    r"storage (limit|space|quota|patterns|is full)|(storage|space)\b.{0,40}\b(exceeded|reached)|upload more data"
    r"|(exceed\w*|reach\w*|over|out of)\b.{0,40}\bstorage\b",
    re.IGNORECASE,
)
_PLAN = "wants a larger plan ({said}): https://huggingface.co/settings/billing, or push to a place of another kind"
_EMAIL = "wants this account's e-mail address confirmed first ({said}): https://huggingface.co/settings/account"
_SIGNED = (
    "is not given out by the Hub's file server ({asked}: {said}): run the same command again, it goes on; if that does "
    "not help, a proxy or firewall here does not let that host pass"
)
_DISK = (
    "waits for a file on this machine that cannot be read or written ({said}): look at its disk or mount (dmesg, "
    f"mount), then {_AGAIN}"
)
_HANDLES = f"was not asked: {{said}}: allow more open files (ulimit -n 4096), then {_AGAIN}"
_OFFLINE = "was not asked, offline mode is on: unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)"
_OURS = "was not asked: {said}: the Hub's client keeps files there, set HF_HOME to a folder of your own"
_MISSING = ("RepositoryNotFoundError", "BucketNotFoundError")  # no repo or bucket, or none that the token may see
NO_ROOM = "no room left on the disk ({said}); make room and run the same command again"

_NO_LOCKS = (
    "was not asked: the Hub's client keeps files on a file system without file locks ({said}): set HF_HOME to a folder "
    "on a disk of this machine"
)
_PAGE = "is not served by {endpoint}, which answered {asked} with a page ({status}), and not as the Hub does: {advice}"
_PORTAL = "was not asked: this network wants a login first ({status}): open any page in a browser here"
_CARD = (
    "refused it ({status}: {said}): mend the lines between the two --- at the top of the README.md there, then "
    f"{_AGAIN}"
)
_LACKS = (
    "is not whole at {endpoint}, which answered {asked} with 404 and without the Hub's own error code: it does not "
    "have this; {advice}"
)
_PROXY = "was not asked: the proxy wants a login ({said}); give it in HTTPS_PROXY, as http://user:password@host:port"
_CERTIFICATE = (
    "shows a certificate that is not trusted here ({said}): a proxy that opens connections, or a network that wants a "
    "login, stands between; name its certificate in SSL_CERT_FILE and in REQUESTS_CA_BUNDLE, or log in"
)


# Marks of a server that cannot be reached: it may be no server at all.
UNREACHABLE = ("ConnectError", "ConnectTimeout", "ClientConnectorError", "ConnectionRefusedError", "gaierror")


class Rule(NamedTuple):
    """What is done about an error that has all of `marks` (see `_marks_of` in `network.py`)."""

    marks: set[str | int]
    retry: bool
    error: type[ShardkitError] | None  # None: the class that the caller asks for
    # After "cannot WHAT: WHERE". `said` is the client's text, `detail` has its class in front, `asked` is the request
    # that was answered, `endpoint` whom the Hub's client asks, `advice` what to look at where answers are wrong.
    says: str


RULES = [  # the first that fits is followed
    Rule({"WrongAnswer"}, False, None, "is not served by {endpoint}, which {said}: {advice}"),
    Rule({"storage full"}, False, None, _QUOTA),  # a 403, or of a commit a 400
    Rule({"GatedRepoError"}, False, AuthError, f"is gated: accept its conditions on its page, then {LOGIN}"),
    *(Rule({name, "no token", "create"}, False, AuthError, _NO_TOKEN) for name in _MISSING),
    *(
        Rule(
            {name, "no token"},
            False,
            AuthError,
            f"does not exist, or is private and there is no token: check the name, {LOGIN}",
        )
        for name in _MISSING
    ),
    *(
        Rule(
            {name},
            False,
            AuthError,
            "does not exist, or your token may not see it: check the name and account",
        )
        for name in _MISSING
    ),
    *(Rule({"Hub", status, "page", "no code"}, False, None, _PAGE) for status in (401, 405, 407, 451, 511)),
    Rule({"Hub", 401, "no token"}, False, AuthError, _NO_TOKEN),
    Rule({"Hub", 401}, False, AuthError, f"does not accept the token (wrong or expired): {_NEW_TOKEN}"),
    # The Hub sends readers on to a signed URL. One that has run out answers 403; the next try gets a new one.
    Rule({"Hub", 403, "redirected"}, True, AuthError, _SIGNED),
    Rule({"Hub", 403, "page", "no code"}, False, None, _PAGE),
    Rule({"DisabledRepoError"}, False, None, "was disabled by the Hub ({said}): its page says why, or use another"),
    Rule({"Hub", 403, "e-mail"}, False, AuthError, _EMAIL),
    Rule(
        {"Hub", 403},
        False,
        AuthError,
        f"does not allow it (a read-only token, or not your repo? {{said}}): {_NEW_TOKEN}, or push to a repo of yours",
    ),
    Rule({"Hub", 402}, False, None, _PLAN),
    Rule({401}, False, AuthError, _RIGHTS),
    Rule({403}, False, AuthError, _RIGHTS),
    Rule(
        {"RevisionNotFoundError"},
        False,
        None,
        "has no such revision: check --revision, or what stands after the @ or /tree/ of the address",
    ),
    Rule({"Hub", "EntryNotFoundError", "SourceError"}, False, None, "has no such file: check the path and --revision"),
    Rule(
        {"Hub", "EntryNotFoundError"}, False, None, "has no such file: the dataset there is unfinished, push it again"
    ),
    Rule({"Hub", 404, "no code"}, False, None, _LACKS),
    Rule({"BadRequestError", "card"}, False, None, _CARD),
    Rule({"BadRequestError"}, False, None, "refused it ({status}: {said})"),
    Rule({511}, False, None, _PORTAL),
    *(Rule({status}, True, None, _LATER) for status in (408, 409, 412, 425, 429, 500, 502, 503, 504, "over 504")),
    Rule({"HTTP"}, False, None, "refused it ({status}: {said})"),
    Rule(
        {"OfflineModeIsEnabled"},
        False,
        None,
        _OFFLINE,
    ),
    Rule({"HFValidationError"}, False, None, "is not a name the Hub takes ({said}): write user/name"),
    *(Rule({number}, False, DiskFull, NO_ROOM) for number in ("ENOSPC", "EDQUOT")),
    *(Rule({number}, False, None, _NO_LOCKS) for number in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP")),
    Rule(
        {"DatasetNotFoundError"}, False, AuthError, f"is not for you to read ({{said}}): check its page, then {LOGIN}"
    ),
    *(Rule({"Hub's", "own file", number}, False, None, _OURS) for number in ("EACCES", "EPERM", "EROFS")),
    *(Rule({number}, True, None, _DISK) for number in ("EIO", "ESTALE")),
    *(Rule({number}, False, None, _HANDLES) for number in ("EMFILE", "ENFILE")),
    Rule({"EROFS"}, False, None, "is on a disk that is mounted read-only ({said}): choose another place"),
    Rule({"FileNotFoundError"}, False, None, "has no such file or folder ({said}): check the name"),
    Rule({"SpecialFileError"}, False, None, "is not a plain file ({said}): put the file there that it should be"),
    Rule({"error_perm", "login"}, False, AuthError, _RIGHTS),
    Rule({"error_perm"}, False, None, "refused it ({said})"),
    Rule({"PermissionError", "content"}, False, None, _RIGHTS),
    Rule({"PermissionError"}, False, AuthError, _RIGHTS),
    *(Rule({f"{name}Error"}, False, None, _IN_THE_WAY) for name in ("FileExists", "NotADirectory", "IsADirectory")),
    Rule({"credentials"}, False, AuthError, "needs credentials ({said}): set them as its own tools ask"),
    Rule(
        {"illegal header"},
        False,
        AuthError,
        f"was not asked: the token holds a space or line end, or is empty; check HF_TOKEN, or {LOGIN}",
    ),
    Rule({"ArrowException"}, False, None, "is no whole parquet file ({said}): fetch or make it again"),
    Rule({"content"}, False, None, "is damaged, or no such file ({detail}): fetch or make it again"),
    Rule({"ProxyError", "login"}, False, None, _PROXY),
    Rule({"certificate"}, False, None, _CERTIFICATE),
    Rule({"JSONDecodeError"}, True, None, _ODD),
    Rule({"ValueError"}, False, None, "cannot be used that way ({said})"),
    *(Rule({name}, True, None, _AWAY) for name in UNREACHABLE),
    Rule(set(), True, None, _ODD),
]
