"""How many cores this process may use: its affinity, and what a container's quota (cgroup v1 and v2) allows.

The one place that is asked for a number of cores. A quota is a share of time and not a set of cores: `docker run
--cpus 4` on a machine of 64 leaves all 64 in the affinity, and 64 workers would wait for one another.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple


def available_cores() -> int:
    """The cores that this process may use, at least 1; a part of a core counts as one."""
    return max(1, math.ceil(min(_cores_allowed(), cpu_quota())))


def _cores_allowed() -> int:
    """By the process's affinity, or what `PYTHON_CPU_COUNT` says (Python 3.13)."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1  # type: ignore[no-any-return, unused-ignore]
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float:
    """The cores' worth of time that the process's cgroup and those above it allow, in the file system at `root`;
    infinite where there is no quota, or no cgroups."""
    quotas = [math.inf]
    for group in _groups(root):
        for folder in (group.folder, *group.folder.parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                quotas.append(_quota_v2(folder) if group.is_v2 else _quota_v1(folder))
            if folder == group.top:
                break
    return min(quotas)


class _Group(NamedTuple):
    """A cgroup of this process: its `folder`, below the mount `top`."""

    folder: Path
    top: Path
    is_v2: bool


def _groups(root: Path) -> Iterator[_Group]:
    """The process's cgroups that may have a quota of processor time. In a container their names may be the host's, of
    which no folder is seen: then the mount is the container's own."""
    try:
        names = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split(" ") for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except (OSError, ValueError):  # not Linux
        return
    names = [name for name in names if len(name) == 3]
    for fields in (mount for mount in mounts if "-" in mount[6:]):
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2":
            paths = [name[2] for name in names if name[:2] == ["0", ""]]
        elif kind == "cgroup" and "cpu" in options:
            paths = [name[2] for name in names if "cpu" in name[1].split(",")]
        else:
            continue
        top = root / fields[4].lstrip("/")
        for path in paths:
            within = PurePosixPath(path)
            below = within.relative_to(fields[3]) if within.is_relative_to(fields[3]) else PurePosixPath()
            folder = top / str(below).lstrip("/")
            yield _Group(folder if folder.is_dir() and ".." not in below.parts else top, top, kind == "cgroup2")


def _quota_v2(folder: Path) -> float:
    """Of `cpu.max`, as `200000 100000` or `max 100000` (microseconds, and in how many of them)."""
    quota, period = (folder / "cpu.max").read_text().split()
    return math.inf if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float:
    quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    return quota / period if quota > 0 else math.inf
