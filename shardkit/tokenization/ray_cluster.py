"""Which Ray cluster a run is on, and how large that is while the run goes on: clusters grow and shrink."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil

from shardkit.errors import WorkerError

_LOOK_SECONDS = 1.0  # between two questions to the cluster


def connect(ray: Any, workers: int | None, address: str | None) -> bool:
    """Connect this process to the cluster at `address` (`auto`: that of this machine), that `RAY_ADDRESS` names, or
    that `ray start` began here; else to a new one of `workers` CPUs. Returns whether it is a new one. Raises
    `WorkerError` if no cluster answers, or none lets us in."""
    named = address
    address = (None if named == "auto" else named) or os.environ.get("RAY_ADDRESS") or started_here()
    if address is None and named is not None:
        raise WorkerError("no Ray cluster was found on this machine: give --address HOST:PORT, or `ray start --head`")
    if address is None:
        ray.init("local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        return True
    try:
        ray.init(address, log_to_driver=False)
        return False
    except (ConnectionError, getattr(ray.exceptions, "AuthenticationError", ConnectionError)) as error:
        if "AuthenticationError" in f"{error!r} {error.__cause__}":
            why = (
                f"the token for the Ray cluster at {address} is missing here, or another one: set RAY_AUTH_MODE, and "
                "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, to what they are on its nodes"
            )
        else:
            why = (
                f"no Ray cluster answers at {address}: check `ray status`, or leave out --address and RAY_ADDRESS (or "
                "`ray stop`) for a cluster of this machine's own"
            )
        raise WorkerError(why) from None


def started_here() -> str | None:
    """The address of the cluster that `ray start` began on this machine; None for none. Ray's own search also finds the
    clusters of other programs, which end with them, and believes its file when the cluster is no more."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    try:
        address = note.read_text().strip()
    except OSError:
        return None
    words = [word for one in psutil.process_iter(["name", "cmdline"]) for word in _words_of_a_raylet(one.info)]
    return address if any(address in word for word in words) else None


def _words_of_a_raylet(process: dict[str, Any]) -> list[str]:
    return process["cmdline"] or [] if process["name"] == "raylet" else []


def hub_environment() -> dict[str, str]:
    """What the nodes' processes need in their environment to ask the same Hub as this one."""
    return {"HF_ENDPOINT": os.environ["HF_ENDPOINT"]} if "HF_ENDPOINT" in os.environ else {}


class ClusterSize:
    """What the cluster has: `cpus`, and room for `store_bytes` of objects."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._asked = -_LOOK_SECONDS
        self.cpus, self.store_bytes = 0, 0
        self.look()

    def look(self) -> None:
        """Ask the cluster, unless that was a moment ago."""
        if time.monotonic() >= self._asked + _LOOK_SECONDS:
            there = self._ray.cluster_resources()
            self.cpus, self.store_bytes = int(there.get("CPU", 0)), int(there.get("object_store_memory", 0))
            self._asked = time.monotonic()

    @property
    def free_cpus(self) -> float:
        """How many CPUs nobody has at the moment."""
        free: float = self._ray.available_resources().get("CPU", 0.0)
        return free
