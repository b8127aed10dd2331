"""Which runner a run has, by its name: those for a cluster are imported when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shardkit.errors import UsageError
from shardkit.sources.source import Source
from shardkit.tokenization.cores import available_cores
from shardkit.tokenization.run_size import useful_workers

if TYPE_CHECKING:
    from shardkit.tokenization.local_runner import LocalRunner
    from shardkit.tokenization.ray_runner import RayRunner


def start_runner(
    runner: str, workers: int | None, source: Source, chunk_bytes: int, limits: dict[str, int | None]
) -> LocalRunner | RayRunner:
    """The runner for what is read of `source`; its first processes are starting. Raises `UsageError`."""
    if runner == "local":
        from shardkit.tokenization.local_runner import LocalRunner

        useful = useful_workers(workers or available_cores(), source, chunk_bytes, **limits)
        return LocalRunner(useful.most, at_first=useful.at_first, expected=useful.expected)
    if runner == "ray":
        from shardkit.tokenization.ray_runner import RayRunner

        return RayRunner(workers)
    raise UsageError(f"unknown runner {runner!r}: expected local or ray")
