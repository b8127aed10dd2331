"""Which runner a run has, by its name. Each is imported when it is asked for."""

from __future__ import annotations

from shardkit.cores import available_cores
from shardkit.errors import UsageError
from shardkit.sources.source import Source
from shardkit.tokenization.run_size import useful_workers
from shardkit.tokenization.runner import Runner


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
        from shardkit.tokenization.ray_runner import RayRunner

        return RayRunner(workers, address)
    raise UsageError(f"unknown runner {runner!r}: expected local or ray")
