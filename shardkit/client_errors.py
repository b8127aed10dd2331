"""What an exception is that came out of a client's call: whose it is, what it hides, and which HTTP status it is of.

The clients are `huggingface_hub`, `hf_xet`, `requests`, the fsspec drivers, `datasets` and pyarrow; none is imported
here.
"""

from __future__ import annotations

import re
import sys
from types import TracebackType

# Modules of the clients. What their code raises is a failure of the network or of the data.
_CLIENT = re.compile(
    r"(adlfs|aiohttp|aiobotocore|asyncio|azure|botocore|datasets|fsspec|ftplib|gcsfs|google|h11|hf_xet|httpcore2?"
    r"|httpx2?|huggingface_hub|paramiko|pyarrow|requests|s3fs|smbprotocol|urllib3)(\.|$)"
)


def status_of(error: BaseException) -> int | None:
    """The HTTP status in an exception of huggingface_hub or requests (`response.status_code`), aiohttp (`status`) or
    gcsfs."""
    response = getattr(error, "response", None)
    holder = error if response is None else response  # requests calls a response with an error status false
    for name in ("status_code", "status", "code"):  # aiohttp has a `code` that it calls deprecated
        value = getattr(holder, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def root_of(error: BaseException) -> BaseException:
    """What a client's wrapper exceptions hide: the Hub's answer if there is one in the chain, else the first cause."""
    chain, causes = [error], [error]
    while (below := _context_of(chain[-1])) is not None and below not in chain:
        chain.append(below)
    for item in chain:
        if not class_names(item).isdisjoint({"HfHubHTTPError", "WrongAnswer"}):
            return item
    # fsspec calls whatever kept it from a file behind http "not found": a refusal, or no connection
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause and type(cause).__module__.startswith("aiohttp."):
        return error if status_of(cause) == 404 else cause
    if not (isinstance(error, RuntimeError | ValueError) or "LocalEntryNotFoundError" in class_names(error)):
        return error
    while (below := causes[-1].__cause__) is not None and below not in causes:
        causes.append(below)
    return causes[-1]


def _context_of(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def is_a_clients(error: BaseException) -> bool:
    """Whether `error` says something of the network, the disk or the data, and is no bug of ours."""
    if isinstance(error, OSError) or any(_CLIENT.match(base.__module__) for base in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError | ValueError | EOFError) and _raised_by_client(error.__traceback__)


def _raised_by_client(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame outside Python's own library is a client's."""
    modules: list[str] = []
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__")))
        traceback = traceback.tb_next
    outside = [name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names]
    return bool(outside) and _CLIENT.match(outside[-1]) is not None
