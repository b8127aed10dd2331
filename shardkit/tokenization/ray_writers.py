"""Processes of a Ray cluster that write shards, one at a time each, and stay for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shardkit.tokenization.ray_cluster import hub_environment
from shardkit.tokenization.ray_tasks import Writer

RETRIES = 3


@dataclass(slots=True)
class Writing:
    """A shard that is being written, `here` or on any node: what the `writer`, an actor, is `given` to do, a function
    and its arguments, and `end`, Ray's reference to what the function returns."""

    here: bool
    given: tuple[Any, ...]
    writer: Any = None
    end: Any = None


class RayWriters:
    """The writers of the cluster that `ray` is connected to. Ray itself gives up an actor's work before it knows that
    the node died, so what died is begun again here."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._idle: dict[bool, list[Any]] = {True: [], False: []}  # on this machine, and on any

    def begin(self, *given: Any, here: bool) -> Writing:
        """Have a writer, `here` or on any node, call a function with its arguments: both are `given`."""
        writing = Writing(here, given)
        self._hand_over(writing, self._idle[here].pop() if self._idle[here] else self._start(here=here))
        return writing

    def has_ended(self, writing: Writing) -> bool:
        """Whether it is done or failed, or the writer died."""
        return bool(self._ray.wait([writing.end], timeout=0, fetch_local=False)[0])

    def end_of(self, writing: Writing) -> Any:
        """Wait until it is done; returns the reference to what was made, or to the error. Where the writer died,
        perhaps with its node, another one does it again, at most `RETRIES` times."""
        for _ in range(RETRIES):
            if not self._has_died(writing):
                break
            self._hand_over(writing, self._start(here=writing.here))  # those that are idle may have died with it
        return writing.end

    def release(self, writing: Writing) -> None:
        """Its writer has nothing more to do."""
        self._idle[writing.here].append(writing.writer)

    def _hand_over(self, writing: Writing, writer: Any) -> None:
        writing.writer, writing.end = writer, writer.do.remote(*writing.given)

    def _start(self, *, here: bool) -> Any:
        actor: Any = self._ray.remote(
            num_cpus=0,
            scheduling_strategy=self._here if here else "SPREAD",
            runtime_env={"env_vars": hub_environment()},
        )(Writer)
        return actor.remote()

    def _has_died(self, writing: Writing) -> bool:
        errors = self._ray.exceptions
        try:
            self._ray.get(writing.end)
        except errors.RayActorError:
            return True
        except errors.RayError:  # whoever asks for it hears of that
            return False
        return False

    @property
    def _here(self) -> Any:
        """That a task runs on this machine."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=False)
