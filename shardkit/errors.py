"""The exception tree. The command line shows a `ShardkitError`, or a fault of the machine (`machine_fault`), as one
line; any other exception is a bug and keeps its traceback.

    ShardkitError
    ├── UsageError            an option or a combination of options that cannot work (exit code 2)
    ├── SourceError           the text to read: no such file, column, revision; bytes that are not text
    ├── TokenizerError        no such encoding, vocabulary not found, wrong hash
    │   └── AuditError        the fast engine and the reference disagree: nothing is published
    ├── ShardError            a shard that is missing, short, headerless, or not what the manifest says
    ├── ManifestError         a manifest that is missing, unreadable or inconsistent
    ├── OutputError           an output folder that is not ours, holds another run, or cannot be written
    │   └── DiskFull          no room: says how much is needed
    ├── WorkerError           a worker process died: names its chunk
    ├── MissingPackage        a package that is not installed: says the command (an ImportError too)
    ├── HubError              the remote said no, or did not answer
    │   └── AuthError         token missing, wrong, read-only, or not enough for this repo
    └── StateError            a loader or checkpoint state that would silently change the data

Every message says what, where, expected, got, and the next step. None holds a secret, or a control character of
somebody's text: these are hidden, or escaped, when the exception is made. An option is written as the command line has
it, `--text-field`, and becomes an argument, `text_field=`, where the message is for Python. What stands between
backticks is a command, and stays.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from shardkit.extras import PACKAGES, install, name_of_missing
from shardkit.redaction import printable, redact

_SWITCHES = {
    "allow-gaps",
    "overwrite",
    "private",
    "repair",
    "skip-bad-rows",
    "skip-duplicates",
}  # options that have no value
# A command, or an option; of this its name, and a value: what follows a `=`, or a number, a quoted text, or a word in
# capitals that stands for one.
_OPTION = re.compile(
    r"`[^`]*`|(?<![\w/.-])--(?P<name>[a-z][a-z0-9-]*)"
    r"(?:=(?P<given>[^\s,;:)]+)| (?P<value>[0-9][0-9,.]*\b|'[^']*'|[A-Z]+\b))?"
)
_for_command_line = False


def _as_arguments(text: str) -> str:
    """`text`, in which options are as the command line has them, for Python.

    >>> _as_arguments("no output folder: give --out DIR, or --overwrite")
    'no output folder: give out=DIR, or overwrite=True'
    >>> _as_arguments("x is busy: wait, or choose another --out (`shardkit push --overwrite`)")
    'x is busy: wait, or choose another out= (`shardkit push --overwrite`)'
    """

    def argument(match: re.Match[str]) -> str:
        if match["name"] is None:
            return match[0]
        name = match["name"].replace("-", "_")
        if match["name"] in _SWITCHES:
            return f"{name}=True"
        if text.startswith(" is ", match.end()):  # "--workers is 0"
            return name
        given, value = match["given"], match["value"] or ""
        return f"{name}={value if given is None else repr(given)}"

    return _OPTION.sub(argument, text)


def _fit_to_show(parts: tuple[object, ...]) -> tuple[object, ...]:
    shown = [printable(redact(part)) if isinstance(part, str) else part for part in parts]
    return tuple(_as_arguments(part) if isinstance(part, str) and not _for_command_line else part for part in shown)


class ShardkitError(Exception):
    """Base of every error that is the input's, the machine's or the network's fault, not a bug."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*_fit_to_show(parts))

    @staticmethod
    @contextmanager
    def naming_flags() -> Iterator[None]:
        """Have messages name options as a command line has them, `--text-field`, while the block runs: for command
        lines, and for processes that report to another one, which puts it in its own words."""
        global _for_command_line
        before, _for_command_line = _for_command_line, True
        try:
            yield
        finally:
            _for_command_line = before


class ShardkitWarning(UserWarning):
    """Something that a user should know and that stops nothing."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*_fit_to_show(parts))


class UsageError(ShardkitError):
    """An option, or a combination of options, that cannot work."""


class SourceError(ShardkitError):
    """The text to read is missing, unreadable or not text."""


class TokenizerError(ShardkitError):
    """A tokenizer that cannot be found, loaded or trusted."""


class AuditError(TokenizerError):
    """The fast engine and the reference disagree on a document."""


class ShardError(ShardkitError):
    """A shard that is missing, damaged, or not what the manifest says."""


class ManifestError(ShardkitError):
    """A manifest that is missing, unreadable or inconsistent."""


class OutputError(ShardkitError):
    """An output folder that is foreign, holds another run, or cannot be written."""


class DiskFull(OutputError):
    """No room left on the disk, or within the bound that the user set."""


class WorkerError(ShardkitError):
    """A worker process died."""


class MissingPackage(ShardkitError, ImportError):
    """A package that is needed here and not installed."""


class HubError(ShardkitError):
    """The remote refused, failed, or did not answer."""


class AuthError(HubError):
    """The token is missing, wrong, read-only, or not enough for this repo."""


class StateError(ShardkitError):
    """A saved state that would silently change the data if it were loaded."""


_MACHINE_FAULTS = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EMFILE: "allow more open files (ulimit -n 4096)",
    errno.ENFILE: "close other programs: the machine has no file handle left",
    errno.ENOMEM: "free some memory",
    errno.EIO: "look at the disk (dmesg): it fails to read or write",
    errno.EROFS: "choose another folder, or mount that one for writing",
    errno.EACCES: "choose another folder, or fix its rights",
    errno.EPERM: "choose another folder, or fix its rights",
    errno.ESTALE: "look at the network mount: it lost the file",
    errno.ENOENT: "something removed it while it was in use",
    errno.ENOTDIR: "something replaced it while it was in use",
}


def missing_package(error: BaseException, needed_by: str = "") -> MissingPackage | None:
    """The one line for an import that failed because a package is not installed, and the command that installs it; None
    for any other error. `needed_by` says what needs it, where that is more than the package itself says."""
    if not isinstance(error, ImportError) or isinstance(error, ShardkitError):
        return None
    if (name := name_of_missing(error)) is None:
        return None
    return MissingPackage(
        f"{name}, needed by {needed_by or PACKAGES[name].needed_by}, is not installed: {install(name)}"
    )


def machine_fault(error: BaseException) -> ShardkitError | None:
    """The one line for an error that is the machine's and no bug: no room, no memory, no rights, a failing disk, a file
    that was removed in mid-run, a package that is not installed; None for any other. For command lines; a library call
    raises the error itself.

    >>> import errno
    >>> from shardkit import machine_fault
    >>> print(machine_fault(OSError(errno.ENOSPC, "No space left on device", "/data/x.npy")))
    No space left on device (/data/x.npy): make room on that disk, and run the same command again
    """
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return ShardkitError("no room for another thread: free memory, or allow more (ulimit -u, ulimit -v)")
    if isinstance(error, MemoryError):
        return ShardkitError("out of memory: use fewer --workers, or a machine with more")
    if (missing := missing_package(error)) is not None:
        return missing
    if not isinstance(error, OSError) or error.errno not in _MACHINE_FAULTS:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return ShardkitError(f"{error.strerror}{where}: {_MACHINE_FAULTS[error.errno]}, and run the same command again")
