"""Files that are whole or not there: atomic writes, hashes, free space. Knows nothing of shards."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

from shardkit.errors import DiskFull, OutputError

_BLOCK = 1 << 20


def fsync_dir(path: Path) -> None:
    """Make a rename in `path` durable. A no-op where directories cannot be synced (Windows)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network mounts refuse it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` under its final name only when it is whole: temp file, fsync, `os.replace`."""
    payload = data.encode() if isinstance(data, str) else data
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temp, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
        fsync_dir(path.parent)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise write_error(error, path, len(payload)) from error


def write_error(error: OSError, path: Path, needed: int) -> OutputError:
    """The one-line error for a failed write to `path`; `needed` is in bytes."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = free_bytes(path)
        return DiskFull(
            f"no room to write {path}: {format_bytes(needed)} more are needed, {format_bytes(free)} are free; "
            "make room and run the same command again, it goes on from the last finished shard"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"no permission to write {path} ({error.strerror}): choose another folder or fix its rights")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in blocks (flat memory)."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path`, which need not exist yet."""
    probe = path.absolute()
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    return shutil.disk_usage(probe).free


def format_bytes(count: float) -> str:
    """A size for people, in decimal units: `200000128` gives `200.0 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
