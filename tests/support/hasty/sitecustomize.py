"""On a test's PYTHONPATH: in the downloader's process, and there alone, waits between tries take milliseconds. In every
process, the file system has no locks if `WITHOUT_LOCKS` names the error number that it says so with.

Python imports this before anything else; everything after is the product's own.
"""

import os
import sys

if "WITHOUT_LOCKS" in os.environ:
    import errno
    import fcntl

    def _refuse(*_arguments: object) -> None:
        code = getattr(errno, os.environ["WITHOUT_LOCKS"])
        raise OSError(code, os.strerror(code))

    fcntl.flock = fcntl.lockf = os.lockf = _refuse

if "shardkit.remote.streaming.downloader" in sys.orig_argv:
    import time
    from typing import Any

    import huggingface_hub.file_download
    import huggingface_hub.utils._http

    from shardkit import network

    class Hasty:
        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds / 1000)

    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        module.time = Hasty()
    network.FIRST_WAIT_SECONDS = 0.001
