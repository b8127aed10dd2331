"""How many cores a process may use: files as the kernel has them in /proc and /sys, of machines and of containers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardkit import cores
from shardkit.cores import available_cores, cpu_quota

V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "33 32 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct"
DISK = "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def machine(at: Path, names: str, mounts: list[str], **files: str) -> Path:
    """A root folder whose process is in the cgroups `names`; `files` are those of cgroups, with `__` for `/`."""
    (at / "proc/self").mkdir(parents=True)
    (at / "proc/self/cgroup").write_text(names)
    (at / "proc/self/mountinfo").write_text("\n".join([DISK, *mounts]) + "\n")
    for name, text in files.items():
        path = at / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return at


def test_a_container_of_cgroup_v2_has_its_own_quota_at_the_top(tmp_path: Path) -> None:
    assert cpu_quota(machine(tmp_path, "0::/\n", [V2.format(root="/")], cpu_max="200000 100000\n")) == 2


def test_the_least_quota_of_a_cgroup_and_those_above_it_counts(tmp_path: Path) -> None:
    files = {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "150000 100000\n", "cpu_max": "800000 100000\n"}
    assert cpu_quota(machine(tmp_path, "0::/a/b\n", [V2.format(root="/")], **files)) == 1.5


def test_a_name_of_the_hosts_that_the_container_does_not_see_is_its_mount(tmp_path: Path) -> None:
    names = "0::/system.slice/docker-1234.scope\n"
    assert cpu_quota(machine(tmp_path, names, [V2.format(root="/")], cpu_max="400000 100000\n")) == 4


def test_cgroup_v1_states_quota_and_period_in_two_files(tmp_path: Path) -> None:
    names = "5:memory:/docker/1234\n4:cpu,cpuacct:/docker/1234\n"
    files = {"cpu,cpuacct__cpu_cfs_quota_us": "350000\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"}
    assert cpu_quota(machine(tmp_path, names, [V1.format(root="/docker/1234")], **files)) == 3.5


def test_cgroup_v1_without_a_quota_and_v2_beside_it_without_a_processor_allow_everything(tmp_path: Path) -> None:
    names = "4:cpu,cpuacct:/\n0::/\n"
    files = {"cpu,cpuacct__cpu_cfs_quota_us": "-1\n", "cpu,cpuacct__cpu_cfs_period_us": "100000\n"}
    mounts = [V1.format(root="/"), V2.format(root="/").replace("/cgroup rw", "/cgroup/unified rw")]
    assert cpu_quota(machine(tmp_path, names, mounts, **files)) == math.inf


@pytest.mark.parametrize("text", ["", "max\n", "none 100000\n", "100000 0\n", "1 2 3\n"])
def test_a_file_that_says_nothing_sensible_limits_nothing(tmp_path: Path, text: str) -> None:
    assert cpu_quota(machine(tmp_path, "0::/\n", [V2.format(root="/")], cpu_max=text)) == math.inf


@pytest.mark.parametrize("names", ["", "nonsense\n", "0::/../../etc\n"])
def test_a_machine_whose_proc_says_something_else_has_no_quota(tmp_path: Path, names: str) -> None:
    assert cpu_quota(machine(tmp_path, names, [V2.format(root="/"), "short"])) == math.inf
    assert cpu_quota(tmp_path / "empty") == math.inf


@pytest.mark.parametrize(("quota", "cores_used"), [(0.25, 1), (1.0, 1), (1.5, 2), (3.0, 3), (math.inf, 8), (64.0, 8)])
def test_a_part_of_a_core_is_one_and_no_more_than_the_affinity_are_used(
    monkeypatch: pytest.MonkeyPatch, quota: float, cores_used: int
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    monkeypatch.setattr(cores, "_cores_allowed", lambda: 8)
    assert available_cores() == cores_used


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_cores_are_those_of_the_affinity() -> None:
    program = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
        "from shardkit.cores import available_cores; print(available_cores())"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
