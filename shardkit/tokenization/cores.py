"""`shardkit.cores` by its earlier name, for `ordered_writer.py`."""

from shardkit.cores import available_cores

__all__ = ["available_cores"]
