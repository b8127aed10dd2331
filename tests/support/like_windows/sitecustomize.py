"""On a test's PYTHONPATH: a Python that lacks of `os` and `signal` what Windows's lacks, as far as Python itself can do
without it."""

import os
import signal

for name in (
    "readv",
    "preadv",
    "pwrite",
    "pread",
    "writev",
    "lockf",
    "memfd_create",
    "posix_fadvise",
    "sched_getaffinity",
):
    delattr(os, name)
for name in ("O_CLOEXEC", "O_DIRECT", "O_NONBLOCK", "O_SYNC", "geteuid", "getuid"):
    delattr(os, name)
del signal.SIGHUP
