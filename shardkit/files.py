"""Files that are whole or not there: atomic writes, long files, hashes, free space. Knows nothing of shards."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader, RawIOBase
from pathlib import Path

import psutil

from shardkit.errors import DiskFull, OutputError

_BLOCK = 1 << 20
_LOCAL = {"ntfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "squashfs", "apfs", "hfs"}
SMALL_BYTES = 256 << 20  # of a file that is read as a whole: a manifest of half a million shards
DIRECT_BLOCK = 2 << 20


def open_file(path: Path | str) -> BufferedReader:
    """Open a plain file to be read. Raises `OSError`, and at once for what is none: a pipe would be waited for."""
    return open(path, "rb", opener=_open_plain)


def _open_plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise shutil.SpecialFileError(errno.EINVAL, "it is a folder, a pipe or a device, no plain file", path)
    return descriptor


def read_small_file(path: Path | str, most: int = SMALL_BYTES) -> bytes:
    """All bytes of a plain file. Raises `OSError`, and before anything is read for one of more than `most` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {format_bytes(size)}, more than {format_bytes(most)}", str(path))
        return file.read(size)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, as far as it can be; of a link only the link."""
    if path.is_symlink() or path.is_file():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


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
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        raise write_error(error, path, len(payload)) from None


class LongFile:
    """A new file that is written front to back, in blocks of 2 MiB that go past the page cache where the system can
    (`O_DIRECT`): memory for the pages of a file that nobody reads soon costs more than writing it
    (benchmarks/RESULTS.md). Methods raise `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._block = mmap.mmap(-1, DIRECT_BLOCK)  # page-aligned, as direct writes must be
        self._filled = 0
        self._fd, self._direct = open_past_cache(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def write(self, data: memoryview | bytes) -> None:
        """Append `data`."""
        view = memoryview(data)
        while view:
            part = view[: DIRECT_BLOCK - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == DIRECT_BLOCK:
                self._write_out()

    def sync(self) -> int:
        """Write what is left and wait until all of it is on the disk; returns the file's size. Nothing is appended
        after it."""
        self._write_through_cache()  # the rest is no whole number of disk blocks
        self._write_out()
        os.fsync(self._fd)
        return os.fstat(self._fd).st_size

    def rewrite(self, data: bytes) -> None:
        """Replace the first bytes, once all others are written. To be followed by `sync`."""
        self._write_through_cache()
        self._write_out()
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.write(data)

    def sha256(self) -> str:
        """The hex SHA-256 of the synced file, read back."""
        digest = hashlib.sha256()
        for block in blocks_past_cache(self._path, os.fstat(self._fd).st_size):
            digest.update(block)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file, as far as it is written."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._block.close()
            os.close(fd)

    @property
    def waiting(self) -> int:
        """Bytes that are not handed to the system yet."""
        return self._filled

    def _write_out(self) -> None:
        with memoryview(self._block) as block:
            done = 0
            while done < self._filled:
                try:
                    done += os.write(self._fd, block[done : self._filled])
                except OSError as error:
                    if not self._direct or error.errno != errno.EINVAL:
                        raise
                    self._write_through_cache()  # block sizes that this disk cannot take
        self._filled = 0

    def _write_through_cache(self) -> None:
        if self._direct:
            write_through_cache(self._fd)
            self._direct = False


def open_past_cache(path: Path | str, flags: int) -> tuple[int, bool]:
    """Open a file so that reads and writes go past the page cache, if its file system can; whether it can."""
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    if direct := getattr(os, "O_DIRECT", 0):
        try:
            return os.open(path, flags | direct, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:  # some file systems have no direct access
                raise
    return os.open(path, flags, 0o666), False


def write_through_cache(descriptor: int) -> None:
    """From here on, write through the page cache to a file that `open_past_cache` opened."""
    if sys.platform == "linux":  # elsewhere there is no O_DIRECT
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT)


def write_at(descriptor: int, data: memoryview, place: int) -> int:
    """Write bytes of a file from `place` on; returns how many. Where there is no `pwrite` (Windows), for one thread at
    a time. Raises `OSError`."""
    if hasattr(os, "pwrite"):
        count: int = os.pwrite(descriptor, data, place)
        return count
    os.lseek(descriptor, place, os.SEEK_SET)
    return os.write(descriptor, data)


def blocks_past_cache(path: Path | str, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of a file, at most `DIRECT_BLOCK` at a time, read past the page cache where that can be;
    each block is overwritten by the next. Raises `OSError`, also if the file has fewer."""
    descriptor, direct = open_past_cache(path, os.O_RDONLY)
    buffer = mmap.mmap(-1, DIRECT_BLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file, memoryview(buffer) as block:
        done = 0
        while done < size:
            try:
                count = file.readinto(block)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                write_through_cache(descriptor)
                direct = False
                continue
            if not count:
                raise OSError(errno.EIO, f"only {done:,} of {size:,} bytes can be read back")
            yield block[: min(count, size - done)]
            done += count


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
    return OutputError(f"cannot write {path}: {error.strerror or error}; {_advice(error.errno)}")


def _advice(code: int | None) -> str:
    if code in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return "something else of that name is in the way: move it away, or choose another folder"
    if code == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if code in (errno.EMFILE, errno.ENFILE):
        return "allow more open files (ulimit -n 4096), and run the same command again"
    if code in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV):
        return "look at that disk or mount (dmesg), then run the same command again, or choose another folder"
    return "choose another folder, or run the same command again"


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of a file's bytes, read in blocks (flat memory)."""
    with open_file(path) as file:
        return sha256_open(file)


def sha256_open(file: RawIOBase | BufferedReader) -> str:
    """The hex SHA-256 of what is left to read of an open file."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        digest.update(view[:count])
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path`, which need not exist yet."""
    probe = path.absolute()
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    return shutil.disk_usage(probe).free


def is_on_local_disk(path: Path) -> bool:
    """Whether the file system of `path` is known to be one of this machine: no network mount, no FUSE."""
    try:
        mounts = {Path(part.mountpoint): part.fstype.lower() for part in psutil.disk_partitions(all=True)}
        place = path.resolve()
    except OSError:  # a sandbox that does not say
        return False
    return next((mounts[folder] in _LOCAL for folder in (place, *place.parents) if folder in mounts), False)


def counted(number: int, what: str) -> str:
    """A number of things for people: `1 shard`, `2,000 shards`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def format_bytes(count: float) -> str:
    """A size for people, in decimal units: `200000128` gives `200.0 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
