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
    ├── HubError              the remote said no, or did not answer
    │   └── AuthError         token missing, wrong, read-only, or not enough for this repo
    └── StateError            a loader or checkpoint state that would silently change the data

Every message says what, where, expected, got, and the next step. None holds a secret, or a control character of
somebody's text: these are hidden, or escaped, when the exception is made.
"""

from __future__ import annotations

import errno

from shardkit.redaction import printable, redact


def _fit_to_show(parts: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(printable(redact(part)) if isinstance(part, str) else part for part in parts)


class ShardkitError(Exception):
    """Base of every error that is the input's, the machine's or the network's fault, not a bug."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*_fit_to_show(parts))


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


def machine_fault(error: BaseException) -> ShardkitError | None:
    """The one line for an error that is the machine's and no bug: no room, no memory, no rights, a failing disk, a file
    that was removed in mid-run; None for any other. For command lines; a library call raises the error itself.

    >>> import errno
    >>> from shardkit import machine_fault
    >>> print(machine_fault(OSError(errno.ENOSPC, "No space left on device", "/data/x.npy")))
    No space left on device (/data/x.npy): make room on that disk, and run the same command again
    """
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return ShardkitError("no room for another thread: free memory, or allow more (ulimit -u, ulimit -v)")
    if isinstance(error, MemoryError):
        return ShardkitError("out of memory: use fewer --workers, or a machine with more")
    if not isinstance(error, OSError) or error.errno not in _MACHINE_FAULTS:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return ShardkitError(f"{error.strerror}{where}: {_MACHINE_FAULTS[error.errno]}, and run the same command again")
