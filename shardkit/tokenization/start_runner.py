"""Which runner a run has, by its name. Each is imported when it is asked for."""

from __future__ import annotations

import os
import re
import socket

from shardkit.cores import available_cores
from shardkit.errors import UsageError, WorkerError
from shardkit.sources.source import Source
from shardkit.tokenization.run_size import useful_workers
from shardkit.tokenization.runner import Runner

_ADDRESS = re.compile(r"(?:ray://)?(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<host>[^\s/:@\[\]]+)):(?P<port>[0-9]{1,5})")
_CONNECT_SECONDS = 5.0  # Ray itself tries for minutes


def start_runner(
    runner: str,
    address: str | None,
    workers: int | None,
    source: Source,
    chunk_bytes: int,
    limits: dict[str, int | None],
) -> Runner:
    """The runner of that name, whose workers start at once: as many as the source is worth, or `workers`."""
    if address is not None and runner != "ray":
        raise UsageError(f"--address {address} is of a Ray cluster: give --runner ray too")
    if runner == "local":
        from shardkit.tokenization.local_runner import LocalRunner

        useful = useful_workers(workers or available_cores(), source, chunk_bytes, **limits)
        return LocalRunner(useful.most, at_first=useful.at_first, expected=useful.expected)
    if runner == "ray":
        check_cluster(address)
        from shardkit.tokenization.ray_runner import RayRunner

        return RayRunner(workers, address)
    raise UsageError(f"unknown runner {runner!r}: expected local or ray")


def check_cluster(address: str | None) -> None:
    """Raise `WorkerError` if `address`, or without one RAY_ADDRESS, is none, or nobody listens there."""
    is_given = address not in (None, "auto")
    named = str(address) if is_given else os.environ.get("RAY_ADDRESS", "")
    found = _ADDRESS.fullmatch(named)
    if found is None or not 0 < int(found["port"]) < 1 << 16:
        if is_given:  # of the variable, Ray knows what else it may be
            raise WorkerError(
                f"--address is {named!r:.80}: expected HOST:PORT of a Ray cluster, as `ray start` says it, or auto"
            )
        return
    try:
        socket.create_connection((found["six"] or found["host"], int(found["port"])), _CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise WorkerError(
            f"no Ray cluster answers at {named} ({why}): check `ray status` there, or leave out --address and "
            "RAY_ADDRESS for a cluster of this machine's own"
        ) from None
